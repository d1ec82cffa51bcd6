"""What SQLite's failures mean for the daemon. Decided once, here, by result code.

Three cases. A statement's own failure (a constraint, bad SQL) concerns one request. A full disk or a lock held by
another program concerns the whole transaction, and passes. Anything else (a failed fsync, an I/O error, corruption)
means that what is on disk is no longer known: after a failed fsync the kernel may drop the dirty pages and let the
next one succeed, so the only safe answer is to stop and to recover from the file by a new start.
"""

import sqlite3

from imagejobd.model.errors import ErrorCode, Fault, Permanent, StoreFailed, Temporary
from imagejobd.store.files import disk_full

BUSY_RETRY_AFTER_S = 5.0

_OF_ONE_STATEMENT = frozenset(
    {
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_TOOBIG,
        sqlite3.SQLITE_CONSTRAINT,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_MISUSE,
        sqlite3.SQLITE_RANGE,
    }
)
_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_IOERR})
_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
# On a full disk the write-ahead index cannot grow either, and SQLite gives that its own code.
_FULL_EXTENDED = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE})


def _code(error: sqlite3.Error) -> int:
    # Errors of the Python module itself (a wrong parameter, say) carry no code.
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)


def concerns_one_request(error: Exception) -> bool:
    """Whether the transaction around a failed statement, or a verb with a defect, can go on."""
    return not isinstance(error, sqlite3.Error) or _code(error) & 0xFF in _OF_ONE_STATEMENT


def is_damage(error: sqlite3.Error) -> bool:
    """Whether what is on disk could not be read, or not be understood."""
    return _code(error) & 0xFF in _DAMAGE


def passing(error: BaseException) -> Temporary | None:
    """The fault for a failure that passes without a restart, or None when the database can't be trusted any more."""
    if not isinstance(error, sqlite3.Error):
        return None
    code = _code(error)
    if code in _FULL_EXTENDED:
        return disk_full("the job database")
    if code & 0xFF in _BUSY:
        return Temporary(
            ErrorCode.INTERNAL,
            "another program holds a write lock on the job database: close it, and open the file with "
            "sqlite3 -readonly instead",
            retry_after_s=BUSY_RETRY_AFTER_S,
        )
    return None


def refused(error: sqlite3.Error, doing: str) -> Fault:
    """The fault for the one request that SQLite did not carry out; the store goes on."""
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    return Permanent(ErrorCode.INTERNAL, f"the job database refused {doing}: {name}: {error}")


def of_request(error: Exception, doing: str) -> Exception:
    """The error for the caller of the one request that failed; the store goes on."""
    if isinstance(error, sqlite3.Error):
        return refused(error, doing)
    if isinstance(error, StopIteration):  # no future takes it
        return RuntimeError(f"{doing} ended with {error!r}")
    return error


def failed(error: BaseException, doing: str) -> StoreFailed:
    """The fault of every request from now on: after an error that does not pass, and after a defect alike."""
    if isinstance(error, StoreFailed):
        return error
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    cure = "check the disk and the kernel log, then start again"
    if not isinstance(error, sqlite3.Error):
        cure = "this is a defect of imagejobd or a lack of memory; start again"
    return StoreFailed(f"{name} at {doing}: {error}; {cure}")
