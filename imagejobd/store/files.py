"""What files ask of a disk: to survive a power cut, and room."""

import os
from pathlib import Path

from imagejobd.model.errors import ErrorCode, Temporary

FULL_RETRY_AFTER_S = 30.0


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` durable: fsync of a file does not cover its name."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def disk_full(holding: str) -> Temporary:
    """The fault for a disk that has no room left; `holding` is what it holds."""
    return Temporary(
        ErrorCode.STORAGE_FULL,
        f"the disk that holds {holding} is full; free space on it (nothing was half-written)",
        retry_after_s=FULL_RETRY_AFTER_S,
    )
