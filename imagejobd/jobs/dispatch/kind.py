"""Bounds on a payload and on what is made of it.

What is dispatched, as it is stored: a payload by its digest, and its bytes themselves where they are few.

What a dispatched payload is worked on with.

Where built images are pushed: `<repository>/<tenant>:<uuid of the job>`.

A tenant has a repository of its own, so a registry can grant rights by tenant, and every job has a tag that no other
job ever has: nobody's image can be overwritten by another's, not even after the database is lost and ids start anew.

The exporting phase: a built image as a file of the content store, so that it can be had without the engine.

The `dispatch` kind: a payload of a tenant, kept, told by its bytes, built or checked.

Check, and for what is to be built: build → export → push → purge. Each phase is resumable from its checkpoint.
"""

import hashlib
import re
from collections.abc import AsyncGenerator, AsyncIterable, Collection, Mapping
from contextlib import aclosing
from typing import Any

import msgspec

from imagejobd.archive import TAR, What
from imagejobd.engine.images import export
from imagejobd.jobs.dispatch import payload
from imagejobd.jobs.dispatch.payload import Content, DispatchSpec, Location, Tools, checked_payload, parse
from imagejobd.jobs.shared.build import BuildOptions, BuiltImage, build_image
from imagejobd.jobs.shared.context import Context
from imagejobd.jobs.shared.purge import leftovers, purge, purge_surely
from imagejobd.jobs.shared.push import push_image
from imagejobd.model.circuit import peer_name
from imagejobd.model.errors import ENGINE, ErrorCode, NotFound, Permanent, Temporary, invalid
from imagejobd.model.failpoint import failpoint
from imagejobd.model.job import Job, Json, NewJob
from imagejobd.model.kind import Accepted, JobContext, Upload
from imagejobd.model.reference import ImageReference

TENANT_MAX_CHARS = 64

_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")


def published_name(repository: str, tenant: str, uuid: str) -> ImageReference:
    """The name of a job's image. A tenant whose name is no component of a repository's goes by a digest of it."""
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


class Exported(msgspec.Struct, frozen=True):
    """A tar of the content store with the image `image_id` in it."""

    digest: str
    size_bytes: int
    image_id: str


def kept_export(tools: Tools, ctx: JobContext) -> Exported | None:
    """What an earlier attempt exported, where it is still there."""
    kept = msgspec.convert(ctx.checkpoint.get("exported"), Exported | None)
    return kept if kept is not None and tools.building.blobs.exists(kept.digest) else None


async def export_image(tools: Tools, ctx: JobContext, image: BuiltImage) -> Exported:
    """Export `image`, unless an earlier attempt has. Raises `Permanent(too_large)` and `Temporary`."""
    kept = kept_export(tools, ctx)
    if kept is not None and kept.image_id == image.id:
        return kept
    blobs, settings = tools.building.blobs, tools.settings
    async with ctx.phase("exporting", timeout_s=settings.export_timeout_s, waits_for=ENGINE):
        async with aclosing(_blocks(tools, ctx, image)) as blocks:
            blob = await blobs.keep(blocks, max_bytes=settings.image_max_bytes)
        try:
            exported = Exported(blob.digest, blob.size_bytes, image.id)
            await ctx.save(blobs=[blob.digest], exported=msgspec.to_builtins(exported))
        finally:
            blobs.release(blob.digest)
        await ctx.log(f"exported {image.id} size: {blob.size_bytes} digest: {blob.digest}\n")
    failpoint("after_export")
    return exported


async def _blocks(tools: Tools, ctx: JobContext, image: BuiltImage) -> AsyncGenerator[bytes, None]:
    """The export as it arrives, counted: its bound is not that of an upload."""
    size_bytes = 0
    try:
        async with aclosing(export(tools.building.engine, image.id)) as blocks:
            async for block in blocks:
                size_bytes += len(block)
                _check_size(size_bytes, tools.settings.image_max_bytes)
                ctx.progress(exported_bytes=size_bytes)
                yield block
    except NotFound as fault:
        why = "somebody removed the built image from the engine; it has to be built again"
        raise Temporary(ErrorCode.CONFLICT, why) from fault
    failpoint("while_exporting")


def _check_size(size_bytes: int, max_bytes: int) -> None:
    if size_bytes > max_bytes:
        what = f"the image is larger than {max_bytes} bytes as a tar"
        raise Permanent(ErrorCode.TOO_LARGE, f"{what}; kinds.dispatch.image_max_bytes is the limit")


class DispatchKind:
    """Implements `model.work.Kind`."""

    name = "dispatch"
    uses_engine = False  # for most payloads; those that are built wait once they have been checked

    def __init__(self, tools: Tools) -> None:
        """Raises `Permanent(invalid)` for a repository that nothing can be pushed to."""
        check_repository(tools.settings.repository)
        self._tools = tools
        self._building = tools.building

    @property
    def payload_max_bytes(self) -> int:
        return self._tools.settings.payload_max_bytes

    async def receive(self, body: AsyncIterable[bytes]) -> Upload:
        """Take a payload as it is; what it is good for, its job finds out. Raises `Permanent(too_large)`."""
        return await payload.take_in(self._building.blobs, body, max_bytes=self.payload_max_bytes)

    def release(self, upload: Upload) -> None:
        for digest in upload.blobs:
            self._building.blobs.release(digest)

    def parse(self, spec: Json, upload: Upload | None = None) -> Accepted:
        return parse(spec, upload)

    async def preflight(self, job: NewJob) -> None:
        """Whatever a payload is, it is at least kept."""

    def hosts(self, job: Job) -> Collection[str]:
        """The registry of `repository`, for what is known to be pushed there: most payloads need nobody."""
        target = self._target(job)
        is_built = job.checkpoint.get("checked", {}).get("context") is not None
        if target is None or not is_built or str(target) in job.checkpoint.get("pushed", {}):
            return ()
        return (peer_name(target.host),)

    def output(self, job: Job) -> Content | None:
        """What a job has made, as long as it is kept; None before it has succeeded."""
        return payload.output(self._building.blobs, job)

    async def run(self, ctx: JobContext) -> Json:
        spec = msgspec.convert(ctx.job.spec, DispatchSpec)
        if not self._is_made(ctx):
            async with checked_payload(self._tools, ctx, spec) as checked:
                if checked.context is None:
                    location = Location(digest=spec.payload, size_bytes=spec.size_bytes, media_type=checked.media_type)
                    return _result(checked.what, location)
                await self._make(ctx, checked.context)
        failpoint("before_purge")
        await purge_surely(ctx, self.discard, timeout_s=self._tools.settings.purge_timeout_s)
        failpoint("after_purge")
        return self._built_result(ctx)

    def _target(self, job: Job) -> ImageReference | None:
        """Where the image is pushed, if anywhere."""
        repository = self._tools.settings.repository
        return published_name(repository, job.tenant, job.uuid) if repository else None

    def _is_made(self, ctx: JobContext) -> bool:
        """Whether nothing is left but to purge: an attempt that resumes there may find no image in the engine."""
        target = self._target(ctx.job)
        is_pushed = target is None or str(target) in ctx.checkpoint.get("pushed", {})
        return is_pushed and kept_export(self._tools, ctx) is not None

    async def _make(self, ctx: JobContext, context: Context) -> None:
        settings = self._tools.settings
        options = BuildOptions(timeout_s=settings.build_timeout_s)
        image = await build_image(self._building, ctx, options, context, self._building.access(ctx))
        await export_image(self._tools, ctx, image)
        target = self._target(ctx.job)
        if target is not None:
            access = self._building.operators_access(ctx)
            await push_image(self._building, ctx, [target], image, access, timeout_s=settings.push_timeout_s)

    def _built_result(self, ctx: JobContext) -> Json:
        exported = ctx.checkpoint["exported"]
        location = Location(digest=exported["digest"], size_bytes=exported["size_bytes"], media_type=TAR)
        result = _result(What(ctx.checkpoint["checked"]["what"]), location) | {"image_id": exported["image_id"]}
        target = self._target(ctx.job)
        if target is not None:
            result |= {"image": str(target), "digest": ctx.checkpoint["pushed"][str(target)]}
        return result

    async def leftovers(self) -> set[str]:
        return await leftovers(self._building)

    async def discard(self, uuid: str, checkpoint: Mapping[str, Any]) -> None:
        await purge(self._building, uuid)


def _result(what: What, location: Location) -> Json:
    return {"what": what.value, "location": msgspec.to_builtins(location)}
