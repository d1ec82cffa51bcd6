"""Opening and closing the database file: is it ours, is it sound, is its schema the one we know.

The schema moves only forward, by the numbered files in `migrations/`, each in its own transaction. A file that is not
ours, or that a newer version has written, is refused and left as it is.
"""

import contextlib
import re
import sqlite3
from importlib import resources
from pathlib import Path

from imagejobd.model.errors import ErrorCode, Permanent

APPLICATION_ID = 0x494D4A44  # "IMJD"
BUSY_TIMEOUT_S = 5.0
# For readers that are about to be done; a shell that was left open must not hold up a stop.
CLOSE_BUSY_TIMEOUT_MS = 300
# A checkpoint holds up every request that is in flight, so it comes seldom enough to stay out of their 99th percentile.
CHECKPOINT_PAGES = 4000
# After a reader has held it back, the write-ahead log is cut to this; room is kept, because growing costs each commit.
WAL_KEPT_BYTES = 64 * 1024 * 1024


def open_database(path: Path) -> sqlite3.Connection:
    """The writing connection, with the newest schema, in WAL mode with synchronous=FULL.

    Raises `Permanent(invalid)` for a file that this version can't use and `Permanent(internal)` for a damaged one.
    """
    try:
        db = sqlite3.connect(path, isolation_level=None, timeout=BUSY_TIMEOUT_S)
    except sqlite3.Error as error:
        raise Permanent(ErrorCode.INVALID, f"can't open the job database {path}: {error}") from error
    try:
        _check_identity(db, path)
        _check_soundness(db, path)
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

    A WAL database can't be opened read-only in a folder that its reader can't write, so a clean stop ends WAL mode.
    While a shell still has the file open that is not possible, and only the checkpoint is made.
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


def migrations() -> list[tuple[int, str]]:
    """Number and SQL of every migration, in order."""
    files = (resources.files("imagejobd.store") / "migrations").iterdir()
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


def _check_identity(db: sqlite3.Connection, path: Path) -> None:
    (application_id,) = db.execute("pragma application_id").fetchone()
    (tables,) = db.execute("select count(*) from sqlite_schema").fetchone()
    if application_id != APPLICATION_ID and (application_id or tables):
        raise Permanent(
            ErrorCode.INVALID,
            f"{path} is an SQLite database but not one of imagejobd's: set server.state_dir to a folder of its own",
        )


def _check_soundness(db: sqlite3.Connection, path: Path) -> None:
    (verdict,) = db.execute("pragma quick_check(1)").fetchone()
    if verdict != "ok":
        raise Permanent(
            ErrorCode.INTERNAL, f"{path} is damaged ({verdict}): restore a backup or recover it with sqlite3"
        )


def _set_up(db: sqlite3.Connection, path: Path) -> None:
    (mode,) = db.execute("pragma journal_mode = wal").fetchone()
    if mode != "wal":
        raise Permanent(ErrorCode.INVALID, f"{path} is on a file system without write-ahead logging: use a local disk")
    db.row_factory = sqlite3.Row
    db.execute("pragma synchronous = full")
    db.execute("pragma foreign_keys = on")
    db.execute(f"pragma wal_autocheckpoint = {CHECKPOINT_PAGES}")
    db.execute(f"pragma journal_size_limit = {WAL_KEPT_BYTES}")
