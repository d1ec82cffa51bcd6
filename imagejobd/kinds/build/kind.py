"""The `build` kind: fetch → build → push → purge, each phase resumable from its checkpoint."""

from collections.abc import AsyncIterable, Collection, Mapping
from typing import Any

import msgspec

from imagejobd.building.context import take_in
from imagejobd.building.image import Recipe, build_image
from imagejobd.building.purging import leftovers, purge, purge_surely
from imagejobd.building.pushing import push_image
from imagejobd.kinds.build import spec as specs
from imagejobd.kinds.build.fetch import parse_url
from imagejobd.kinds.build.fetching import fetch_context
from imagejobd.kinds.build.spec import BuildSpec
from imagejobd.kinds.build.tools import Tools
from imagejobd.model.circuit import peer_name
from imagejobd.model.failpoint import failpoint
from imagejobd.model.job import Job, Json, NewJob
from imagejobd.model.reference import ImageReference
from imagejobd.model.work import Accepted, Upload, Work
from imagejobd.registry.http.address import peer_of


class BuildKind:
    """Implements `model.work.Kind`."""

    name = "build"
    uses_engine = True

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._building = tools.building

    async def receive(self, body: AsyncIterable[bytes]) -> Upload:
        """Take a request's tar. Raises `Permanent(invalid | too_large)` naming the member."""
        settings = self._tools.settings
        context = await take_in(self._building.blobs, body, settings.bounds, upload_max_bytes=settings.upload_max_bytes)
        digest = str(context.digest)
        return Upload(fields={"context": digest, "dockerfile": context.dockerfile}, blobs=(digest,))

    def release(self, upload: Upload) -> None:
        for digest in upload.blobs:
            self._building.blobs.release(digest)

    def parse(self, spec: Json, upload: Upload | None = None) -> Accepted:
        engine = self._building.engine
        # Nothing is asked at the door: what an engine that is not known yet would refuse, the build refuses.
        knows_heredocs = engine.info is None or engine.info.knows_heredocs(engine.settings.builder)
        return specs.parse(spec, upload, policy=self._building.policy, knows_heredocs=knows_heredocs)

    async def preflight(self, job: NewJob) -> None:
        """A build's bases are asked for when it runs."""

    def hosts(self, job: Job) -> Collection[str]:
        """The registry of the image, and where the context is while it has not been fetched."""
        spec = msgspec.convert(job.spec, BuildSpec)
        if job.checkpoint.get("pushed", {}).keys() >= {str(reference) for reference in spec.references}:
            return ()
        found = {peer_name(reference.host) for reference in spec.references}
        if spec.tar_url is not None and "context" not in job.checkpoint:
            found.add(peer_of(parse_url(spec.tar_url)))
        return found

    async def run(self, work: Work) -> Json:
        spec = msgspec.convert(work.job.spec, BuildSpec)
        names = [str(reference) for reference in spec.references]
        # After the last push the purge takes the image away, so an attempt that resumes there has nothing to find.
        if not work.checkpoint.get("pushed", {}).keys() >= set(names):
            await self._build_and_push(work, spec)
        failpoint("before_purge")
        await purge_surely(work, self.discard, timeout_s=self._tools.settings.purge_timeout_s)
        failpoint("after_purge")
        digests = work.checkpoint["pushed"]
        image_id = work.checkpoint["built"]["id"]
        return {"image": names[0], "digest": digests[names[0]], "image_id": image_id, "pushed": digests}

    async def _build_and_push(self, work: Work, spec: BuildSpec) -> None:
        settings = self._tools.settings
        own_host = ImageReference.parse(spec.image).host
        access = self._building.access(work, own_host=own_host, own=spec.credentials(work.secrets))
        await self._building.egress.check_registry(own_host)
        context = await fetch_context(self._tools, work, spec)
        recipe = _recipe(spec, timeout_s=settings.build_timeout_s)
        image = await build_image(self._building, work, recipe, context, access)
        await push_image(self._building, work, spec.references, image, access, timeout_s=settings.push_timeout_s)

    async def leftovers(self) -> set[str]:
        return await leftovers(self._building)

    async def discard(self, uuid: str, checkpoint: Mapping[str, Any]) -> None:
        await purge(self._building, uuid)


def _recipe(spec: BuildSpec, *, timeout_s: float) -> Recipe:
    return Recipe(
        timeout_s=timeout_s,
        build_args=spec.build_args,
        target=spec.target or "",
        labels=spec.labels,
        platform=spec.platform or "",
        nocache=spec.nocache,
        pull=spec.pull,
    )
