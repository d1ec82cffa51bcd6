"""Putting a blob into a repository: mount, or a session with one PUT, or PATCHes where a host is configured so."""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from contextlib import aclosing
from enum import StrEnum
from typing import Literal

import msgspec
from yarl import URL

from imagejobd.model.errors import ErrorCode, Fault, Permanent, Temporary
from imagejobd.registry.content.descriptor import Descriptor
from imagejobd.registry.content.location import resolve_location, with_digest
from imagejobd.registry.content.repository import Repository
from imagejobd.registry.content.verdict import codes_of, is_success, push_refused
from imagejobd.registry.http.transport import Answer

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
