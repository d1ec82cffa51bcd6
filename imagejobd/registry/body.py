"""A request's body on its way, and the watch over it.

The HTTP library's own time-outs see what a peer sends, not what it takes. Here every byte that the peer takes counts,
waiting for the body's source counts for nothing, and after the last byte the peer gets time to verify what it got.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload

from imagejobd.model.errors import ErrorCode, Permanent, Temporary

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
        transport = getattr(self._writer, "transport", None)
        if self._writer is None or transport is None:
            return 0
        return self._writer.output_size - int(transport.get_write_buffer_size())

    @property
    def is_taken(self) -> bool:
        """Whether the whole body has left this process."""
        transport = getattr(self._writer, "transport", None)
        return self.is_given and (transport is None or not transport.get_write_buffer_size())

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
            iterator = aiter(self._value)
            while not self.is_given:
                chunk = await self._next(iterator)
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

    async def _next(self, iterator: AsyncIterator[bytes]) -> bytes:
        self.is_waiting_for_source = True
        self._consumed = True
        try:
            return self._fitting(await anext(iterator, None))
        except Exception as error:
            self.failure = error
            raise
        finally:
            self.is_waiting_for_source = False

    def _fitting(self, chunk: bytes | None) -> bytes:
        if chunk is None or self.given_bytes + len(chunk) > self._size:
            raise Permanent(
                ErrorCode.COPY_FAILED,
                f"an upload of {self._size} bytes was announced, and its source has another length",
            )
        return chunk


@asynccontextmanager
async def watched(outgoing: Outgoing, idle_timeout_s: float, host: str) -> AsyncIterator["Watch"]:
    """Raise `Temporary` when the peer takes no byte of `outgoing` for `idle_timeout_s`, or gives no answer in
    `ANSWER_PATIENCE` times that once it has them all."""
    watch = None
    try:
        async with asyncio.timeout(None) as deadline:
            watch = Watch(outgoing, idle_timeout_s, deadline)
            try:
                yield watch
            finally:
                watch.stop()
    except TimeoutError:
        if watch is None or not watch.verdict:
            raise
        raise Temporary(ErrorCode.REGISTRY_UNAVAILABLE, f"registry {host}: {watch.verdict}") from None


class Watch:
    """Looks at a body now and then. Times are those of the event loop."""

    def __init__(self, outgoing: Outgoing, idle_timeout_s: float, deadline: asyncio.Timeout) -> None:
        self._outgoing = outgoing
        self._idle_timeout_s = idle_timeout_s
        self._deadline = deadline
        self._loop = asyncio.get_running_loop()
        self._seen: Any = None
        self._moved_at = self._loop.time()
        self._is_answering = False
        self.verdict = ""
        self._look()

    def answering(self) -> None:
        """The answer has begun: its rest is waited for, whatever the body does."""
        self._is_answering = True

    def stop(self) -> None:
        self._handle.cancel()

    def _look(self) -> None:
        now = self._loop.time()
        body = self._outgoing
        seen = (body.taken_bytes, body.given_bytes, self._is_answering)
        if seen != self._seen or (body.is_waiting_for_source and not self._is_answering):
            self._seen, self._moved_at = seen, now
        patience = ANSWER_PATIENCE if body.is_taken and not self._is_answering else 1
        if now - self._moved_at >= self._idle_timeout_s * patience:
            self._give_up(now)
            return
        self._handle = self._loop.call_later(self._idle_timeout_s / LOOKS_PER_TIMEOUT, self._look)

    def _give_up(self, now: float) -> None:
        idle_s = now - self._moved_at
        told = "no answer" if self._outgoing.is_taken or self._is_answering else "it takes no byte of the upload"
        self.verdict = f"{told} in time ({idle_s:.0f} s)"
        self._deadline.reschedule(now)
