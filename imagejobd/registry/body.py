"""A request's body on its way, and the watch over a request until its answer begins."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator

from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload

from imagejobd.model.errors import ErrorCode, Permanent

# After the last byte a registry hashes the blob, and some then copy it to object storage: minutes for gigabytes.
ANSWER_PATIENCE = 10
LOOKS_PER_TIMEOUT = 4


class Outgoing(Payload):
    """A body of `size_bytes` out of an iterable that is played once, and closed where that is possible.

    `failure` is what the iterable raised. Refuses an iterable of another length before its last byte is sent.
    """

    _autoclose = True

    def __init__(self, body: AsyncIterable[bytes], size_bytes: int) -> None:
        super().__init__(body, content_type="application/octet-stream")
        self._size: int = size_bytes
        self._writer: AbstractStreamWriter | None = None
        self._transport: asyncio.WriteTransport | None = None
        self._ended = asyncio.Event()
        self._ended.set()
        self.given_bytes = 0
        self.is_waiting_for_source = False
        self.failure: Exception | None = None

    @property
    def is_given(self) -> bool:
        """Whether the HTTP library has the whole body."""
        return self.given_bytes == self._size

    @property
    def taken_bytes(self) -> int:
        """What this machine's network stack has taken so far, headers included."""
        return self._writer.output_size - self._buffered_bytes if self._writer else 0

    @property
    def is_taken(self) -> bool:
        """Whether the whole body has left this process."""
        return self.is_given and not self._buffered_bytes

    @property
    def _buffered_bytes(self) -> int:
        transport = getattr(self._writer, "transport", None)
        return int(transport.get_write_buffer_size()) if transport is not None else 0

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        raise TypeError("a body on its way is no text")

    async def write(self, writer: AbstractStreamWriter) -> None:
        await self.write_with_length(writer, None)

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        self._writer = writer
        self._transport = getattr(writer, "transport", None)
        self._ended.clear()
        try:
            # Ends with the last byte, not with the iterable: the connection is free as soon as the answer is there.
            chunks = aiter(self._value)
            while not self.is_given:
                chunk = await self._next(chunks)
                self.given_bytes += len(chunk)
                await writer.write(chunk)
        finally:
            self._ended.set()

    def abort(self) -> None:
        """Reset the connection. Closing it would wait until the peer has taken what lies in the buffer: for ever, if it
        has stopped reading."""
        if self._transport is not None:
            self._transport.abort()

    async def settle(self) -> None:
        """Wait until nobody reads the iterable any more, then close it."""
        await self._ended.wait()
        close = getattr(self._value, "aclose", None)
        if close is not None:
            await close()

    async def _next(self, chunks: AsyncIterator[bytes]) -> bytes:
        self.is_waiting_for_source = True
        self._consumed = True
        try:
            return self._fitting(await anext(chunks, None))
        except Exception as error:
            self.failure = error
            raise
        finally:
            self.is_waiting_for_source = False

    def _fitting(self, chunk: bytes | None) -> bytes:
        if chunk is None or self.given_bytes + len(chunk) > self._size:
            why = f"an upload of {self._size} bytes was announced, and its source has another length"
            raise Permanent(ErrorCode.COPY_FAILED, why)
        return chunk


class Attempt:
    """One request until its header, which is due an idle time-out after the connection is there: neither informational
    answers nor single bytes prolong that.

    With a body, which the HTTP library's own time-outs do not see, every byte that the peer takes counts, waiting for
    the body's source counts for nothing, and after the last byte the peer gets time to verify what it got.
    """

    def __init__(self, deadline: asyncio.Timeout, idle_timeout_s: float, body: Outgoing | None) -> None:
        self.connections = 0
        self.is_reused = False
        self.stall = ""
        self._deadline = deadline
        self._idle_timeout_s = idle_timeout_s
        self._body = body
        self._loop = asyncio.get_running_loop()
        self._progress = (0, 0)
        self._moved_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def connected(self, *, is_reused: bool) -> None:
        self.connections += 1
        self.is_reused = is_reused
        self._moved_at = self._loop.time()
        self.stop()
        self._look()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        now, limit_s = self._loop.time(), self._idle_timeout_s
        if (body := self._body) is not None:
            progress = (body.taken_bytes, body.given_bytes)
            if progress != self._progress or body.is_waiting_for_source:
                self._progress, self._moved_at = progress, now
            limit_s *= ANSWER_PATIENCE if body.is_taken else 1
        if now - self._moved_at < limit_s:
            self._timer = self._loop.call_later(self._idle_timeout_s / LOOKS_PER_TIMEOUT, self._look)
            return
        if body is not None:
            what = "no answer" if body.is_taken else "it takes no byte of the upload"
            self.stall = f"{what} in time ({now - self._moved_at:.0f} s)"
        self._deadline.reschedule(now)
