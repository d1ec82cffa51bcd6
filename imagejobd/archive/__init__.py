"""Archives from strangers, read without ever unpacking them to where they say.

Build contexts are read once, checked, and written anew (`context.py` has the promise). Image archives are checked and
stay as they are (`image_archive.py`). What a payload is at all says `sorting.py`. Nothing here knows of jobs.
"""

from imagejobd.archive.context import ContextBounds, dockerfile_context, rewrite
from imagejobd.archive.image_archive import check_image_archive
from imagejobd.archive.index import Entry, index
from imagejobd.archive.inflate import Stop, Stopped
from imagejobd.archive.looks import TAR
from imagejobd.archive.sorting import Sorted, What, sort

__all__ = [
    "TAR",
    "ContextBounds",
    "Entry",
    "Sorted",
    "Stop",
    "Stopped",
    "What",
    "check_image_archive",
    "dockerfile_context",
    "index",
    "rewrite",
    "sort",
]
