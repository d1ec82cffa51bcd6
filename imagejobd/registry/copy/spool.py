"""The part of a stream that slow readers have yet to read, in a file.

All work on the file is done in threads, and the file is closed only after the last of it: giving up a read or a write
does not end the system call. Nothing is synced; a spool file is worthless after a crash.
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TypeVar

from imagejobd.model.errors import ErrorCode, Fault, Temporary

FULL_RETRY_AFTER_S = 30.0
# Bounds the memory of each slow reader; larger pieces save nothing that can be measured.
READ_MAX_BYTES = 256 * 1024
WRITE_MAX_BYTES = 4 * 1024 * 1024
# The system takes no more pieces in one call (IOV_MAX).
WRITE_MAX_PIECES = 1024

T = TypeVar("T")


class SpoolRoom:
    """What all spool files together may take."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.reserved_bytes = 0

    def reserve(self, size_bytes: int) -> bool:
        """Whether there is as much left; then it is the caller's until `release`."""
        if self.reserved_bytes + size_bytes > self.max_bytes:
            return False
        self.reserved_bytes += size_bytes
        return True

    def release(self, size_bytes: int) -> None:
        self.reserved_bytes -= size_bytes


class Spool:
    """A file with the bytes of a stream from offset `start` to offset `written`. Offsets are those of the stream.

    `open`, `write` and `remove` are for one task, `read` for any number; all raise `OSError`.
    """

    def __init__(self, make_file: Callable[[], AbstractContextManager[Path]], start: int) -> None:
        self.start = start
        self.written = start
        self._make_file = make_file
        self._file = ExitStack()
        self._fd = -1
        self._busy: set[asyncio.Task[object]] = set()

    async def open(self) -> None:
        await self._in_thread(self._open)

    async def write(self, pieces: Sequence[bytes]) -> None:
        """Append them; at most `WRITE_MAX_PIECES`."""
        self.written += await self._in_thread(lambda: _write_all(self._fd, pieces))

    async def read(self, offset: int) -> bytes:
        """Some bytes from `offset` on; at least one has to be written there."""
        size_bytes = min(READ_MAX_BYTES, self.written - offset)
        data = await self._in_thread(lambda: os.pread(self._fd, size_bytes, offset - self.start))
        if not data:
            raise OSError("the spool file is shorter than what was written to it")
        return data

    async def remove(self) -> None:
        """Close and remove the file, when nothing works on it any more."""
        while self._busy:
            await asyncio.wait(self._busy)
        await self._in_thread(self._file.close)

    def _open(self) -> None:
        path = self._file.enter_context(self._make_file())
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._file.callback(os.close, self._fd)

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


def disk_fault(error: OSError | Fault) -> Fault:
    """What a failing spool file means to its readers. The system's text may name paths: only the reason is shown."""
    if isinstance(error, Fault):
        return error
    return no_room(f"the spool file failed ({os.strerror(error.errno) if error.errno else error})")


def _write_all(fd: int, pieces: Sequence[bytes]) -> int:
    """Write all of it, however many calls that takes; how much it was."""
    left = [memoryview(piece) for piece in pieces]
    total = sum(map(len, left))
    while left:
        done = os.writev(fd, left)
        while left and done >= len(left[0]):
            done -= len(left.pop(0))
        if left:
            left[0] = left[0][done:]
    return total
