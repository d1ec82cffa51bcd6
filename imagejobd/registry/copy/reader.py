"""One target's view of a blob in flight."""

import asyncio
import copy
from typing import TYPE_CHECKING

from imagejobd.model.errors import ErrorCode, Fault, Temporary
from imagejobd.registry.copy.spill import Spill
from imagejobd.registry.copy.spool import disk_fault

if TYPE_CHECKING:
    from imagejobd.registry.copy.tee import Tee


class Reader:
    """A blob's bytes from the first on: iterate once. `close` in every case; closing early disturbs nobody else.

    Iterating raises `Temporary` when the source fails or this reader cannot be served further (no room to spill),
    `Permanent(copy_failed)` when the source's bytes do not have their digest. A body never just ends early: iterating
    what was closed raises `Temporary` too.
    """

    def __init__(self, tee: "Tee") -> None:
        self._tee = tee
        self._wake: asyncio.Future[None] | None = None
        self.number = 0  # of the chunk that it takes next from the window
        self.holds = False  # its consumer still has the chunk before that
        self.offset = 0
        self.begun = False
        self.left = False
        self.fault: BaseException | None = None
        self.spill: Spill | None = None

    @property
    def low(self) -> int:
        """The first chunk that it has not passed."""
        return self.number - self.holds

    def __aiter__(self) -> "Reader":
        return self

    async def __anext__(self) -> bytes:
        self._tee.begin(self)
        while not self.left:
            chunk = self._tee.take(self) if self.spill is None else await self._read(self.spill)
            if chunk is not None:
                self.offset += len(chunk)
                return chunk
            if self._tee.is_end(self.offset):
                self._tee.leave(self, None)
            elif not self.left:
                await self._wait()
        if self.fault is not None:
            # Of all readers of a flight that failed; a traceback would grow by each of them.
            raise copy.copy(self.fault) if isinstance(self.fault, Fault) else self.fault
        raise StopAsyncIteration

    def close(self) -> None:
        self._tee.leave(self, Temporary(ErrorCode.COPY_FAILED, "the copy of this blob was given up before its end"))

    def rouse(self) -> None:
        """Something has changed for it."""
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def _wait(self) -> None:
        self._wake = asyncio.get_running_loop().create_future()
        if self.spill is None:
            self._tee.hunger(self)
        try:
            await self._wake
        finally:
            self._wake = None
            self._tee.sate(self)

    async def _read(self, spill: Spill) -> bytes | None:
        if spill.spool.written <= self.offset:
            return None
        try:
            return await spill.spool.read(self.offset)
        except OSError as error:
            self._tee.leave(self, disk_fault(error))
            return None
