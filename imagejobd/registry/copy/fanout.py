"""One read of one blob for several readers: hashed as it flows, the last chunk held back until the digest is proved.

Chunks wait in a window in memory until the slowest cursor has passed them. A full window holds up the source, and so
the quick cursors; when the slowest have held others up for a second, they go on from a spool file at their own pace.
Cursors that are all as slow cost no disk, and neither does one that is in nobody's way. A cursor that has not begun is
one that lags at the first byte.
"""

import asyncio
import copy
import hashlib
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from itertools import islice

from imagejobd.model.errors import ErrorCode, Fault, Permanent, Temporary
from imagejobd.registry.copy.spool import Spool, SpoolRoom, disk_fault
from imagejobd.registry.copy.streams import Stream
from imagejobd.registry.manifest import Descriptor

# Who has held up others for so long within a period goes on from a file.
SPILL_AFTER_S = 1.0
SPILL_PERIOD_S = 4.0


class _Chunk:
    """Bytes that `readers` cursors have not passed."""

    __slots__ = ("data", "readers")

    def __init__(self, data: bytes, readers: int) -> None:
        self.data = data
        self.readers = readers


class Fanout:
    """The read of `blob` for as many `cursors`; `run` it in a task, and `close` it in any case."""

    def __init__(
        self,
        blob: Descriptor,
        room: SpoolRoom,
        cursors: int,
        *,
        spill_after_s: float = SPILL_AFTER_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.fault: Fault | None = None
        self._blob = blob
        self._room = room
        self._spill_after_s = spill_after_s
        self._clock = clock
        self._chunks: deque[_Chunk] = deque()
        self._first = 0  # the number of the oldest chunk here
        self._start = 0  # its offset in the blob
        self._held_bytes = 0
        self._is_proved = False
        self.cursors = [Cursor(self) for _ in range(cursors)]
        # Those that still need something of what is or comes into memory; one may be the spool's.
        self._in_memory = dict.fromkeys(self.cursors)
        self._changed = asyncio.Event()
        self._period_began = clock()
        self._blocked_s = 0.0
        self._spools: list[Spool] = []
        self._writer: Cursor | None = None
        self._writing: set[asyncio.Task[None]] = set()

    async def run(self, stream: Stream, chunks: AsyncGenerator[bytes, None]) -> None:
        """Read as soon as a cursor wants bytes. Returns when memory is empty: every cursor has taken the last chunk, or
        goes on from the file, or was closed. What the source raises the cursors raise, and it is the `fault`."""
        try:
            async with aclosing(chunks):
                while self._in_memory and not any(cursor.is_waiting for cursor in self._in_memory):
                    self._changed.clear()
                    await self._changed.wait()
                last = await self._receive(stream, chunks) if self._in_memory else b""
            if last:
                await self._append(stream, last)
            self._is_proved = True
            self._wake()
            while self._in_memory:
                await self._wait(stream)
        except Fault as fault:
            self._fail(fault)
        except BaseException:
            self._fail(Temporary(ErrorCode.DRAINING, "the copy was stopped"))
            raise

    async def close(self) -> None:
        """Close the cursors, and remove the file."""
        for cursor in self.cursors:
            cursor.close()
        if self._writing:
            await asyncio.wait(self._writing)
        for spool in self._spools:
            await spool.remove()

    def take(self, cursor: "Cursor") -> bytes | None:
        """The next chunk from memory; the one before it is passed. The last one of all is not held any longer."""
        if cursor.is_holding:
            cursor.is_holding = False
            self._pass(cursor.number - 1)
        index = cursor.number - self._first
        if index == len(self._chunks):
            return None
        data = self._chunks[index].data
        cursor.number += 1
        cursor.is_holding = True
        if self._is_proved and index == len(self._chunks) - 1:
            self.leave_memory(cursor)
        return data

    def is_end(self, offset: int) -> bool:
        return self._is_proved and offset == self._blob.size

    def wants(self) -> None:
        """A cursor has begun to wait for bytes."""
        self._changed.set()

    def leave_memory(self, cursor: "Cursor") -> None:
        """`cursor` needs nothing from here any more."""
        if cursor not in self._in_memory:
            return
        del self._in_memory[cursor]
        for chunk in islice(self._chunks, cursor.low - self._first, None):
            chunk.readers -= 1
        cursor.is_holding = False
        self._drop_passed()

    def leave_spool(self) -> None:
        """A cursor needs nothing from the file any more: without readers nothing more is written."""
        if self._writer is not None and not any(cursor.spool for cursor in self.cursors):
            self._writer.close()
            self._writer = None

    async def _receive(self, stream: Stream, chunks: AsyncGenerator[bytes, None]) -> bytes:
        """Hand on all chunks but the last, which is returned when all are proved."""
        algorithm, _, expected = self._blob.digest.partition(":")
        digest, last = hashlib.new(algorithm), b""
        async for chunk in chunks:
            await stream.count(len(chunk))
            digest.update(chunk)
            if last:
                await self._append(stream, last)
            last = chunk
        if digest.hexdigest() != expected:
            text = f"the source sent other bytes (their digest is {algorithm}:{digest.hexdigest()})"
            raise Permanent(ErrorCode.COPY_FAILED, f"blob {self._blob.digest}: {text}")
        return last

    async def _append(self, stream: Stream, data: bytes) -> None:
        while self._chunks and self._held_bytes + len(data) > stream.source.window_bytes:
            await self._wait(stream)
        if self._in_memory:
            self._chunks.append(_Chunk(data, len(self._in_memory)))
            self._held_bytes += len(data)
            self._wake()

    async def _wait(self, stream: Stream) -> None:
        """Until something has changed; those that have been in the way for too long have to step aside."""
        self._changed.clear()
        is_short = any(cursor.is_waiting for cursor in self._in_memory if cursor is not self._writer)
        if is_short:
            stream.source.window_is_short()
        # What is left after the read is little: then another blob of the same job counts, too.
        is_blocking = is_short or stream.is_wanted(by_own_job=self._is_proved)
        rest_s = self._spill_after_s - (self._blocked_s if is_blocking else 0.0)
        began = self._clock()
        with suppress(TimeoutError):
            async with asyncio.timeout(max(rest_s, 0.0)):
                await self._changed.wait()
        if is_blocking:
            self._note_blocked(began, is_short=is_short)

    def _note_blocked(self, began: float, *, is_short: bool) -> None:
        now = self._clock()
        if now - self._period_began > SPILL_PERIOD_S:
            self._period_began, self._blocked_s = now, 0.0
        self._blocked_s += now - began
        if self._blocked_s >= self._spill_after_s:
            self._blocked_s = 0.0
            self._spill(is_short=is_short)

    def _spill(self, *, is_short: bool) -> None:
        """Let the slowest go on from the file. Where there is no room for it, they fail if they hold up other cursors,
        and keep their place if only another blob waits for that."""
        slowest = [c for c in self._in_memory if c.low == self._first and c is not self._writer]
        try:
            spool = self._spools[-1] if self._writer is not None else self._open_spool()
        except Temporary as fault:
            for cursor in slowest if is_short else ():
                cursor.fail(fault)
            return
        for cursor in slowest:
            self.leave_memory(cursor)
            cursor.spool = spool
            cursor.changed.set()

    def _open_spool(self) -> Spool:
        spool = self._room.open(self._start, self._blob.size)
        self._spools.append(spool)
        self._writer = writer = Cursor(self, number=self._first, offset=self._start)
        self._in_memory[writer] = None
        for chunk in self._chunks:
            chunk.readers += 1
        task = asyncio.create_task(self._write(writer, spool))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)
        return spool

    async def _write(self, writer: "Cursor", spool: Spool) -> None:
        """A disk that is slower than the source slows the source down: the writer is a cursor like the others."""
        try:
            async for data in writer:
                await spool.write(data)
                self._wake()
        except OSError as error:
            for cursor in self.cursors:
                if cursor.spool is spool:
                    cursor.fail(disk_fault(error))
        except Fault:
            pass  # closed, because nobody reads the file; or the source's, which all cursors raise
        finally:
            if self._writer is writer:
                self._writer = None
            writer.close()

    def _pass(self, number: int) -> None:
        chunk = self._chunks[number - self._first]
        chunk.readers -= 1
        if not chunk.readers and number == self._first:
            self._drop_passed()

    def _drop_passed(self) -> None:
        while self._chunks and not self._chunks[0].readers:
            size_bytes = len(self._chunks.popleft().data)
            self._held_bytes -= size_bytes
            self._start += size_bytes
            self._first += 1
        self._changed.set()

    def _fail(self, fault: Fault) -> None:
        self.fault = fault
        self._wake()

    def _wake(self) -> None:
        for cursor in (*self.cursors, *([self._writer] if self._writer else ())):
            cursor.changed.set()


class Cursor:
    """A blob's bytes from the first on: iterate once, and `close` in every case; that disturbs nobody else.

    Raises the source's fault, `Temporary(storage_full)` where there is no room to go on from disk, and
    `Permanent(copy_failed)` where the bytes do not have their digest. A body never just ends early: iterating what was
    closed raises `Temporary`, too.
    """

    def __init__(self, fanout: Fanout, number: int = 0, offset: int = 0) -> None:
        self.number = number  # of the chunk that it takes next from memory
        self.offset = offset
        self.is_holding = False  # its consumer still has the chunk before that
        self.is_waiting = False
        self.spool: Spool | None = None
        self.changed = asyncio.Event()
        self._fanout = fanout
        self._fault: Fault | None = None

    @property
    def low(self) -> int:
        """The first chunk that it has not passed."""
        return self.number - self.is_holding

    def __aiter__(self) -> "Cursor":
        return self

    async def __anext__(self) -> bytes:
        while True:
            self.changed.clear()
            if fault := self._fault or self._fanout.fault:
                raise copy.copy(fault)  # of several cursors: a traceback would grow by each of them
            if data := await self._next():
                self.offset += len(data)
                return data
            if self._fanout.is_end(self.offset):
                raise StopAsyncIteration
            self.is_waiting = True
            self._fanout.wants()
            try:
                await self.changed.wait()
            finally:
                self.is_waiting = False

    def fail(self, fault: Fault) -> None:
        """It raises `fault` from now on."""
        self._fault = self._fault or fault
        self._fanout.leave_memory(self)
        if self.spool is not None:
            self.spool = None
            self._fanout.leave_spool()
        self.changed.set()

    def close(self) -> None:
        self.fail(Temporary(ErrorCode.COPY_FAILED, "the copy of this blob was given up before its end"))

    async def _next(self) -> bytes | None:
        if self.spool is None:
            return self._fanout.take(self)
        if self.spool.written == self.offset:
            return None
        try:
            return await self.spool.read(self.offset)
        except OSError as error:
            fault = disk_fault(error)
            self.fail(fault)
            raise fault from error
