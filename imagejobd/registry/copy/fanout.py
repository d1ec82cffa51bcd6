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
from typing import Any

from imagejobd.model.errors import ErrorCode, Fault, Permanent, Temporary
from imagejobd.registry.copy.spool import Spool, SpoolRoom, disk_fault
from imagejobd.registry.copy.streams import Stream
from imagejobd.registry.manifest import Descriptor

# How often it is looked who is in the way.
PERIOD_S = 1.0
# Slower than this no disk is.
SLOW_BYTES_PER_S = 8 * 1024 * 1024
# What a chunk counts at least, so that a source that sends single bytes does not fill the memory with objects.
CHUNK_MIN_BYTES = 512


class _Chunk:
    """Bytes that `readers` cursors have not passed."""

    __slots__ = ("data", "readers")

    def __init__(self, data: bytes, readers: int) -> None:
        self.data = data
        self.readers = readers

    @property
    def held_bytes(self) -> int:
        return max(len(self.data), CHUNK_MIN_BYTES)


class Fanout:
    """The read of `blob` for as many `cursors`; `run` it in a task, and `close` it in any case."""

    def __init__(
        self,
        blob: Descriptor,
        room: SpoolRoom,
        cursors: int,
        *,
        period_s: float = PERIOD_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.fault: Fault | None = None
        self._blob = blob
        self._room = room
        self._period_s = period_s
        self.clock = clock
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
        self._moved_bytes = 0  # the offset that memory began with then
        self._spools: list[Spool] = []
        self._writer: Cursor | None = None
        self._writing: set[asyncio.Task[None]] = set()
        self._reading: asyncio.Task[Any] | None = None

    async def run(self, stream: Stream, chunks: AsyncGenerator[bytes, None]) -> None:
        """Read as soon as a cursor wants bytes. Returns when memory is empty: every cursor has taken the last chunk, or
        goes on from the file, or was closed; where all were closed before the end, it cancels its task. What the source
        raises the cursors raise, and it is the `fault`."""
        self._reading = asyncio.current_task()
        try:
            async with aclosing(chunks):
                while self._in_memory and not any(cursor.is_waiting for cursor in self._in_memory):
                    self._changed.clear()
                    await self._changed.wait()
                self._period_began = self.clock()
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
        finally:
            self._reading = None

    async def close(self) -> None:
        """Close the cursors, and remove the file."""
        for cursor in self.cursors:
            cursor.close()
        if self._writing:
            await asyncio.wait(self._writing)
        for spool in self._spools:
            await spool.remove()

    def set_aside(self, laggards: "list[Cursor]") -> None:
        """Let `laggards` read from the file from the first byte on, where there is room for it."""
        self._spill(laggards, is_held_up=False)

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

    def note_waiting(self) -> float:
        """A cursor begins to wait for bytes, now."""
        self._changed.set()
        return self.clock()

    def leave_memory(self, cursor: "Cursor") -> None:
        """`cursor` needs nothing from here any more."""
        if cursor not in self._in_memory:
            return
        del self._in_memory[cursor]
        for chunk in islice(self._chunks, cursor.low - self._first, None):
            chunk.readers -= 1
        cursor.is_holding = False
        self._drop_passed()
        if not self._in_memory and not self._is_proved and self._reading is not None:
            self._reading.cancel()  # nobody wants the rest

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
            if not chunk:
                continue  # the one before it is still the last
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
            self._held_bytes += self._chunks[-1].held_bytes
            self._wake()

    async def _wait(self, stream: Stream) -> None:
        """Until something has changed; who is in the way for a whole period has to step aside."""
        self._changed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._period_began + self._period_s - self.clock()):
                await self._changed.wait()
        now = self.clock()
        if now - self._period_began >= self._period_s:
            self._review(stream, now, now - self._period_began)

    def _review(self, stream: Stream, now: float, period_s: float) -> None:
        """Of cursors that keep step each waits for the others by turns. One that hardly did, while another stood for
        half of the time, is slow; and so is a read as a whole that hardly moves, while another waits for its place."""
        waited_s = {cursor: cursor.waited_s(now) for cursor in self._in_memory if cursor is not self._writer}
        moved_bytes, self._moved_bytes = self._start - self._moved_bytes, self._start
        self._period_began = now
        is_held_up = any(seconds > period_s / 2 for seconds in waited_s.values())
        # What is left when all has been read is little: then another blob of the same job counts, too.
        is_wanted = stream.is_wanted(by_own_job=self._is_proved) and moved_bytes < SLOW_BYTES_PER_S * period_s
        if is_held_up:
            stream.source.window_is_short()
        if is_held_up or is_wanted:
            busy = [cursor for cursor, seconds in waited_s.items() if seconds < period_s / 10]
            self._spill([cursor for cursor in busy if cursor.low == self._first], is_held_up=is_held_up)

    def _spill(self, laggards: "list[Cursor]", *, is_held_up: bool) -> None:
        """Let `laggards` go on from the file. Where there is no room for it, they fail if they hold up other cursors,
        and keep their place if only another blob waits for that."""
        if not laggards:
            return
        try:
            spool = self._spools[-1] if self._writer is not None else self._open_spool()
        except Temporary as fault:
            for cursor in laggards if is_held_up else ():
                cursor.fail(fault)
            return
        for cursor in laggards:
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
        except (OSError, Fault) as error:
            # Of faults: the disk's, or the source's; where it was closed, nobody reads the file.
            fault = disk_fault(error) if isinstance(error, OSError) else error
            for cursor in self.cursors:
                if cursor.spool is spool:
                    cursor.fail(fault)
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
            chunk = self._chunks.popleft()
            self._held_bytes -= chunk.held_bytes
            self._start += len(chunk.data)
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
        self._waiting_since: float | None = None
        self._waited_s = 0.0
        self.spool: Spool | None = None
        self.changed = asyncio.Event()
        self._fanout = fanout
        self._fault: Fault | None = None

    @property
    def low(self) -> int:
        """The first chunk that it has not passed."""
        return self.number - self.is_holding

    @property
    def is_waiting(self) -> bool:
        return self._waiting_since is not None

    def waited_s(self, now: float) -> float:
        """The seconds for which it has waited for bytes since this was last asked."""
        seconds = self._waited_s
        self._waited_s = 0.0
        if self._waiting_since is not None:
            seconds += now - self._waiting_since
            self._waiting_since = now
        return seconds

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
            self._waiting_since = self._fanout.note_waiting()
            try:
                await self.changed.wait()
            finally:
                self._waited_s += self._fanout.clock() - self._waiting_since
                self._waiting_since = None

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
        if self.spool.written <= self.offset:
            return None
        try:
            return await self.spool.read(self.offset)
        except OSError as error:
            fault = disk_fault(error)
            self.fail(fault)
            raise fault from error
