"""What files ask of a disk: to survive a power cut, room, and that not everybody may read them."""

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
    found = path.stat().st_mode & 0o7777
    if found & 0o777 != mode:
        path.chmod(found & ~0o777 | mode)


def disk_full(holding: str) -> Temporary:
    """The fault for a disk that has no room left; `holding` is what it holds."""
    return Temporary(
        ErrorCode.STORAGE_FULL,
        f"the disk that holds {holding} is full; free space on it (nothing was half-written)",
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
