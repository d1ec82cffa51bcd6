"""A few connections that only read, each with its own snapshot, so that listings never wait for the writer.

Every read is one short statement that is fetched at once: a reader that holds its snapshot makes the write-ahead log
grow.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from sqlite3 import Row
from typing import Any

import aiosqlite

from imagejobd.store.sqlite import errors

READERS_MAX = 3
BUSY_TIMEOUT_S = 5.0

Parameters = Sequence[Any] | Mapping[str, Any]


class Readers:
    """The pool. Use through `open`."""

    def __init__(self, idle: "asyncio.LifoQueue[aiosqlite.Connection]") -> None:
        self._idle = idle

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path) -> AsyncIterator["Readers"]:
        idle: asyncio.LifoQueue[aiosqlite.Connection] = asyncio.LifoQueue()
        async with AsyncExitStack() as stack:
            for _ in range(READERS_MAX):
                db = await stack.enter_async_context(
                    aiosqlite.connect(path, isolation_level=None, timeout=BUSY_TIMEOUT_S)
                )
                await db.execute("pragma query_only = on")
                db.row_factory = Row
                idle.put_nowait(db)
            yield cls(idle)

    async def all(self, sql: str, parameters: Parameters = ()) -> Iterable[Row]:
        """Every row of one statement. Raises `Temporary` where a later try may do, else `Permanent(internal)`."""
        db = await self._idle.get()
        try:
            return await db.execute_fetchall(sql, parameters)
        except sqlite3.Error as error:
            raise errors.passing(error) or errors.refused(error, "a read") from error
        finally:
            self._idle.put_nowait(db)

    async def first(self, sql: str, parameters: Parameters = ()) -> Row | None:
        return next(iter(await self.all(sql, parameters)), None)
