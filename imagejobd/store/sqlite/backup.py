"""A copy of the database while a daemon writes it."""

import sqlite3
from contextlib import closing
from pathlib import Path

from imagejobd.model.errors import ErrorCode, Permanent
from imagejobd.store.sqlite.database import APPLICATION_ID


def copy_database(path: Path, copy: Path) -> int:
    """Copy one consistent state of the database at `path` to the file `copy`; how many jobs it has.

    By SQLite's own backup, in a single step: that sees what was committed when it began, holds up no writer, and cannot
    be made to start again by one. Raises `Permanent(invalid)` for a file that is not there, or no job database.
    """
    if not path.is_file():
        raise Permanent(ErrorCode.INVALID, f"there is no job database at {path}")
    try:
        with (
            closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as source,
            closing(sqlite3.connect(copy)) as target,
        ):
            if source.execute("pragma application_id").fetchone() != (APPLICATION_ID,):
                raise Permanent(ErrorCode.INVALID, f"{path} is not a job database of imagejobd's")
            source.backup(target)
            count: int = target.execute("select count(*) from job").fetchone()[0]
    except sqlite3.Error as error:
        raise Permanent(ErrorCode.INVALID, f"can't copy the job database {path}: {error}") from None
    return count
