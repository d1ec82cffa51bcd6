"""Blobs of a repository: read through cuts, stalls and mirrors; put by a mount, one PUT, or PATCHes.

Digests are not proved here: whoever reads keeps the running hash, which is what makes going on after a cut safe.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from enum import StrEnum

from yarl import URL

from imagejobd.model.concurrency import uninterrupted
from imagejobd.model.errors import ErrorCode, Fault, Permanent, Temporary
from imagejobd.registry.connection import Connection, Stream
from imagejobd.registry.errors import codes_of, refusal, unavailable
from imagejobd.registry.headers import (
    parse_content_range,
    parse_length,
    parse_upload_range,
    resolve_location,
    with_digest,
)
from imagejobd.registry.hosts import CHUNK_MIN_BYTES
from imagejobd.registry.http import Answer
from imagejobd.registry.limits import PAUSE_MAX_S as HOST_PAUSE_MAX_S
from imagejobd.registry.manifest import Descriptor
from imagejobd.registry.repository import Repository, is_success

# In a row that bring no byte.
TRIES_MAX = 3
# For the same `PROGRESS_MIN_BYTES`: a peer that sends a byte each time has an end, too.
SLOW_TRIES_MAX = 50
PROGRESS_MIN_BYTES = 1024 * 1024
PAUSE_FIRST_S = 0.25
PAUSE_MAX_S = 4.0

UPLOAD_REDIRECTS_MAX = 5
# A session that will not be used is given back within this time, or left to the registry's own purging.
GIVE_BACK_MAX_S = 1.0
CHUNK_MAX_BYTES = 1024**4

# docker-registry takes a form's type for a form, reads the blob as one, and says DIGEST_INVALID.
_OCTETS = {"Content-Type": "application/octet-stream"}

_LOST_SESSION = frozenset({"BLOB_UPLOAD_UNKNOWN", "BLOB_UPLOAD_INVALID"})


async def read_blob(
    source: Repository,
    blob: Descriptor,
    *,
    use_mirrors: bool = True,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> AsyncGenerator[bytes, None]:
    """The bytes of `blob`, exactly `blob.size` of them, from the first mirror that has it, else the registry itself.
    Whoever finds that they do not have their digest asks again without mirrors, of which one may hold other bytes.

    After a cut it goes on from the exact offset: with `Range`, or where the registry knows none by reading once more
    what has been handed on, and not handing it on again. It gives up after `TRIES_MAX` tries without a new byte, or
    many with few. Raises `Temporary`, at once where the registry asks for a longer pause than a request may wait;
    `Permanent(not_found | denied)`; and `Permanent(copy_failed)` for a body of another length. Close it (`aclosing`) to
    end the transfer early.
    """
    places = [*(source.connection.mirrors() if use_mirrors else ()), source.connection]
    offset = mark = fruitless = slow = 0
    knows_ranges = True
    while offset < blob.size:
        before = offset
        try:
            async with aclosing(_rest(places[0], source, blob, offset, knows_ranges)) as rest:
                async for chunk in rest:
                    offset += len(chunk)
                    yield chunk
        except Fault as fault:
            if len(places) > 1:
                del places[0]  # a mirror is a convenience: the registry itself has the say
                knows_ranges = True
                continue
            fruitless = 0 if offset > before else fruitless + 1
            if offset - mark >= PROGRESS_MIN_BYTES:
                mark, slow = offset, 0
            slow += 1
            knows_ranges = knows_ranges and not isinstance(fault, _NoRanges)
            wish_s = fault.retry_after_s or 0.0 if isinstance(fault, Temporary) else HOST_PAUSE_MAX_S + 1
            if wish_s > HOST_PAUSE_MAX_S or fruitless >= TRIES_MAX or slow > SLOW_TRIES_MAX:
                raise await places[0].diagnose(fault) from fault.__cause__
            await pause(max(wish_s, min(PAUSE_FIRST_S * 2.0**fruitless, PAUSE_MAX_S)))


class _NoRanges(Temporary):
    """Only a read from the beginning can help."""


async def _rest(
    place: Connection, source: Repository, blob: Descriptor, offset: int, knows_ranges: bool
) -> AsyncGenerator[bytes, None]:
    """The bytes of `blob` from `offset` to its end, in one request."""
    headers = {"Range": f"bytes={offset}-"} if offset and knows_ranges else {}
    too_long = Permanent(
        ErrorCode.COPY_FAILED,
        f"registry {place.host}: blob {blob.digest} has another number of bytes than the {blob.size} announced",
    )
    async with place.stream(f"/v2/{source.path}/blobs/{blob.digest}", scopes=source.scopes, headers=headers) as stream:
        if stream.status == 200 and parse_length(stream.headers) not in (None, blob.size):
            raise too_long
        at = _start(stream, blob, offset)
        if at is None and headers and stream.status in (206, 400, 416):
            raise unavailable(_NoRanges, place.host, f"blob {blob.digest} was cut, and not gone on with at {offset}")
        if at is None:
            wish, what = stream.headers.get("Retry-After"), f"blob {blob.digest} of {source.path}"
            raise refusal(place.host, stream.status, what=what, retry_after=wish)
        async for chunk in stream.chunks():
            start, at = at, at + len(chunk)
            if at > blob.size:
                raise too_long
            if at > offset:
                yield chunk[max(offset - start, 0) :]
    if at < blob.size:
        raise unavailable(Temporary, place.host, f"blob {blob.digest} ended early")


def _start(stream: Stream, blob: Descriptor, offset: int) -> int | None:
    """Which byte of `blob` the answer begins with: `offset` or one before it. None where it does not say so."""
    if stream.status == 200:
        return 0
    content_range = parse_content_range(stream.headers.get("Content-Range")) if stream.status == 206 else None
    start, end, total = content_range or (0, -1, 0)
    return start if start <= offset <= end and total == blob.size else None


class Put(StrEnum):
    """How a blob came to be in the repository."""

    SENT = "sent"
    MOUNTED = "mounted"


class _TooLarge(Permanent):
    """The registry, or what is before it, takes no request of this size."""


async def put_blob(
    target: Repository, blob: Descriptor, body: Callable[[], AsyncIterable[bytes]], *, mount_from: str | None = None
) -> Put:
    """Upload `blob`; `body` is called when bytes are really wanted, and yields exactly `blob.size` of them. It is
    called again where they have to be sent once more: behind a redirect (307, 308), or in smaller pieces after a 413.

    `mount_from` is a repository of the same registry known to hold the blob. The registry's verdict on a PUT that
    failed late is checked by HEAD. Raises what `Connection.send` raises, and `Permanent` for a refusal; whatever
    `body` raises goes through unchanged and leaves nothing committed.
    """
    content = _Content(body, blob.size)
    answer = await _mounted(target, blob, mount_from) if mount_from else None
    if answer is not None and answer.status == 201:
        target.check_digest(answer, blob.digest)
        return Put.MOUNTED
    async with aclosing(content):
        pieces = _piece_sizes(blob.size, target.connection.chunk_bytes)
        for number, piece_bytes in enumerate(pieces, 1):
            upload = _Upload(target, blob, content, answer or await _opened(target, blob))
            answer = None
            try:
                await upload.send(piece_bytes)
                break
            except BaseException as error:
                await content.aclose()
                await uninterrupted(upload.give_back(), grace_s=GIVE_BACK_MAX_S)
                if not isinstance(error, _TooLarge) or number == len(pieces):
                    raise
    return Put.SENT


def _piece_sizes(size: int, chunk_bytes: int | None) -> list[int | None]:
    """The sizes of pieces to try: as configured (None: whole), then halves of that, then quarters."""
    largest = min(size, chunk_bytes or size)
    return [chunk_bytes, *(piece for piece in (-(-largest // 2), -(-largest // 4)) if piece >= CHUNK_MIN_BYTES)]


async def _mounted(target: Repository, blob: Descriptor, source: str) -> Answer | None:
    """Mount the blob from the repository `source`: 201, or 202 for a session where the registry would rather have the
    bytes. None where it refuses: the Hub and old Quay say 400, and who may push need not be able to pull there."""
    request = f"/v2/{target.path}/blobs/uploads/?mount={blob.digest}&from={source}"
    try:
        answer = await target.connection.ask("POST", request, scopes=(*target.scopes, f"repository:{source}:pull"))
    except Permanent as fault:
        if fault.code is ErrorCode.DENIED:
            return None
        raise
    has_session = answer.status == 202 and resolve_location(answer.headers.get("Location", ""), answer.url, target.host)
    return answer if answer.status == 201 or has_session else None


async def _opened(target: Repository, blob: Descriptor) -> Answer:
    answer = await target.connection.ask("POST", f"/v2/{target.path}/blobs/uploads/", scopes=target.scopes)
    if not is_success(answer):
        raise target.push_refusal(answer, f"pushing blob {blob.digest} to {target.path}")
    return answer


class _Upload:
    """An open session, which goes on where each answer says."""

    def __init__(self, target: Repository, blob: Descriptor, content: "_Content", opened: Answer) -> None:
        self._target = target
        self._blob = blob
        self._content = content
        self._location = self._resolved(opened)
        self._chunk_min_bytes = min(parse_length(opened.headers, "OCI-Chunk-Min-Length") or 0, CHUNK_MAX_BYTES)

    async def send(self, piece_bytes: int | None) -> None:
        """Send the blob, in pieces or (None) whole, and see it committed."""
        if self._blob.size == 0:
            await self._content.end()
        elif piece_bytes is not None:
            piece_bytes = max(piece_bytes, self._chunk_min_bytes)
        try:
            answer = await self._answer(piece_bytes)
        except Temporary as cut:
            fault: Fault = cut
        else:
            if is_success(answer):
                self._target.check_digest(answer, self._blob.digest)
                return
            fault = self._refusal(answer, piece_bytes)
        # After the last byte, neither a cut nor a 404 or 5xx says what became of the blob.
        if isinstance(fault, Temporary) and self._content.is_given:
            with suppress(Fault):  # the first one says more
                if await self._target.has_blob(self._blob.digest, self._blob.size, is_retried=False):
                    return
        raise fault

    async def give_back(self) -> None:
        """Delete the session. A failure costs the registry some space for a while, and nobody else."""
        with suppress(Fault):
            connection, scopes = self._target.connection, self._target.scopes
            await connection.ask("DELETE", self._location, scopes=scopes, is_retried=False)

    async def _answer(self, piece_bytes: int | None) -> Answer:
        """The registry's answer to the request that ends the upload, or to the one that did not get so far."""
        if self._blob.size and piece_bytes is None:
            return await self._send("PUT", with_digest(self._location, self._blob.digest), 0, self._blob.size)
        for start in range(0, self._blob.size, piece_bytes or 1):
            size = min(piece_bytes or 1, self._blob.size - start)
            answer = await self._send("PATCH", self._location, start, size)
            if not is_success(answer):
                return answer
            end = parse_upload_range(answer.headers.get("Range"))
            if end is not None and end < start + size - 1:
                raise unavailable(Temporary, self._target.host, "it kept only a part of a chunk")
        url = with_digest(self._location, self._blob.digest)
        return await self._target.connection.ask("PUT", url, scopes=self._target.scopes, headers=_OCTETS)

    async def _send(self, method: str, url: str | URL, start: int, size: int) -> Answer:
        """Send so many bytes of the blob, wherever that is redirected to."""
        send, scopes = self._target.connection.send, self._target.scopes
        headers = {"Content-Range": f"{start}-{start + size - 1}"} if method == "PATCH" else {}
        for _ in range(UPLOAD_REDIRECTS_MAX + 1):
            body = self._content.take(start, size)
            answer = await send(method, url, body, size_bytes=size, scopes=scopes, headers=headers)
            if answer.status in (307, 308):
                url = self._resolved(answer)
                continue
            if method == "PATCH" and is_success(answer) and "Location" in answer.headers:
                self._location = self._resolved(answer)
            return answer
        why = f"it redirects an upload more than {UPLOAD_REDIRECTS_MAX} times"
        raise unavailable(Permanent, self._target.host, why)

    def _resolved(self, answer: Answer) -> str | URL:
        """Where the upload goes on: every answer may say it anew (`_state` does change)."""
        host = self._target.host
        location = resolve_location(answer.headers.get("Location", ""), answer.url, host)
        if location is None:
            raise unavailable(Permanent, host, "it names no usable upload location")
        # What the registry itself says is judged by its connection: behind a proxy it may not know of its own TLS.
        is_elsewhere = isinstance(resolve_location(str(answer.url), answer.url, host), URL)
        if is_elsewhere and answer.url.scheme == "https" and isinstance(location, URL) and location.scheme == "http":
            raise unavailable(Permanent, host, "it leads an upload from TLS to plain HTTP; refused")
        return location

    def _refusal(self, answer: Answer, piece_bytes: int | None) -> Fault:
        host, what = self._target.host, f"pushing blob {self._blob.digest} to {self._target.path}"
        if codes_of(answer.body) & _LOST_SESSION or answer.status in (404, 416):
            return unavailable(Temporary, host, f"{what}: it lost the upload")
        if answer.status == 413:
            size = min(piece_bytes or self._blob.size, self._blob.size)
            return _TooLarge(
                ErrorCode.TOO_LARGE,
                f"registry {host}: {what}: it limits uploads to less than {size} bytes; "
                f'set {"a smaller " if self._target.connection.chunk_bytes else ""}chunk_bytes in [registry."{host}"]',
            )
        return self._target.push_refusal(answer, what)


class _Content:
    """The bytes of a blob from any offset: read on from where they were left, else once more from the first."""

    def __init__(self, body: Callable[[], AsyncIterable[bytes]], size_bytes: int) -> None:
        self._body = body
        self._size_bytes = size_bytes
        self._chunks: AsyncIterator[bytes] | None = None
        self._offset = 0
        self._unread = b""

    @property
    def is_given(self) -> bool:
        """Whether the last byte was taken: only a blob that was sent whole can have been committed."""
        return self._offset == self._size_bytes

    async def take(self, start: int, size: int) -> AsyncGenerator[bytes, None]:
        """So many bytes from `start` on; fewer only where the body itself ends early."""
        if self._chunks is None or self._offset > start:
            await self.aclose()
            self._chunks, self._offset, self._unread = aiter(self._body()), 0, b""
        while self._offset < start + size:
            chunk: bytes | None = self._unread or await anext(self._chunks, None)
            if chunk is None:
                return
            end = start if self._offset < start else start + size
            piece, self._unread = chunk[: end - self._offset], chunk[end - self._offset :]  # no copy of a whole chunk
            self._offset += len(piece)
            if self._offset > start:
                yield piece

    async def end(self) -> None:
        """Let an empty body say what it has to say: what proves its digest may fail at its end only."""
        self._chunks = aiter(self._body())
        async for chunk in self._chunks:
            if chunk:
                raise Permanent(ErrorCode.COPY_FAILED, "a blob that should be empty is not")

    async def aclose(self) -> None:
        chunks, self._chunks = self._chunks, None
        if isinstance(chunks, AsyncGenerator):
            await chunks.aclose()
