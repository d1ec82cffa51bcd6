"""A payload on its way in, as a file for those who look at it, and what a job has made of it, on its way out.

A payload of few bytes is kept in its job's row, where the commit that acknowledges the job makes it durable: a file of
its own would cost two more fsyncs, more than all else that accepting a job takes. A larger one is a file of the content
store.

The checking phase: what a payload is, and whether it is sound. What is to be built passes the operator's policy.
"""

import asyncio
import binascii
import hashlib
import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

import msgspec

from imagejobd.archive import ContextBounds, Detected, Stop, What, check_image_archive, detect
from imagejobd.jobs.shared.build import BuildTools
from imagejobd.jobs.shared.context import Context, keep_context
from imagejobd.model.bounds import GIB, KIB, Bytes, Count, Seconds
from imagejobd.model.errors import NotFound, invalid
from imagejobd.model.failpoint import failpoint
from imagejobd.model.job import Job, Json
from imagejobd.model.kind import Accepted, JobContext, Upload
from imagejobd.store.blobs import BlobStore, storage_faults


class DispatchSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[kinds.dispatch]`. `repository` is `registry/prefix`; images that were built are pushed as
    `<repository>/<tenant>:<uuid of the job>`.

    `payload_max_bytes` counts decoded bytes, `image_max_bytes` those of an image that is exported or of
    an archive when it is unpacked. Exporting and pushing may take `export_timeout_s` and `push_timeout_s` without
    progress, the other phases as long in all, without the time in which the engine is away.
    """

    repository: str | None = None
    payload_max_bytes: Bytes = 2 * GIB
    context_max_bytes: Bytes = 4 * GIB
    context_max_entries: Count = 200_000
    image_max_bytes: Bytes = 16 * GIB
    check_timeout_s: Seconds = 1800.0
    build_timeout_s: Seconds = 2 * 3600.0
    export_timeout_s: Seconds = 1800.0
    push_timeout_s: Seconds = 3600.0
    purge_timeout_s: Seconds = 300.0

    @property
    def bounds(self) -> ContextBounds:
        return ContextBounds(max_bytes=self.context_max_bytes, max_entries=self.context_max_entries)


class DispatchSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A payload of `size_bytes`. `payload` is its digest (`sha256:…`), which names a file of the content store unless
    `content` (base64 in JSON) holds the bytes; see `payload.payload_file`.

    `md5` is the sender's own checksum, in lower case, where one came along; it was checked as the payload arrived.
    """

    payload: str
    size_bytes: int
    md5: str | None = None
    content: bytes | None = None


class Tools(msgspec.Struct, frozen=True, kw_only=True):
    """One set for the whole daemon."""

    building: BuildTools
    settings: DispatchSettings


def parse(spec: Json, upload: Upload | None = None) -> Accepted:
    """All that a dispatched job is told is its payload. Raises `Permanent(invalid)` for anything else, and for none."""
    if unknown := [name for name, value in spec.items() if value is not None]:
        raise invalid(f"spec.{unknown[0][:80]}: a dispatched job takes no fields, only a payload")
    if upload is None:
        raise invalid("the payload is missing; send it as the context of the request")
    return Accepted(spec=upload.fields, blobs=upload.blobs)


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


PROGRESS_EVERY_S = 0.25

T = TypeVar("T")


class Checked(msgspec.Struct, frozen=True):
    """What a payload was found to be. `context` is what is to be built, None for what is kept as it is."""

    what: What
    media_type: str
    context: Context | None = None


@asynccontextmanager
async def checked_payload(tools: Tools, ctx: JobContext, spec: DispatchSpec) -> AsyncIterator[Checked]:
    """What the payload is: sorted and checked now, or by an earlier attempt whose context is still there.

    A context is pinned within the block, and no job refers to it: once it is built only the payload is kept.

    Raises `Permanent(invalid | too_large | policy)` that says what is wrong where, `Permanent(not_found)` for a payload
    that is gone.
    """
    with ExitStack() as pins:
        yield await _kept(tools, ctx, pins) or await _check(tools, ctx, spec, pins)


async def _kept(tools: Tools, ctx: JobContext, pins: ExitStack) -> Checked | None:
    """What an earlier attempt found; None where the context that it made is gone."""
    kept = msgspec.convert(ctx.checkpoint.get("checked"), Checked | None)
    digest = kept.context.digest if kept is not None and kept.context is not None else None
    if digest is not None:
        if not await tools.building.blobs.pin(digest):
            return None
        pins.callback(tools.building.blobs.release, digest)
    return kept


async def _check(tools: Tools, ctx: JobContext, spec: DispatchSpec, pins: ExitStack) -> Checked:
    blobs = tools.building.blobs
    if spec.content is None and not blobs.exists(spec.payload):
        raise NotFound("the payload is no longer in the content store; submit it again")
    async with (
        ctx.phase("checking", timeout_s=tools.settings.check_timeout_s),
        payload_file(blobs, spec) as path,
    ):
        checked = await _checked(tools, ctx, path, pins)
        failpoint("while_checking")
        await ctx.save(checked=msgspec.to_builtins(checked))
    failpoint("after_check")
    return checked


async def _checked(tools: Tools, ctx: JobContext, path: Path, pins: ExitStack) -> Checked:
    settings = tools.settings
    found = await _read_through(
        ctx,
        path,
        lambda source, stop: detect(
            source, max_bytes=settings.image_max_bytes, max_entries=settings.context_max_entries, stop=stop
        ),
    )
    await ctx.log(f"the payload is {_words(found)}\n")
    match found.what:
        case What.DOCKERFILE:
            await asyncio.to_thread(tools.building.policy.check, found.dockerfile)
            return Checked(found.what, found.media_type, Context(None, found.dockerfile))
        case What.CONTEXT:
            return Checked(found.what, found.media_type, await _context(tools, path, pins))
        case What.IMAGE_ARCHIVE:
            count = await _read_through(
                ctx,
                path,
                lambda source, stop: check_image_archive(source, max_bytes=settings.image_max_bytes, stop=stop),
            )
            await ctx.log(f"the image archive is whole; images in it: {count}\n")
    return Checked(found.what, found.media_type)


async def _context(tools: Tools, path: Path, pins: ExitStack) -> Context:
    context = await keep_context(tools.building.blobs, path, tools.settings.bounds)
    pins.callback(tools.building.blobs.release, str(context.digest))
    await asyncio.to_thread(tools.building.policy.check, context.dockerfile)
    return context


def _words(found: Detected) -> str:
    match found.what:
        case What.DOCKERFILE:
            return "a Dockerfile"
        case What.CONTEXT:
            return f"a build context ({found.media_type})"
        case What.IMAGE_ARCHIVE:
            return f"an image archive ({found.media_type})"
    return f"a file ({found.media_type}); it is kept as it is"


async def _read_through(ctx: JobContext, path: Path, read: Callable[[BinaryIO, Stop], T]) -> T:
    """Read the payload in a thread and tell how far; when the caller is cancelled it stops at its next block."""
    given_up = threading.Event()
    total_bytes = path.stat().st_size
    with path.open("rb") as file:
        source = _Counted(file)
        reading = asyncio.ensure_future(asyncio.to_thread(read, cast(BinaryIO, source), given_up.is_set))
        try:
            while not reading.done():
                await asyncio.wait([reading], timeout=PROGRESS_EVERY_S)
                ctx.progress(checked_bytes=source.position, total_bytes=total_bytes)
            return reading.result()
        finally:
            given_up.set()
            # The file is the thread's until it has stopped, at its next block.
            await asyncio.wait([reading])
            reading.exception()


class _Counted:
    """A file that says how far it was read; asking the file itself would meddle with the thread that reads."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.position = 0

    def read(self, count: int) -> bytes:
        data = self._file.read(count)
        self.position += len(data)
        return data

    def seek(self, position: int) -> None:
        self.position = self._file.seek(position)
