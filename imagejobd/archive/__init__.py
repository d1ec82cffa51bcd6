"""Archives from strangers, read without ever unpacking them to where they say.

Build contexts are read once, checked, and written anew (`context.py` has the promise). Nothing here knows of jobs.
"""

from imagejobd.archive.context import ContextBounds, dockerfile_context, rewrite
from imagejobd.archive.inflate import Stopped

__all__ = ["ContextBounds", "Stopped", "dockerfile_context", "rewrite"]
