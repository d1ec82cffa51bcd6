"""Archives from strangers, read without ever unpacking them to where they say.

Build contexts are read once, checked, and written anew (`context.py` has the promise). Image archives are checked and
stay as they are (`images.py`). What a payload is at all says `detect.py`. Nothing here knows of jobs.
"""

from imagejobd.archive.context import ContextBounds, dockerfile_context, index, parse_dockerfile_path, rewrite
from imagejobd.archive.detect import Detected, What, detect
from imagejobd.archive.images import check_image_archive
from imagejobd.archive.inflate import TAR, Stop, Stopped

__all__ = [
    "TAR",
    "ContextBounds",
    "Detected",
    "Stop",
    "Stopped",
    "What",
    "check_image_archive",
    "detect",
    "dockerfile_context",
    "index",
    "parse_dockerfile_path",
    "rewrite",
]
