"""A payload on its way in, as a file for those who look at it, and what a job has made of it, on its way out.

A payload of few bytes is kept in its job's row, where the commit that acknowledges the job makes it durable: a file of
its own would cost two more fsyncs, more than all else that accepting a job takes. A larger one is a file of the content
store.
"""

import asyncio
import binascii
import hashlib
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from imagejobd.kinds.dispatch.spec import DispatchSpec
from imagejobd.model.bounds import KIB
from imagejobd.model.job import Job
from imagejobd.model.work import Upload
from imagejobd.store.blobs import BlobStore, storage_faults

# Up to here it is cheaper to carry the bytes through the database's log than to make a file of them.
INLINE_MAX_BYTES = 16 * KIB


class Location(msgspec.Struct, frozen=True, kw_only=True):
    """`location` of a job's result: the finished image or file, in the content store or equal to the payload."""

    digest: str
    size_bytes: int
    media_type: str


class Content(Location, frozen=True, kw_only=True):
    """Bytes that are named by their digest: in the file `path`, or in `inline` where that is None."""

    path: Path | None
    inline: bytes = b""


async def take_in(blobs: BlobStore, body: AsyncIterable[bytes], *, max_bytes: int) -> Upload:
    """Keep a payload as it arrives, hashed on the way. What is in the content store is pinned: the caller releases it.

    Raises `Permanent(too_large)` and `Temporary(storage_full)`.
    """
    chunks = aiter(body)
    inline_max_bytes = min(INLINE_MAX_BYTES, max_bytes)
    head = await _up_to(chunks, inline_max_bytes)
    if len(head) <= inline_max_bytes:
        return inlined(head)
    kept = await blobs.keep(_joined(head, chunks), max_bytes=max_bytes)
    return Upload({"payload": kept.digest, "size_bytes": kept.size_bytes}, blobs=(kept.digest,))


def inlined(payload: bytes) -> Upload:
    """A payload of at most `INLINE_MAX_BYTES` as it is kept in its job's row."""
    digest = f"sha256:{hashlib.sha256(payload).hexdigest()}"
    content = binascii.b2a_base64(payload, newline=False).decode()
    return Upload({"payload": digest, "size_bytes": len(payload), "content": content}, blobs=())


@asynccontextmanager
async def payload_file(blobs: BlobStore, spec: DispatchSpec) -> AsyncIterator[Path]:
    """The payload as a file that is only to be read, and only within the block, whichever way it is kept.

    Raises `Temporary(storage_full)` when there is no room to write one.
    """
    content = spec.content
    if content is None:
        yield blobs.path(spec.payload)
        return
    with blobs.spool_file() as path:
        with storage_faults():
            await asyncio.to_thread(path.write_bytes, content)
        yield path


def output(blobs: BlobStore, job: Job) -> Content | None:
    """What the job has made; None before it has succeeded, and when retention has taken it."""
    if job.result is None:
        return None
    location = msgspec.convert(job.result["location"], Location)
    spec = msgspec.convert(job.spec, DispatchSpec)
    fields = msgspec.structs.asdict(location)
    if spec.content is not None and location.digest == spec.payload:
        return Content(**fields, path=None, inline=spec.content)
    return Content(**fields, path=blobs.path(location.digest)) if blobs.exists(location.digest) else None


async def _up_to(chunks: AsyncIterator[bytes], max_bytes: int) -> bytes:
    """All of `chunks`, or their beginning when that is already more than `max_bytes`."""
    head: list[bytes] = []
    size_bytes = 0
    async for chunk in chunks:
        head.append(chunk)
        size_bytes += len(chunk)
        if size_bytes > max_bytes:
            break
    return b"".join(head)


async def _joined(head: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield head
    async for chunk in rest:
        yield chunk
