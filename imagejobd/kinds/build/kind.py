"""The `build` kind: fetch → build → push → purge, each phase resumable from its checkpoint.

A built image lives in the engine under `imagejobd/<uuid>:<attempt>`; the user's own tag is put on it only while it is
pushed. After the job, however it ended, the engine holds nothing of it but the build cache.
"""

from collections.abc import AsyncIterable, Mapping
from typing import Any

import msgspec
import structlog

from imagejobd.engine import images
from imagejobd.kinds.build import spec as specs
from imagejobd.kinds.build.building import build_image
from imagejobd.kinds.build.fetching import fetch_context
from imagejobd.kinds.build.purging import purge
from imagejobd.kinds.build.pushing import push_image
from imagejobd.kinds.build.receiving import receive
from imagejobd.kinds.build.spec import BuildSpec
from imagejobd.kinds.build.tools import Tools
from imagejobd.model.errors import ClaimLost, Fault
from imagejobd.model.failpoint import failpoint
from imagejobd.model.ids import is_uuid
from imagejobd.model.job import Json
from imagejobd.model.reserved import JOB_PREFIX
from imagejobd.model.work import Accepted, Upload, Work

log = structlog.get_logger("imagejobd.build")


class BuildKind:
    """Implements `model.work.Kind`."""

    name = "build"

    def __init__(self, tools: Tools) -> None:
        self._tools = tools

    async def receive(self, body: AsyncIterable[bytes]) -> Upload:
        return await receive(self._tools, body)

    def release(self, upload: Upload) -> None:
        for digest in upload.blobs:
            self._tools.blobs.release(digest)

    def parse(self, spec: Json, upload: Upload | None = None) -> Accepted:
        return specs.parse(spec, upload)

    async def preflight(self, accepted: Accepted) -> None:
        """A build's bases are asked for when it runs."""

    async def run(self, work: Work) -> Json:
        spec = msgspec.convert(work.job.spec, BuildSpec)
        names = [str(reference) for reference in spec.references]
        # After the last push the purge takes the image away, so an attempt that resumes there has nothing to find.
        if not work.checkpoint.get("pushed", {}).keys() >= set(names):
            context = await fetch_context(self._tools, work, spec)
            await push_image(self._tools, work, spec, await build_image(self._tools, work, spec, context))
        failpoint("before_purge")
        await self._purge(work)
        failpoint("after_purge")
        digests = work.checkpoint["pushed"]
        image_id = work.checkpoint["built"]["id"]
        return {"image": names[0], "digest": digests[names[0]], "image_id": image_id, "pushed": digests}

    async def _purge(self, work: Work) -> None:
        """The purging phase. Its failing takes nothing from a push that is proved: the sweep purges later."""
        try:
            async with work.phase("purging", timeout_s=self._tools.settings.purge_timeout_s):
                await purge(self._tools, work.job.uuid, work.checkpoint)
        except ClaimLost:
            raise
        except Fault as fault:
            log.warning("could not purge after the push; the next sweep will", job=work.job.uuid, error=fault.message)

    async def leftovers(self) -> set[str]:
        await self._tools.bases.sweep()
        tags = await images.list_tags(self._tools.engine, JOB_PREFIX)
        named = {tag.removeprefix(JOB_PREFIX).partition(":")[0] for tag in tags}
        return {uuid for uuid in named if is_uuid(uuid)}

    async def discard(self, uuid: str, checkpoint: Mapping[str, Any]) -> None:
        await purge(self._tools, uuid, checkpoint)
