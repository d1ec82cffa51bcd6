"""The engine's disk, where it can be seen from here: containers fill it through their volume, which has no size."""

import os
from collections.abc import Callable
from pathlib import Path

import msgspec


class FreeSpace(msgspec.Struct, frozen=True):
    """What is left of a file system. A file system without inodes counts as having all of them free."""

    free_bytes: int
    free_inodes_share: float = 1.0


# The space where a path is; None where it cannot be seen.
Probe = Callable[[Path], FreeSpace | None]

# Below this share of all inodes, services begin to fail that never look at bytes.
INODES_FREE_MIN_SHARE = 0.01


def free_space(path: Path) -> FreeSpace | None:
    """Of the file system at `path`, or at the nearest folder above it that we may look into.

    None where there is no such path: the engine is on another machine, or in another mount namespace.
    """
    if not path.is_absolute():
        return None  # a volume whose driver does not say where it is
    while True:
        try:
            found = os.statvfs(path)
        except PermissionError:
            path = path.parent
        except OSError:
            return None
        else:
            share = found.f_favail / found.f_files if found.f_files else 1.0
            return FreeSpace(found.f_bavail * found.f_frsize, share)


def shortage(space: FreeSpace, *, free_min_bytes: int) -> str:
    """What there is too little of, in words; empty when all is well."""
    if space.free_bytes < free_min_bytes:
        return f"{space.free_bytes} bytes are free, and {free_min_bytes} have to stay so"
    if space.free_inodes_share < INODES_FREE_MIN_SHARE:
        return f"{space.free_inodes_share:.2%} of its inodes are free, and {INODES_FREE_MIN_SHARE:.0%} have to stay so"
    return ""
