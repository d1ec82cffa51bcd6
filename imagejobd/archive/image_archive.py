"""Checking an image archive, as `docker save`, skopeo or a builder writes it, to the last byte.

An archive may be of both sorts: Docker writes an OCI layout with a `manifest.json` beside it since version 25. Then it
has to be right as both, because nobody knows which of them its readers look at.
"""

from typing import BinaryIO

from imagejobd.archive.inflate import Stop
from imagejobd.archive.layout import LAYOUT, check_layout
from imagejobd.archive.saved import MANIFEST, check_saved
from imagejobd.archive.survey import survey
from imagejobd.model.errors import invalid


def check_image_archive(source: BinaryIO, *, max_bytes: int, stop: Stop) -> int:
    """Check the image archive in `source`, compressed or not; how many images it holds.

    `max_bytes` bounds what it unpacks to, and what its layers unpack to. Raises `Permanent(invalid | too_large)` that
    says what is wrong where, and `Stopped`.
    """
    contents = survey(source, max_bytes=max_bytes, stop=stop)
    found = [
        check(contents)
        for name, check in ((LAYOUT, check_layout), (MANIFEST, check_saved))
        if contents.find(name.encode()) is not None
    ]
    if not found:
        raise invalid(f"the image archive has neither {LAYOUT!r} nor {MANIFEST!r}")
    return found[0]
