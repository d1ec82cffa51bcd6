"""The part of a blob that slow readers have yet to read, in a file.

All work on the file is done in threads, and the file is closed only after the last of it: giving up a read or a write
does not end the system call. Nothing is synced; a spool file is worthless after a crash.
"""

import asyncio
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from typing import TypeVar

from imagejobd.model.errors import ErrorCode, Temporary

FULL_RETRY_AFTER_S = 30.0
# Bounds the memory of each slow reader; larger pieces save nothing that can be measured.
READ_MAX_BYTES = 256 * 1024

T = TypeVar("T")


class SpoolRoom:
    """What all spool files together may take; `make_file` makes and removes one."""

    def __init__(self, make_file: Callable[[], AbstractContextManager[Path]], max_bytes: int) -> None:
        self.make_file = make_file
        self.max_bytes = max_bytes
        self.reserved_bytes = 0

    def open(self, start: int, end: int) -> "Spool":
        """A file for the bytes of a blob from `start` to `end`, with room for all of them, so that nobody is spooled
        half-way. Raises `Temporary(storage_full)`."""
        if self.reserved_bytes + end - start > self.max_bytes:
            raise no_room(f"spool files may take {self.max_bytes} bytes in all")
        return Spool(self, start, end)


class Spool:
    """The bytes of a blob from offset `start` to offset `written`. Offsets are those of the blob.

    `write` and `remove` are for one task, `read` for any number; `remove` it in any case.
    """

    def __init__(self, room: SpoolRoom, start: int, end: int) -> None:
        self.start = start
        self.written = start
        self._room = room
        self._reserved_bytes = end - start
        room.reserved_bytes += self._reserved_bytes
        self._file = ExitStack()
        self._fd = -1
        self._busy: set[asyncio.Task[object]] = set()

    async def write(self, piece: bytes) -> None:
        """Append it. Raises `OSError`."""
        await self._in_thread(lambda: self._append(piece))
        self.written += len(piece)

    async def read(self, offset: int) -> bytes:
        """Some bytes from `offset` on; at least one has to be written there. Raises `OSError`."""
        size_bytes = min(READ_MAX_BYTES, self.written - offset)
        data = await self._in_thread(lambda: os.pread(self._fd, size_bytes, offset - self.start))
        if not data:
            raise OSError("the spool file is shorter than what was written to it")
        return data

    async def remove(self) -> None:
        """Close and remove the file, when nothing works on it any more, and give its room back."""
        try:
            while self._busy:
                await asyncio.wait(self._busy)
            # What a failing disk keeps is swept at the next start; nobody here can do better.
            with suppress(OSError):
                await self._in_thread(self._file.close)
        finally:
            self._room.reserved_bytes -= self._reserved_bytes

    def _append(self, piece: bytes) -> None:
        if self._fd < 0:
            path = self._file.enter_context(self._room.make_file())
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._file.callback(os.close, self._fd)
        rest = memoryview(piece)
        while rest:
            rest = rest[os.write(self._fd, rest) :]

    async def _in_thread(self, work: Callable[[], T]) -> T:
        task: asyncio.Task[T] = asyncio.create_task(asyncio.to_thread(work))
        self._busy.add(task)
        task.add_done_callback(self._busy.discard)
        return await asyncio.shield(task)


def no_room(reason: str) -> Temporary:
    """The fault of a reader that cannot be spooled."""
    return Temporary(
        ErrorCode.STORAGE_FULL,
        f"this target is slower than the others, and its part cannot be kept on disk meanwhile: {reason}",
        retry_after_s=FULL_RETRY_AFTER_S,
    )


def disk_fault(error: OSError) -> Temporary:
    """What a failing spool file means to its readers. The system's text may name paths: only the reason is shown."""
    return no_room(f"the spool file failed ({os.strerror(error.errno) if error.errno else error})")
