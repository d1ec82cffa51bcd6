"""Reading a blob from a repository: every byte once, through cuts and stalls.

The digest is not proved here: whoever reads keeps the running hash, which is what makes resuming safe.
"""

import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from imagejobd.model.errors import ErrorCode, Fault, Permanent, Temporary
from imagejobd.registry.connection import Connection, Stream
from imagejobd.registry.content.descriptor import Descriptor
from imagejobd.registry.content.ranges import parse_content_range, range_from
from imagejobd.registry.content.repository import Repository
from imagejobd.registry.faults import refusal
from imagejobd.registry.pace import PAUSE_MAX_S as HOST_PAUSE_MAX_S

# Tries in a row that bring no byte; with the pauses below they last about eight seconds.
RESUMES_MAX = 5
# Tries in all for the same `PROGRESS_MIN_BYTES`: a peer that sends a byte each time has an end, too.
SLOW_RESUMES_MAX = 50
PROGRESS_MIN_BYTES = 1024 * 1024
PAUSE_FIRST_S = 0.25
PAUSE_MAX_S = 4.0


async def read_blob(
    source: Repository,
    blob: Descriptor,
    *,
    use_mirrors: bool = True,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> AsyncGenerator[bytes, None]:
    """The bytes of `blob`, exactly `blob.size` of them, from the first mirror that has it, else the registry itself.
    Whoever finds that they do not have their digest asks again without mirrors, of which one may hold other bytes.

    After a cut it goes on with `Range` from the exact offset and takes only a 206 that starts there and tells the full
    length; it gives up after several tries without a new byte, or many with few. Raises `Temporary`, at once where the
    registry asks for a longer pause than a request may wait; `Permanent(not_found | denied)`; and
    `Permanent(copy_failed)` for a body of another length. Close it (`aclosing`) to end the transfer early.
    """
    offset, stamina = 0, _Stamina()
    places = [*(source.connection.mirrors() if use_mirrors else ()), source.connection]
    while offset < blob.size:
        try:
            async with aclosing(_rest(places[0], source, blob, offset)) as rest:
                async for chunk in rest:
                    offset += len(chunk)
                    yield chunk
        except Fault as fault:
            if len(places) > 1:
                del places[0]  # a mirror is a convenience: the registry itself has the say
                continue
            wait_s = stamina.wait_s(fault, offset)
            if wait_s is None:
                raise await places[0].judged(fault) from fault.__cause__
            await pause(wait_s)


class _NoRanges(Temporary):
    """Only a read from the beginning can help."""


class _Stamina:
    """How often one blob is gone on with."""

    def __init__(self) -> None:
        self._offset = 0  # where the last try ended
        self._fruitless = 0
        self._mark = 0  # an offset, and the tries since
        self._slow = 0

    def wait_s(self, fault: Fault, offset: int) -> float | None:
        """Seconds to wait after a try that ended at `offset` with `fault`; None for no further try."""
        self._fruitless = 1 + (self._fruitless if offset == self._offset else 0)
        self._offset = offset
        if offset - self._mark >= PROGRESS_MIN_BYTES:
            self._mark, self._slow = offset, 0
        self._slow += 1
        if isinstance(fault, _NoRanges):
            return None
        wish_s = (fault.retry_after_s or 0.0) if isinstance(fault, Temporary) else math.inf
        if wish_s > HOST_PAUSE_MAX_S or self._fruitless > RESUMES_MAX or self._slow > SLOW_RESUMES_MAX:
            return None
        backoff_s: float = min(PAUSE_FIRST_S * 2 ** (self._fruitless - 1), PAUSE_MAX_S)
        return max(wish_s, backoff_s)


async def _rest(place: Connection, source: Repository, blob: Descriptor, offset: int) -> AsyncGenerator[bytes, None]:
    """The bytes of `blob` from `offset` to its end, in one request."""
    target = f"/v2/{source.path}/blobs/{blob.digest}"
    async with place.stream(target, scopes=source.scopes, headers=range_from(offset)) as stream:
        _check(stream, place.site.host, source, blob, offset)
        left = blob.size - offset
        async for chunk in stream.chunks():
            left -= len(chunk)
            if left < 0:
                raise _wrong_length(place.site.host, blob, "more")
            yield chunk
    if left:
        raise Temporary(ErrorCode.REGISTRY_UNAVAILABLE, f"registry {place.site.host}: blob {blob.digest} ended early")


def _check(stream: Stream, host: str, source: Repository, blob: Descriptor, offset: int) -> None:
    """Refuse an answer that does not bring the bytes from `offset` on."""
    if stream.status not in (200, 206, 416):
        wish = stream.headers.get("Retry-After")
        raise refusal(host, stream.status, what=f"blob {blob.digest} of {source.path}", retry_after=wish)
    if offset == 0 and stream.status == 200:
        if _length(stream) not in (None, blob.size):
            raise _wrong_length(host, blob, "another number of")
        return
    found = parse_content_range(stream.headers.get("Content-Range"))
    if stream.status == 200:
        # The whole blob again: splicing it would be corruption, and asking once more would not change it.
        raise _NoRanges(
            ErrorCode.REGISTRY_UNAVAILABLE,
            f"registry {host}: blob {blob.digest} was cut, and cannot be gone on with: the registry knows no ranges",
        )
    if stream.status != 206 or found is None or (found.start, found.total) != (offset, blob.size):
        raise Temporary(
            ErrorCode.REGISTRY_UNAVAILABLE,
            f"registry {host}: blob {blob.digest} was cut, and cannot be gone on with at byte {offset}",
        )


def _length(stream: Stream) -> int | None:
    length = stream.headers.get("Content-Length", "")
    return int(length) if length.isascii() and length.isdigit() and len(length) < 17 else None


def _wrong_length(host: str, blob: Descriptor, how_many: str) -> Permanent:
    return Permanent(
        ErrorCode.COPY_FAILED,
        f"registry {host}: blob {blob.digest} has {how_many} bytes than the {blob.size} announced",
    )
