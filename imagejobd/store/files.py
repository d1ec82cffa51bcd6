"""Files of the state folder: who may read them, names that survive a power cut, and what a full disk is called."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imagejobd.model.errors import ErrorCode, Temporary

FULL_RETRY_AFTER_S = 30.0
# The group may read, for backups and `sqlite3 -readonly`; logs and payloads are nobody else's business.
FOLDER_MODE = 0o750
FILE_MODE = 0o640
# Of the process: what any library makes, SQLite's files too, gets the modes above.
UMASK = 0o027

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` durable: fsync of a file does not cover its name."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def set_mode(path: Path, mode: int) -> None:
    """Give `path` the permissions `mode`, where it has others; setgid and its like stay. It must be there."""
    present = path.stat().st_mode & 0o7777
    if present & 0o777 != mode:
        path.chmod(present & ~0o777 | mode)


def disk_full(content: str) -> Temporary:
    """The fault for the disk that holds `content`."""
    return Temporary(
        ErrorCode.STORAGE_FULL,
        f"the disk that holds {content} is full; free space on it (nothing was half-written)",
        retry_after_s=FULL_RETRY_AFTER_S,
    )


@contextmanager
def storage_faults() -> Iterator[None]:
    """A full disk of the content store as `Temporary(storage_full)`; every other OSError is a defect and goes on."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise disk_full("the content store") from error
