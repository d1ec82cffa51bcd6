"""One daemon for one state folder, and for one database. Two would rescue each other's running jobs.

Both locks are the kernel's (`flock`), so they go with their process however that ends; a lock file that is left over
means nothing. The one on the database itself counts where somebody has removed the folder's while it was held. SQLite
locks byte ranges (fcntl), which `flock` neither sees nor disturbs, so that people may read the file meanwhile.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imagejobd.model.errors import ErrorCode, Permanent, StoreFailed
from imagejobd.store.files import FILE_MODE

LOCK_FILE_NAME = "lock"
# What SQLite keeps beside a database in WAL mode, by the ends of their names.
COMPANIONS = ("-wal", "-shm")

# Device and inode.
Identity = tuple[int, int]


@contextmanager
def lock_state_dir(state_dir: Path) -> Iterator[None]:
    """Hold the folder. Raises `Permanent(conflict)` at once when another process holds it."""
    path = state_dir / LOCK_FILE_NAME
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
    try:
        if not _lock(descriptor):
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            raise _in_use(f"another imagejobd (process {holder}) uses {state_dir}")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


class DatabaseFile:
    """The file of a database that is held open, made where there was none. Made by `hold_database`.

    An unlinked file takes commits as any other does, and nobody will ever find them: so what the path names is compared
    with what is held.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._identity = _identity(os.fstat(descriptor))
        self._companions: dict[Path, Identity] = {}

    def check(self) -> None:
        """Raises `StoreFailed` when the path no longer names the file.

        One system call, because it comes before every commit.
        """
        _check(self._path, self._identity)

    def check_companions(self) -> None:
        """As `check`, of the write-ahead log and its index too, which are as they were at the first call."""
        self.check()
        if not self._companions:
            paths = [self._path.with_name(self._path.name + end) for end in COMPANIONS]
            self._companions = {path: _identity(path.stat()) for path in paths if path.exists()}
        for path, identity in self._companions.items():
            _check(path, identity)


@contextmanager
def hold_database(path: Path) -> Iterator[DatabaseFile]:
    """Hold the database's file; to be left after SQLite has closed it, whose locks go with any descriptor of it.

    Raises `Permanent(conflict)` when another process holds it, and `Permanent(invalid)` when it can't be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
    except OSError as error:
        raise Permanent(ErrorCode.INVALID, f"can't open the job database {path}: {error.strerror}") from error
    try:
        if not _lock(descriptor):
            raise _in_use(f"another imagejobd uses the database {path}, although its {LOCK_FILE_NAME} file was removed")
        yield DatabaseFile(path, descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _in_use(what: str) -> Permanent:
    return Permanent(ErrorCode.CONFLICT, f"{what}: stop it, or set another server.state_dir")


def _check(path: Path, expected: Identity) -> None:
    try:
        identity = _identity(path.stat())
    except OSError as error:
        raise _lost(path, f"cannot be found any more ({error.strerror})") from error
    if identity != expected:
        raise _lost(path, "was replaced by another file")


def _lost(path: Path, what: str) -> StoreFailed:
    return StoreFailed(
        f"{path} {what} while the daemon ran: stop whatever removes files there, restore a backup of the state folder "
        "if jobs are missing, then start again"
    )


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino
