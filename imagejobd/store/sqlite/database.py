"""The database file: opening it, closing it, and the SQL that is carried out on it.

The schema moves only forward, by the numbered files in `migrations/`, each in its own transaction. A file that is not
ours, or that a newer version has written, is refused and left as it is; so is one that is gone or empty while payloads
of its jobs are there. It is checked for damage after the start, and only where the last stop was not clean.

SQL is kept as named, described statements in `sql/*.sql`, so that it reads, greps and explains as SQL. A statement
begins at a line `-- name: what` and runs to the next one; the comment under that line describes it. Values reach SQL as
parameters only; no statement is made from text that came from outside.
"""

import contextlib
import re
import sqlite3
import threading
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path

import structlog

from imagejobd.model.errors import ErrorCode, Permanent, StoreFailed
from imagejobd.store.sqlite import errors

APPLICATION_ID = 0x494D4A44  # "IMJD"
BUSY_TIMEOUT_S = 5.0
# For readers that are about to be done; a shell that was left open must not hold up a stop.
CLOSE_BUSY_TIMEOUT_MS = 300
# A checkpoint holds up every request that is in flight, so it comes seldom enough to stay out of their 99th percentile.
CHECKPOINT_PAGES = 4000
# After a reader has held it back, the write-ahead log is cut to this, and not to nothing: growing costs each commit.
WAL_SIZE_LIMIT_BYTES = 64 * 1024 * 1024
# How long a stop waits for an inspection that it has interrupted.
INSPECTION_STOP_TIMEOUT_S = 2.0
# sqlite.org/fileformat.html, 1.3: the write version of a database in WAL mode.
WRITE_VERSION_OFFSET, WRITE_VERSION_WAL = 18, 2

_NAME = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)

log = structlog.get_logger("imagejobd.store")


def load(topic: str) -> Mapping[str, str]:
    """The statements of `sql/<topic>.sql` by name."""
    text = (resources.files("imagejobd.store.sqlite") / "sql" / f"{topic}.sql").read_text("utf-8")
    _, *parts = _NAME.split(text)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def open_database(path: Path, *, has_content: bool = False) -> sqlite3.Connection:
    """The writing connection, with the newest schema, in WAL mode with synchronous=FULL.

    `has_content` says that there are payloads beside the file, so that it can't be a new one. Raises
    `Permanent(invalid)` for a file that this version can't use.
    """
    try:
        db = sqlite3.connect(path, isolation_level=None, timeout=BUSY_TIMEOUT_S)
    except sqlite3.Error as error:
        raise Permanent(ErrorCode.INVALID, f"can't open the job database {path}: {error}") from error
    try:
        _check_identity(db, path, has_content)
        _set_up(db, path)
        migrate(db, path)
    except sqlite3.Error as error:
        db.close()
        raise Permanent(ErrorCode.INVALID, f"can't use {path} as the job database: {error}") from error
    except BaseException:
        db.close()
        raise
    return db


def close_database(db: sqlite3.Connection) -> None:
    """Leave the file so that a user who may only read it can open it.

    A WAL database can't be opened read-only in a folder that its reader can't write, so a clean stop ends WAL mode;
    `stopped_cleanly` knows it by that. While a shell still has the file open that is not possible, and only the
    checkpoint is made.
    """
    try:
        with contextlib.suppress(sqlite3.OperationalError):  # a full disk: statistics can wait
            db.execute("pragma optimize")
        db.execute(f"pragma busy_timeout = {CLOSE_BUSY_TIMEOUT_MS}")
        # On a full disk, or while a shell reads, the log stays: the next start takes it in.
        with contextlib.suppress(sqlite3.OperationalError):
            db.execute("pragma wal_checkpoint(truncate)")
            db.execute("pragma journal_mode = delete")
    finally:
        db.close()


def check_not_lost(path: Path, *, has_content: bool) -> None:
    """Raises `Permanent(invalid)` where the file is gone or empty, although there were jobs.

    Before SQLite opens it: beside an empty file it would remove the write-ahead log, which may be all that is left.
    """
    log_file = path.with_name(path.name + "-wal")
    if path.exists() and path.stat().st_size > 0:
        return
    if has_content or (log_file.exists() and log_file.stat().st_size > 0):
        raise _missing(path)


def stopped_cleanly(path: Path) -> bool:
    """Whether `close_database` was the last to write the file, or there is none. To be asked before it is opened."""
    if not path.exists():
        return True
    with path.open("rb") as file:
        header = file.read(WRITE_VERSION_OFFSET + 1)
    return header[WRITE_VERSION_OFFSET:] != bytes([WRITE_VERSION_WAL])


class Inspection:
    """Looks for damage after a stop that was not clean, in a thread and on a connection of its own.

    `quick_check` reads the whole file, which takes minutes where it holds years of logs: longer than a unit may take to
    start, and needless after a clean stop, when every page was written back in order. So the daemon is ready meanwhile,
    and the check goes table by table: the write-ahead log grows only as long as one of them takes.
    """

    def __init__(self, path: Path, on_damage: Callable[[StoreFailed], None]) -> None:
        """`on_damage` is called in the thread."""
        self._path = path
        self._on_damage = on_damage
        self._db = sqlite3.connect(path, isolation_level=None, timeout=BUSY_TIMEOUT_S, check_same_thread=False)
        self._stopped = threading.Event()
        # The process does not wait for it.
        self._thread = threading.Thread(target=self._run, name="store-inspection", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it where it is; the next start knows only of the stop that follows."""
        self._stopped.set()
        with contextlib.suppress(sqlite3.ProgrammingError):  # it has just ended by itself
            self._db.interrupt()
        self._thread.join(INSPECTION_STOP_TIMEOUT_S)

    def _run(self) -> None:
        log.info("checking the job database, because its last stop was not clean", database=str(self._path))
        try:
            damage = self._damage()
        except sqlite3.Error as error:
            if not self._stopped.is_set():
                log.warning("the job database could not be checked", database=str(self._path), error=str(error))
            return
        finally:
            self._db.close()
        if damage is not None:
            self._on_damage(_damaged(self._path, damage))
        elif not self._stopped.is_set():
            log.info("the job database is sound", database=str(self._path))

    def _damage(self) -> str | None:
        self._db.execute("pragma query_only = on")
        tables = self._db.execute("select name from sqlite_schema where type = 'table' order by name").fetchall()
        for (table,) in tables:
            if self._stopped.is_set():
                break
            result = self._quick_check(table)
            if result != "ok":
                return f"{table}: {result}"
        return None

    def _quick_check(self, table: str) -> str:
        try:
            (result,) = self._db.execute(f'pragma quick_check("{table}")').fetchone()
        except sqlite3.DatabaseError as error:
            if not errors.is_damage(error):
                raise
            return str(error)
        return str(result)


def migrations() -> list[tuple[int, str]]:
    """Number and SQL of every migration, in order."""
    files = (resources.files("imagejobd.store.sqlite") / "migrations").iterdir()
    numbered = [(re.match(r"(\d{4})_\w+\.sql$", file.name), file) for file in files]
    return sorted((int(match[1]), file.read_text("utf-8")) for match, file in numbered if match)


def migrate(db: sqlite3.Connection, path: Path) -> None:
    """Bring the schema to the newest version; an interrupted migration leaves the one before it."""
    known = migrations()
    (version,) = db.execute("pragma user_version").fetchone()
    if version > known[-1][0]:
        raise Permanent(
            ErrorCode.INVALID,
            f"{path} has schema {version} and this imagejobd knows {known[-1][0]} at most: "
            "install the newer imagejobd again, or restore a backup",
        )
    for number, script in known:
        if number > version:
            _apply(db, number, script)


def _apply(db: sqlite3.Connection, number: int, script: str) -> None:
    try:
        db.executescript(f"begin immediate;\n{script}\npragma user_version = {number};\ncommit;")
    except sqlite3.Error:
        if db.in_transaction:
            db.execute("rollback")
        raise


def _check_identity(db: sqlite3.Connection, path: Path, has_content: bool) -> None:
    (application_id,) = db.execute("pragma application_id").fetchone()
    (tables,) = db.execute("select count(*) from sqlite_schema").fetchone()
    if application_id != APPLICATION_ID and (application_id or tables):
        raise Permanent(
            ErrorCode.INVALID,
            f"{path} is an SQLite database but not one of imagejobd's: set server.state_dir to a folder of its own",
        )
    if not tables and has_content:
        raise _missing(path)


def _missing(path: Path) -> Permanent:
    return Permanent(
        ErrorCode.INVALID,
        f"the job database {path} is missing or empty, although its jobs' payloads or its write-ahead log are there: "
        "restore it from a backup; or, to start anew, move what is in its folder away",
    )


def _damaged(path: Path, damage: str) -> StoreFailed:
    return StoreFailed(
        f"{path} is damaged ({damage}): keep the daemon stopped and restore a backup, or recover what can be read "
        "with sqlite3 and its .recover; check the disk and the kernel log"
    )


def _set_up(db: sqlite3.Connection, path: Path) -> None:
    (mode,) = db.execute("pragma journal_mode = wal").fetchone()
    if mode != "wal":
        raise Permanent(ErrorCode.INVALID, f"{path} is on a file system without write-ahead logging: use a local disk")
    db.row_factory = sqlite3.Row
    db.execute("pragma synchronous = full")
    db.execute("pragma foreign_keys = on")
    db.execute(f"pragma wal_autocheckpoint = {CHECKPOINT_PAGES}")
    db.execute(f"pragma journal_size_limit = {WAL_SIZE_LIMIT_BYTES}")
