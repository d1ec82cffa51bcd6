"""The `dispatch` kind: a tenant's payload of unknown sort, detected by its bytes, then built, or checked and kept.

Check, and for what is to be built: build → export → push → purge. Each phase is resumable from its checkpoint. A
payload of few bytes is kept in its job's row, where the commit that acknowledges the job makes it durable: a file of
its own would cost two more fsyncs, more than all else that accepting a job takes. A larger one is a file of the content
store.
"""

import asyncio
import binascii
import hashlib
import re
import threading
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Collection, Iterable
from contextlib import ExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

import msgspec

from imagejobd.archive import TAR, ContextBounds, Stop, What, check_image_archive, detect
from imagejobd.engine.images import export
from imagejobd.jobs.shared.builder import (
    BuildingKind,
    BuildOptions,
    BuiltImage,
    ImageBuilder,
)
from imagejobd.jobs.shared.context import Context, keep_context
from imagejobd.jobs.shared.progress import percent
from imagejobd.jobs.shared.push import image_removed_is_temporary
from imagejobd.model.bounds import GIB, KIB, Bytes, Count, Seconds
from imagejobd.model.circuit import peer_name
from imagejobd.model.errors import ENGINE, ErrorCode, NotFound, Permanent, invalid
from imagejobd.model.failpoint import failpoint
from imagejobd.model.job import Job, Json, NewJob
from imagejobd.model.kind import Accepted, JobContext, Upload
from imagejobd.model.reference import ImageReference
from imagejobd.store.content import ContentStore
from imagejobd.store.files import storage_faults

# Up to here it is cheaper to carry the bytes through the database's log than to make a file of them.
INLINE_MAX_BYTES = 16 * KIB
PROGRESS_EVERY_S = 0.25
TENANT_MAX_CHARS = 64

_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_DESCRIPTIONS = {
    What.DOCKERFILE: "a Dockerfile",
    What.CONTEXT: "a build context ({})",
    What.IMAGE_ARCHIVE: "an image archive ({})",
    What.FILE: "a file ({}); it is kept as it is",
}

T = TypeVar("T")


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
    `content` (base64 in JSON) holds the bytes; see `payload_file`.

    `md5` is the sender's own checksum, in lower case, where one came along; it was checked as the payload arrived.
    """

    payload: str
    size_bytes: int
    md5: str | None = None
    content: bytes | None = None


class Location(msgspec.Struct, frozen=True, kw_only=True):
    """`location` of a job's result: the finished image or file, in the content store or equal to the payload."""

    digest: str
    size_bytes: int
    media_type: str


class Content(Location, frozen=True, kw_only=True):
    """Bytes that are named by their digest: in the file `path`, or in `inline` where that is None."""

    path: Path | None
    inline: bytes = b""


class Checked(msgspec.Struct, frozen=True):
    """What a payload is. `context` is what is to be built, None for what is kept as it is."""

    what: What
    media_type: str
    context: Context | None = None


class Exported(msgspec.Struct, frozen=True):
    """A tar of the content store with the image `image_id` in it."""

    digest: str
    size_bytes: int
    image_id: str


class DispatchKind(BuildingKind):
    name = "dispatch"
    uses_engine = False  # for most payloads; those that are built wait once they have been checked

    def __init__(self, builder: ImageBuilder, settings: DispatchSettings) -> None:
        """Raises `Permanent(invalid)` for a repository that nothing can be pushed to."""
        super().__init__(builder)
        check_repository(settings.repository)
        self._settings = settings

    @property
    def payload_max_bytes(self) -> int:
        return self._settings.payload_max_bytes

    async def receive(self, body: AsyncIterable[bytes], spec: Json) -> Upload:
        """Take a payload as it is; what it is good for, its job finds out. Raises `Permanent(too_large)`."""
        return await take_in(self._blobs, body, max_bytes=self.payload_max_bytes)

    def parse(self, spec: Json, upload: Upload | None = None) -> Accepted:
        """The payload is all there is to say of a job. Raises `Permanent(invalid)` for anything else, and for none."""
        if unknown := [name for name, value in spec.items() if value is not None]:
            raise invalid(f"spec.{unknown[0][:80]}: a dispatched job takes no fields, only a payload")
        if upload is None:
            raise invalid("the payload is missing; send it as the context of the request")
        return Accepted(spec=upload.fields, blobs=upload.blobs)

    def hosts(self, job: Job) -> Collection[str]:
        """The registry of `repository`, for what is known to be pushed there: most payloads need nobody."""
        target = self._target(job)
        is_built = job.checkpoint.get("checked", {}).get("context") is not None
        return () if target is None or not is_built or _is_pushed(job, target) else (peer_name(target.host),)

    def images(self, job: NewJob) -> Iterable[ImageReference]:
        return filter(None, [self._target(job)])

    def output(self, job: Job) -> Content | None:
        """What the job has made; None before it has succeeded, and when retention has taken it."""
        if job.result is None:
            return None
        location = msgspec.convert(job.result["location"], Location)
        spec = msgspec.convert(job.spec, DispatchSpec)
        fields = msgspec.structs.asdict(location)
        if spec.content is not None and location.digest == spec.payload:
            return Content(**fields, path=None, inline=spec.content)
        is_there = self._blobs.exists(location.digest)
        return Content(**fields, path=self._blobs.path(location.digest)) if is_there else None

    async def run(self, ctx: JobContext) -> Json:
        builder, settings, target = self._builder, self._settings, self._target(ctx.job)
        # An attempt that resumes at the purge may find no image in the engine.
        if self._earlier_export(ctx) is None or not (target is None or _is_pushed(ctx, target)):
            spec = msgspec.convert(ctx.job.spec, DispatchSpec)
            async with self._checked(ctx, spec) as checked:
                if checked.context is None:
                    location = Location(digest=spec.payload, size_bytes=spec.size_bytes, media_type=checked.media_type)
                    return {"what": checked.what.value, "location": msgspec.to_builtins(location)}
                options = BuildOptions(timeout_s=settings.build_timeout_s)
                image = await builder.build(ctx, options, checked.context, builder.access(ctx))
                await self._export_image(ctx, image)
                if target is not None:
                    access = builder.operators_access(ctx)
                    await builder.push(ctx, [target], image, access, timeout_s=settings.push_timeout_s)
        await self.purge(ctx, timeout_s=settings.purge_timeout_s)
        exported = msgspec.convert(ctx.checkpoint["exported"], Exported)
        location = Location(digest=exported.digest, size_bytes=exported.size_bytes, media_type=TAR)
        result: Json = {"what": ctx.checkpoint["checked"]["what"], "location": msgspec.to_builtins(location)}
        result["image_id"] = exported.image_id
        if target is not None:
            result |= {"image": str(target), "digest": ctx.checkpoint["pushed"][str(target)]}
        return result

    def _target(self, job: Job | NewJob) -> ImageReference | None:
        """Where the image is pushed, if anywhere."""
        repository = self._settings.repository
        return published_name(repository, job.tenant, job.uuid) if repository else None

    @asynccontextmanager
    async def _checked(self, ctx: JobContext, spec: DispatchSpec) -> AsyncIterator[Checked]:
        """The checking phase: what the payload is, and whether it is sound; what is to be built passes the policy. What
        an earlier attempt has found out holds as long as its context is there.

        A context is pinned within the block, and no job refers to it: once it is built only the payload is kept.

        Raises `Permanent(invalid | too_large | policy)` that says what is wrong where, `Permanent(not_found)` for a
        payload that is gone.
        """
        with ExitStack() as pins:
            earlier = msgspec.convert(ctx.checkpoint.get("checked"), Checked | None)
            digest = earlier.context.digest if earlier is not None and earlier.context is not None else None
            if earlier is not None and (digest is None or await self._blobs.pin(digest)):
                if digest is not None:
                    pins.callback(self._blobs.release, digest)
                yield earlier
                return
            if spec.content is None and not self._blobs.exists(spec.payload):
                raise NotFound("the payload is no longer in the content store; submit it again")
            async with (
                ctx.phase("checking", timeout_s=self._settings.check_timeout_s),
                payload_file(self._blobs, spec) as path,
            ):
                checked = await self._check(ctx, path, pins)
                failpoint("while_checking")
                await ctx.save(checked=msgspec.to_builtins(checked))
            failpoint("after_check")
            yield checked

    async def _check(self, ctx: JobContext, path: Path, pins: ExitStack) -> Checked:
        max_bytes, max_entries = self._settings.image_max_bytes, self._settings.context_max_entries
        detected = await _read_through(
            ctx, path, lambda source, stop: detect(source, max_bytes=max_bytes, max_entries=max_entries, stop=stop)
        )
        await ctx.log(f"the payload is {_DESCRIPTIONS[detected.what].format(detected.media_type)}\n")
        context: Context | None = None
        match detected.what:
            case What.DOCKERFILE:
                context = Context(None, detected.dockerfile)
            case What.CONTEXT:
                context = await keep_context(self._blobs, path, self._settings.bounds)
                pins.callback(self._blobs.release, str(context.digest))
            case What.IMAGE_ARCHIVE:
                count = await _read_through(
                    ctx, path, lambda source, stop: check_image_archive(source, max_bytes=max_bytes, stop=stop)
                )
                await ctx.log(f"the image archive is whole; images in it: {count}\n")
        if context is not None:
            has_context = context.digest is not None
            await asyncio.to_thread(self._builder.policy.check, context.dockerfile, has_context=has_context)
        return Checked(detected.what, detected.media_type, context)

    async def _export_image(self, ctx: JobContext, image: BuiltImage) -> None:
        """The exporting phase: the image as a file of the content store, so that it can be had without the engine.

        Raises `Permanent(too_large)` and `Temporary`.
        """
        earlier = self._earlier_export(ctx)
        if earlier is not None and earlier.image_id == image.id:
            return
        settings = self._settings
        async with ctx.phase("exporting", timeout_s=settings.export_timeout_s, waits_for=ENGINE):
            async with aclosing(self._blocks(ctx, image)) as blocks:
                blob = await self._blobs.put(blocks, max_bytes=settings.image_max_bytes)
            try:
                exported = Exported(blob.digest, blob.size_bytes, image.id)
                await ctx.save(blobs=[blob.digest], exported=msgspec.to_builtins(exported))
            finally:
                self._blobs.release(blob.digest)
            await ctx.log(f"exported {image.id} size: {blob.size_bytes} digest: {blob.digest}\n")
        failpoint("after_export")

    def _earlier_export(self, ctx: JobContext) -> Exported | None:
        """What an earlier attempt exported, where it is still there."""
        exported = msgspec.convert(ctx.checkpoint.get("exported"), Exported | None)
        return exported if exported is not None and self._blobs.exists(exported.digest) else None

    async def _blocks(self, ctx: JobContext, image: BuiltImage) -> AsyncGenerator[bytes, None]:
        """The export as it arrives, counted: its bound is not that of an upload."""
        size_bytes, max_bytes = 0, self._settings.image_max_bytes
        with image_removed_is_temporary():
            async with aclosing(export(self._builder.engine, image.id)) as blocks:
                async for block in blocks:
                    size_bytes += len(block)
                    if size_bytes > max_bytes:
                        what = f"the image is larger than {max_bytes} bytes as a tar"
                        raise Permanent(ErrorCode.TOO_LARGE, f"{what}; kinds.dispatch.image_max_bytes is the limit")
                    ctx.progress(exported_bytes=size_bytes)
                    yield block
        failpoint("while_exporting")


async def take_in(blobs: ContentStore, body: AsyncIterable[bytes], *, max_bytes: int) -> Upload:
    """Keep a payload as it arrives, hashed on the way. What is in the content store is pinned: the caller releases it.

    Raises `Permanent(too_large)` and `Temporary(storage_full)`.
    """
    chunks = aiter(body)
    inline_max_bytes = min(INLINE_MAX_BYTES, max_bytes)
    head = bytearray()
    async for chunk in chunks:
        head += chunk
        if len(head) > inline_max_bytes:
            break
    else:
        return inlined(bytes(head))
    blob = await blobs.put(_joined(bytes(head), chunks), max_bytes=max_bytes)
    return Upload({"payload": blob.digest, "size_bytes": blob.size_bytes}, blobs=(blob.digest,))


def inlined(payload: bytes) -> Upload:
    """A payload of at most `INLINE_MAX_BYTES` as it is kept in its job's row."""
    digest = f"sha256:{hashlib.sha256(payload).hexdigest()}"
    content = binascii.b2a_base64(payload, newline=False).decode()
    return Upload({"payload": digest, "size_bytes": len(payload), "content": content}, blobs=())


@asynccontextmanager
async def payload_file(blobs: ContentStore, spec: DispatchSpec) -> AsyncIterator[Path]:
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


def published_name(repository: str, tenant: str, uuid: str) -> ImageReference:
    """Where a job's image is pushed: `<repository>/<tenant>:<uuid of the job>`.

    A tenant has a repository of its own, so a registry can grant rights by tenant, and every job has a tag that no
    other job ever has: nobody's image can be overwritten by another's, not even after the database is lost and ids
    start anew. A tenant whose name is no component of a repository's goes by a digest of it.
    """
    component = tenant
    if len(tenant) > TENANT_MAX_CHARS or not _COMPONENT.fullmatch(tenant):
        component = f"tenant-{hashlib.sha256(tenant.encode()).hexdigest()[:32]}"
    return ImageReference.parse(f"{repository}/{component}:{uuid}")


def check_repository(repository: str | None) -> None:
    """Raise `Permanent(invalid)` that names the key when nothing can be pushed below `repository`."""
    if repository is None:
        return
    try:
        published_name(repository, "t" * TENANT_MAX_CHARS, "0")
    except Permanent as fault:
        raise invalid(f"kinds.dispatch.repository: {fault.message}") from None


def _is_pushed(job: Job | JobContext, target: ImageReference) -> bool:
    return str(target) in job.checkpoint.get("pushed", {})


async def _joined(head: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield head
    async for chunk in rest:
        yield chunk


async def _read_through(ctx: JobContext, path: Path, read: Callable[[BinaryIO, Stop], T]) -> T:
    """Read the payload in a thread and tell how far; when the caller is cancelled it stops at its next block."""
    is_cancelled = threading.Event()
    total_bytes = path.stat().st_size
    with path.open("rb") as file:
        source = _Counted(file)
        reading = asyncio.ensure_future(asyncio.to_thread(read, cast(BinaryIO, source), is_cancelled.is_set))
        try:
            while not reading.done():
                await asyncio.wait([reading], timeout=PROGRESS_EVERY_S)
                ctx.progress(
                    checked_bytes=source.position,
                    total_bytes=total_bytes,
                    percent=percent(source.position, total_bytes),
                )
            return reading.result()
        finally:
            is_cancelled.set()
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
