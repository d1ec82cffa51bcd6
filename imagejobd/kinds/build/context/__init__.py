"""Build contexts from strangers: read once, checked, written anew. See `rewriting.py` for the promise."""

from imagejobd.kinds.build.context.inflate import Stopped
from imagejobd.kinds.build.context.rewriting import ContextBounds, dockerfile_context, rewrite

__all__ = ["ContextBounds", "Stopped", "dockerfile_context", "rewrite"]
