"""One daemon for one state folder. Two would rescue each other's running jobs.

The lock is the kernel's (`flock`), so it goes with its process however that ends; a lock file that is left over means
nothing.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imagejobd.model.errors import ErrorCode, Permanent

LOCK_FILE_NAME = "lock"


@contextmanager
def lock_state_dir(state_dir: Path) -> Iterator[None]:
    """Hold the folder. Raises `Permanent(conflict)` at once when another process holds it."""
    path = state_dir / LOCK_FILE_NAME
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        _lock(descriptor, path)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
        raise Permanent(
            ErrorCode.CONFLICT,
            f"another imagejobd (process {holder}) uses {path.parent}: stop it, or set another server.state_dir",
        ) from error
