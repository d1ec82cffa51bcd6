"""The slow readers of one flight, and the file they read: everything from where the slowest of them was."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from imagejobd.model.errors import ErrorCode, Fault, Temporary
from imagejobd.registry.copy.spool import WRITE_MAX_BYTES, WRITE_MAX_PIECES, Spool, SpoolRoom, disk_fault
from imagejobd.registry.copy.window import Window

if TYPE_CHECKING:
    from imagejobd.registry.copy.reader import Reader


class Spill:
    """Carries the window's chunks from `number` on into `spool`, for `readers`, until none of them is left.

    It is a reader of the window itself, so a disk that is slower than the source slows the source down.
    `moved` is called when it has passed chunks, `ended` when it takes no more readers, `drop` with a reader that the
    disk has failed.
    """

    def __init__(
        self,
        window: Window,
        spool: Spool,
        *,
        moved: Callable[[], None],
        ended: Callable[[], None],
        drop: Callable[["Reader", Fault], None],
    ) -> None:
        window.enter()
        self.spool = spool
        self.number = window.first
        self._window = window
        self._moved = moved
        self._ended = ended
        self._drop = drop
        self._readers: set[Reader] = set()
        self._wake = asyncio.Event()

    def add(self, reader: "Reader") -> None:
        self._readers.add(reader)

    def discard(self, reader: "Reader") -> None:
        self._readers.discard(reader)
        self._wake.set()

    def wake(self) -> None:
        """There are new chunks."""
        self._wake.set()

    async def run(self, room: SpoolRoom, reserved_bytes: int) -> None:
        """Keep the file while it has readers; then remove it, and give `reserved_bytes` back to `room` in any case."""
        fault: Fault = Temporary(ErrorCode.INTERNAL, "writing the spool file ended before its time")
        try:
            await self.spool.open()
            while self._readers:
                await self._step()
        except (OSError, Fault) as error:
            fault = disk_fault(error)
        finally:
            self._close(fault)
            await self._remove(room, reserved_bytes)

    async def _remove(self, room: SpoolRoom, reserved_bytes: int) -> None:
        try:
            # What a failing disk keeps is swept at the next start; nobody here can do better.
            with suppress(OSError):
                await self.spool.remove()
        finally:
            room.release(reserved_bytes)

    async def _step(self) -> None:
        self._wake.clear()
        pieces = self._pieces()
        if not pieces:
            await self._wake.wait()
            return
        await self.spool.write(pieces)
        for _ in pieces:
            self._window.passed(self.number)
            self.number += 1
        for reader in self._readers:
            reader.rouse()
        self._moved()

    def _pieces(self) -> list[bytes]:
        """What there is to write, as much as one call should."""
        pieces: list[bytes] = []
        size_bytes = 0
        while size_bytes < WRITE_MAX_BYTES and len(pieces) < WRITE_MAX_PIECES:
            piece = self._window.take(self.number + len(pieces))
            if piece is None:
                break
            pieces.append(piece)
            size_bytes += len(piece)
        return pieces

    def _close(self, fault: Fault) -> None:
        """In one step, so that nobody joins what has ended: leave the window, and fail the readers still here."""
        self._window.leave(self.number)
        self._ended()
        for reader in list(self._readers):
            self._drop(reader, fault)
        self._moved()
