"""The `dispatch` kind: a payload of a tenant, kept, told by its bytes, built or checked.

Check, and for what is to be built: build → export → push → purge. Each phase is resumable from its checkpoint.
"""

from collections.abc import AsyncIterable, Collection, Mapping
from typing import Any

import msgspec

from imagejobd.archive import TAR, What
from imagejobd.building.context import Context
from imagejobd.building.image import Recipe, build_image
from imagejobd.building.purging import leftovers, purge, purge_surely
from imagejobd.building.pushing import push_image
from imagejobd.kinds.dispatch import receiving
from imagejobd.kinds.dispatch import spec as specs
from imagejobd.kinds.dispatch.checking import checked_payload
from imagejobd.kinds.dispatch.exporting import export_image, kept_export
from imagejobd.kinds.dispatch.publishing import check_repository, published_name
from imagejobd.kinds.dispatch.receiving import Content, Location
from imagejobd.kinds.dispatch.spec import DispatchSpec
from imagejobd.kinds.dispatch.tools import Tools
from imagejobd.model.circuit import peer_name
from imagejobd.model.failpoint import failpoint
from imagejobd.model.job import Job, Json, NewJob
from imagejobd.model.reference import ImageReference
from imagejobd.model.work import Accepted, Upload, Work


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
        return await receiving.take_in(self._building.blobs, body, max_bytes=self.payload_max_bytes)

    def release(self, upload: Upload) -> None:
        for digest in upload.blobs:
            self._building.blobs.release(digest)

    def parse(self, spec: Json, upload: Upload | None = None) -> Accepted:
        return specs.parse(spec, upload)

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
        return receiving.output(self._building.blobs, job)

    async def run(self, work: Work) -> Json:
        spec = msgspec.convert(work.job.spec, DispatchSpec)
        if not self._is_made(work):
            async with checked_payload(self._tools, work, spec) as checked:
                if checked.context is None:
                    location = Location(digest=spec.payload, size_bytes=spec.size_bytes, media_type=checked.media_type)
                    return _result(checked.what, location)
                await self._make(work, checked.context)
        failpoint("before_purge")
        await purge_surely(work, self.discard, timeout_s=self._tools.settings.purge_timeout_s)
        failpoint("after_purge")
        return self._built_result(work)

    def _target(self, job: Job) -> ImageReference | None:
        """Where the image is pushed, if anywhere."""
        repository = self._tools.settings.repository
        return published_name(repository, job.tenant, job.uuid) if repository else None

    def _is_made(self, work: Work) -> bool:
        """Whether nothing is left but to purge: an attempt that resumes there may find no image in the engine."""
        target = self._target(work.job)
        is_pushed = target is None or str(target) in work.checkpoint.get("pushed", {})
        return is_pushed and kept_export(self._tools, work) is not None

    async def _make(self, work: Work, context: Context) -> None:
        settings = self._tools.settings
        recipe = Recipe(timeout_s=settings.build_timeout_s)
        image = await build_image(self._building, work, recipe, context, self._building.access(work))
        await export_image(self._tools, work, image)
        target = self._target(work.job)
        if target is not None:
            access = self._building.operators_access(work)
            await push_image(self._building, work, [target], image, access, timeout_s=settings.push_timeout_s)

    def _built_result(self, work: Work) -> Json:
        exported = work.checkpoint["exported"]
        location = Location(digest=exported["digest"], size_bytes=exported["size_bytes"], media_type=TAR)
        result = _result(What(work.checkpoint["checked"]["what"]), location) | {"image_id": exported["image_id"]}
        target = self._target(work.job)
        if target is not None:
            result |= {"image": str(target), "digest": work.checkpoint["pushed"][str(target)]}
        return result

    async def leftovers(self) -> set[str]:
        return await leftovers(self._building)

    async def discard(self, uuid: str, checkpoint: Mapping[str, Any]) -> None:
        await purge(self._building, uuid)


def _result(what: What, location: Location) -> Json:
    return {"what": what.value, "location": msgspec.to_builtins(location)}
