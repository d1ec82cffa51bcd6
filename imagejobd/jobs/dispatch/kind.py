"""The `dispatch` kind: a tenant's payload of unknown sort, detected by its bytes, then built, or checked and kept.

Check, and for what is to be built: build → export → push → purge. Each phase is resumable from its checkpoint.
"""

import hashlib
import re
from collections.abc import AsyncGenerator, AsyncIterable, Collection
from contextlib import aclosing

import msgspec

from imagejobd.archive import TAR, What
from imagejobd.engine.images import export
from imagejobd.jobs.dispatch import payload
from imagejobd.jobs.dispatch.payload import Content, DispatchSettings, DispatchSpec, Location
from imagejobd.jobs.shared.builder import (
    BuildingKind,
    BuildOptions,
    BuiltImage,
    ImageBuilder,
    image_removed_is_temporary,
)
from imagejobd.jobs.shared.context import Context
from imagejobd.model.circuit import peer_name
from imagejobd.model.errors import ENGINE, ErrorCode, Permanent, invalid
from imagejobd.model.failpoint import failpoint
from imagejobd.model.job import Job, Json
from imagejobd.model.kind import Accepted, JobContext, Upload
from imagejobd.model.reference import ImageReference

TENANT_MAX_CHARS = 64

_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")


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

    async def receive(self, body: AsyncIterable[bytes]) -> Upload:
        """Take a payload as it is; what it is good for, its job finds out. Raises `Permanent(too_large)`."""
        return await payload.take_in(self._blobs, body, max_bytes=self.payload_max_bytes)

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
        if target is None or not is_built or str(target) in job.checkpoint.get("pushed", {}):
            return ()
        return (peer_name(target.host),)

    def output(self, job: Job) -> Content | None:
        """What a job has made, as long as it is kept; None before it has succeeded."""
        return payload.output(self._blobs, job)

    async def run(self, ctx: JobContext) -> Json:
        spec = msgspec.convert(ctx.job.spec, DispatchSpec)
        if not self._is_made(ctx):
            async with payload.checked(self._blobs, self._builder.policy, self._settings, ctx, spec) as checked:
                if checked.context is None:
                    location = Location(digest=spec.payload, size_bytes=spec.size_bytes, media_type=checked.media_type)
                    return _result(checked.what, location)
                await self._make(ctx, checked.context)
        await self.purge(ctx, timeout_s=self._settings.purge_timeout_s)
        return self._built_result(ctx)

    def _target(self, job: Job) -> ImageReference | None:
        """Where the image is pushed, if anywhere."""
        repository = self._settings.repository
        return published_name(repository, job.tenant, job.uuid) if repository else None

    def _is_made(self, ctx: JobContext) -> bool:
        """Whether only the purge is still to be done: an attempt that resumes there may find no image in the engine."""
        target = self._target(ctx.job)
        is_pushed = target is None or str(target) in ctx.checkpoint.get("pushed", {})
        return is_pushed and self._earlier_export(ctx) is not None

    async def _make(self, ctx: JobContext, context: Context) -> None:
        builder, settings = self._builder, self._settings
        options = BuildOptions(timeout_s=settings.build_timeout_s)
        image = await builder.build(ctx, options, context, builder.access(ctx))
        await self._export_image(ctx, image)
        target = self._target(ctx.job)
        if target is not None:
            access = builder.operators_access(ctx)
            await builder.push(ctx, [target], image, access, timeout_s=settings.push_timeout_s)

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

    def _built_result(self, ctx: JobContext) -> Json:
        exported = msgspec.convert(ctx.checkpoint["exported"], Exported)
        location = Location(digest=exported.digest, size_bytes=exported.size_bytes, media_type=TAR)
        result = _result(What(ctx.checkpoint["checked"]["what"]), location) | {"image_id": exported.image_id}
        target = self._target(ctx.job)
        if target is not None:
            result |= {"image": str(target), "digest": ctx.checkpoint["pushed"][str(target)]}
        return result


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


def _result(what: What, location: Location) -> Json:
    return {"what": what.value, "location": msgspec.to_builtins(location)}
