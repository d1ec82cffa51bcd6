"""Byte ranges (RFC 9110 §14), strictly: what is not exactly understood is not spliced into a blob.

Where an upload goes on: the `Location` of its session, kept to the letter but for the digest added at its end.

Registries write it relative or absolute, with a signed query (`_state=…`), with another port or host, and as http
behind a proxy that speaks TLS for them. What names the registry itself is reduced to its path and query, so that it
goes the way of every other request there: same scheme, same trust, same login.

Reading a blob from a repository: every byte once, through cuts and stalls.

The digest is not proved here: whoever reads keeps the running hash, which is what makes resuming safe.

Putting a blob into a repository: mount, or a session with one PUT, or PATCHes where a host is configured so.
"""

import asyncio
import math
import re
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from contextlib import aclosing
from enum import StrEnum
from typing import Literal

import msgspec
from yarl import URL

from imagejobd.model.errors import ErrorCode, Fault, Permanent, Temporary
from imagejobd.model.reference import HUB_HOST
from imagejobd.registry.address import HUB_API_HOST, exact_url, http_url
from imagejobd.registry.connection import Connection, Stream
from imagejobd.registry.errors import refusal
from imagejobd.registry.http import Answer
from imagejobd.registry.limits import PAUSE_MAX_S as HOST_PAUSE_MAX_S
from imagejobd.registry.manifest import Descriptor
from imagejobd.registry.repository import Repository, codes_of, is_success, push_refused

# 2**53 has 16 digits; no blob needs more.
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,16})-([0-9]{1,16})/([0-9]{1,16})", re.IGNORECASE | re.ASCII)


class ByteRange(msgspec.Struct, frozen=True):
    """The bytes `start` to `end` (inclusive) of `total`."""

    start: int
    end: int
    total: int

    def __str__(self) -> str:
        return f"bytes {self.start}-{self.end}/{self.total}"


def parse_content_range(value: str | None) -> ByteRange | None:
    """A `Content-Range` header; None where there is none, it contradicts itself, or tells no full length."""
    match = _CONTENT_RANGE.fullmatch(value.strip()) if value is not None else None
    if match is None:
        return None
    start, end, total = (int(part) for part in match.groups())
    return ByteRange(start, end, total) if start <= end < total else None


def range_from(offset: int) -> dict[str, str]:
    """The request header for everything from `offset` on; none for the whole."""
    return {"Range": f"bytes={offset}-"} if offset else {}


LOCATION_MAX_CHARS = 16 * 1024

_BASE = URL("http://registry.invalid")
_DEFAULT_PORTS = (80, 443)


def resolve_location(location: str, asked: str | URL, host: str) -> str | URL | None:
    """Where `location`, in the answer to a request to `asked` at the registry `host` (`name[:port]`), points.

    Path and query where that is the registry itself, else an absolute URL; None where it is no usable URL.
    """
    if not location or len(location) > LOCATION_MAX_CHARS:
        return None
    base = asked if isinstance(asked, URL) else _BASE.join(URL(asked, encoded=True))
    try:
        url = http_url(str(base.join(exact_url(location)).with_fragment(None)))
    except ValueError:
        return None
    if url is None or url.user is not None:
        return None
    if _is_at(url, _BASE.host or "") or _is_at(url, HUB_API_HOST if host == HUB_HOST else host):
        return url.raw_path_qs
    return url


def with_digest(target: str | URL, digest: str) -> str | URL:
    """`target` with `digest` behind whatever its query says."""
    text = str(target)
    text += f"{'&' if '?' in text else '?'}digest={digest}"
    return URL(text, encoded=True) if isinstance(target, URL) else text


def _is_at(url: URL, host: str) -> bool:
    """Whether `url` names `host`; the scheme is of no account, nor is a port that is the scheme's own."""
    name, port = (url.host_subcomponent or "").lower(), url.port
    return f"{name}:{port}" == host.lower() or (name == host.lower() and port in _DEFAULT_PORTS)


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


# A session that will not be used is given back within this time, or left to the registry's own purging.
GIVE_BACK_MAX_S = 1.0
CHUNK_MAX_BYTES = 1024**4

# docker-registry takes a form's type for a form, reads the blob as one, and says DIGEST_INVALID.
_OCTETS = {"Content-Type": "application/octet-stream"}
# Of an upload's answers, which have no unit in it (distribution spec, "Pushing a blob in chunks"); some write one.
_RANGE = re.compile(r"(?:bytes=)?0-([0-9]{1,16})", re.ASCII)
_LOST_SESSION = frozenset({"BLOB_UPLOAD_UNKNOWN", "BLOB_UPLOAD_INVALID"})


class Put(StrEnum):
    """How a blob came to be in the repository."""

    SENT = "sent"
    MOUNTED = "mounted"


class _Session(msgspec.Struct):
    """An open upload; `target` moves with every answer."""

    target: str | URL
    chunk_min_bytes: int = 0


class _Body:
    """The bytes of a blob on their way, counted: only a blob that was sent whole can have been committed."""

    def __init__(self, body: AsyncIterable[bytes], size_bytes: int) -> None:
        self._chunks = aiter(body)
        self._rest = b""
        self._left_bytes = size_bytes

    @property
    def is_given(self) -> bool:
        return self._left_bytes == 0

    async def take(self, max_bytes: int) -> AsyncGenerator[bytes, None]:
        """The next bytes, at most `max_bytes` of them; fewer only where the body itself ends early."""
        while max_bytes > 0:
            chunk: bytes | None = self._rest or await anext(self._chunks, None)
            if chunk is None:
                return
            piece, self._rest = chunk[:max_bytes], chunk[max_bytes:]  # a whole chunk is not copied by this
            max_bytes -= len(piece)
            self._left_bytes -= len(piece)
            yield piece

    async def end(self) -> None:
        """Let an empty body say what it has to say: what proves its digest may fail at its end only."""
        async for chunk in self._chunks:
            if chunk:
                raise Permanent(ErrorCode.COPY_FAILED, "a blob that should be empty is not")

    async def aclose(self) -> None:
        if isinstance(self._chunks, AsyncGenerator):
            await self._chunks.aclose()


async def put_blob(
    target: Repository, blob: Descriptor, body: Callable[[], AsyncIterable[bytes]], *, mount_from: str | None = None
) -> Put:
    """Upload `blob`; `body` is called once, when bytes are really wanted, and yields exactly `blob.size` of them.

    `mount_from` is a repository of the same registry known to hold the blob. The registry's verdict on a PUT that
    failed late is checked by HEAD. Raises what `Connection.send` raises, and `Permanent` for a refusal; whatever
    `body` raises goes through unchanged and leaves nothing committed.
    """
    session = await _mounted(target, blob, mount_from) if mount_from else None
    if session is Put.MOUNTED:
        return Put.MOUNTED
    upload = session or await _opened(target, blob)
    try:
        async with aclosing(_Body(body(), blob.size)) as counted:
            await _sent(target, blob, upload, counted)
    except BaseException:
        await _give_back(target, upload)
        raise
    return Put.SENT


async def _mounted(target: Repository, blob: Descriptor, source: str) -> _Session | Literal[Put.MOUNTED] | None:
    """Mount the blob from the repository `source`; a session where the registry would rather have the bytes, None where
    it refuses: the Hub and old Quay say 400, and who may push need not be able to pull there."""
    asked = f"/v2/{target.path}/blobs/uploads/?mount={blob.digest}&from={source}"
    scopes = (*target.scopes, f"repository:{source}:pull")
    try:
        answer = await target.connection.ask("POST", asked, scopes=scopes)
    except Permanent as fault:
        if fault.code is ErrorCode.DENIED:
            return None
        raise
    if answer.status == 201:
        target.check_digest(answer, blob.digest)
        return Put.MOUNTED
    return _session(target, asked, answer) if answer.status == 202 else None


async def _opened(target: Repository, blob: Descriptor) -> _Session:
    asked = f"/v2/{target.path}/blobs/uploads/"
    answer = await target.connection.ask("POST", asked, scopes=target.scopes)
    if not is_success(answer):
        raise push_refused(target.connection, answer, f"pushing blob {blob.digest} to {target.path}")
    session = _session(target, asked, answer)
    if session is None:
        raise Permanent(ErrorCode.REGISTRY_UNAVAILABLE, f"registry {target.host}: it names no usable upload location")
    return session


def _session(target: Repository, asked: str, answer: Answer) -> _Session | None:
    location = resolve_location(answer.headers.get("Location", ""), asked, target.host)
    if location is None:
        return None
    minimum = answer.headers.get("OCI-Chunk-Min-Length", "")
    known = minimum.isascii() and minimum.isdigit() and len(minimum) < 16
    return _Session(location, min(int(minimum), CHUNK_MAX_BYTES) if known else 0)


async def _sent(target: Repository, blob: Descriptor, upload: _Session, body: _Body) -> None:
    """Send the blob and see it committed."""
    if blob.size == 0:
        await body.end()
    try:
        answer = await _answered(target, blob, upload, body)
    except Temporary as cut:
        fault: Fault = cut
    else:
        if is_success(answer):
            target.check_digest(answer, blob.digest)
            return
        fault = _judged(target, blob, answer)
    # After the last byte, neither a cut nor a 404 or 5xx says what became of the blob.
    if not (isinstance(fault, Temporary) and body.is_given and await _is_there(target, blob)):
        raise fault


async def _answered(target: Repository, blob: Descriptor, upload: _Session, body: _Body) -> Answer:
    """The registry's answer to the request that ends the upload, or to the one that did not get so far."""
    chunk_bytes = target.connection.chunk_bytes
    if blob.size == 0:
        return await _committed_empty(target, blob, upload)
    if chunk_bytes is None:
        return await _send(target, "PUT", with_digest(upload.target, blob.digest), body, blob.size)
    return await _sent_in_chunks(target, blob, upload, body, max(chunk_bytes, upload.chunk_min_bytes))


async def _sent_in_chunks(
    target: Repository, blob: Descriptor, upload: _Session, body: _Body, chunk_bytes: int
) -> Answer:
    """PATCH after PATCH, then the empty PUT that commits them; the first answer that is no success ends it."""
    for start in range(0, blob.size, chunk_bytes):
        size = min(chunk_bytes, blob.size - start)
        content_range = {"Content-Range": f"{start}-{start + size - 1}"}
        answer = await _send(target, "PATCH", upload.target, body, size, content_range)
        if not is_success(answer):
            return answer
        upload.target = _moved(target, upload, answer)
        kept = _RANGE.fullmatch(answer.headers.get("Range", ""))
        if kept and int(kept[1]) < start + size - 1:
            raise Temporary(ErrorCode.REGISTRY_UNAVAILABLE, f"registry {target.host}: it kept only a part of a chunk")
    return await _committed_empty(target, blob, upload)


def _moved(target: Repository, upload: _Session, answer: Answer) -> str | URL:
    """Where the next request of the upload goes: every answer may say it anew (`_state` does change)."""
    location = answer.headers.get("Location")
    moved = resolve_location(location, upload.target, target.host) if location else upload.target
    if moved is None:
        raise Permanent(ErrorCode.REGISTRY_UNAVAILABLE, f"registry {target.host}: it moves an upload to no usable URL")
    return moved


async def _send(
    target: Repository,
    method: str,
    url: str | URL,
    body: _Body,
    size: int,
    headers: dict[str, str] = {},  # noqa: B006
) -> Answer:
    return await target.connection.send(
        method, url, body.take(size), size_bytes=size, scopes=target.scopes, headers={**_OCTETS, **headers}
    )


async def _committed_empty(target: Repository, blob: Descriptor, upload: _Session) -> Answer:
    """The PUT without bytes of its own."""
    url = with_digest(upload.target, blob.digest)
    return await target.connection.ask("PUT", url, scopes=target.scopes, headers=_OCTETS)


def _judged(target: Repository, blob: Descriptor, answer: Answer) -> Fault:
    what = f"pushing blob {blob.digest} to {target.path}"
    codes = codes_of(answer.body)
    if codes & _LOST_SESSION or answer.status in (404, 416):
        return Temporary(ErrorCode.REGISTRY_UNAVAILABLE, f"registry {target.host}: {what}: it lost the upload")
    if answer.status == 413:
        return Permanent(
            ErrorCode.TOO_LARGE,
            f"registry {target.host}: {what}: it limits uploads to less than {blob.size} bytes; "
            f'set {"a smaller " if target.connection.chunk_bytes else ""}chunk_bytes in [registry."{target.host}"]',
        )
    return push_refused(target.connection, answer, what)


async def _is_there(target: Repository, blob: Descriptor) -> bool:
    try:
        return await target.has_blob(blob.digest)
    except Fault:
        return False  # the first fault says more


async def _give_back(target: Repository, upload: _Session) -> None:
    """Delete a session that nobody will use, even where the copy is given up once more meanwhile: that then goes on."""
    giving = asyncio.create_task(_delete(target, upload))
    cancelled: asyncio.CancelledError | None = None
    while not giving.done():
        try:
            await asyncio.wait({giving})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    giving.result()


async def _delete(target: Repository, upload: _Session) -> None:
    """A failure costs the registry some space for a while, and nobody else."""
    try:
        async with asyncio.timeout(GIVE_BACK_MAX_S):
            await target.connection.ask("DELETE", upload.target, scopes=target.scopes)
    except (Fault, TimeoutError):
        pass
