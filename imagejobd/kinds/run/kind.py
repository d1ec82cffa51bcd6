"""The `run` kind: build → run sandboxed → collect → purge, each phase resumable from its checkpoint."""

from collections.abc import AsyncIterable, Collection, Mapping
from typing import Any

import msgspec

from imagejobd.building.context import Context
from imagejobd.building.image import Recipe, build_image
from imagejobd.building.purging import leftovers, ours, purge, purge_surely
from imagejobd.engine import sandbox
from imagejobd.kinds.run import spec as specs
from imagejobd.kinds.run.collecting import collect
from imagejobd.kinds.run.running import run_image
from imagejobd.kinds.run.spec import RunSpec
from imagejobd.kinds.run.tools import Tools
from imagejobd.model.errors import Permanent, invalid
from imagejobd.model.failpoint import failpoint
from imagejobd.model.job import Job, Json, NewJob
from imagejobd.model.work import Accepted, Upload, Work


class RunKind:
    """Implements `model.work.Kind`."""

    name = "run"
    uses_engine = True

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._building = tools.building

    async def receive(self, body: AsyncIterable[bytes]) -> Upload:
        raise _no_context()

    def release(self, upload: Upload) -> None:
        """There are no uploads."""

    def parse(self, spec: Json, upload: Upload | None = None) -> Accepted:
        if upload is not None:
            raise _no_context()
        engine = self._building.engine
        # Nothing is asked at the door: what an engine that is not known yet would refuse, the build refuses.
        knows_heredocs = engine.info is None or engine.info.knows_heredocs(engine.settings.builder)
        return specs.parse(spec, policy=self._building.policy, knows_heredocs=knows_heredocs)

    async def preflight(self, job: NewJob) -> None:
        """A build's bases are asked for when it runs."""

    def hosts(self, job: Job) -> Collection[str]:
        """None: which bases the engine has to pull, only the build finds out."""
        return ()

    async def run(self, work: Work) -> Json:
        # After the metrics are kept the purge takes everything away, so an attempt that resumes there finds nothing.
        if "collected" not in work.checkpoint:
            await self._measure(work)
        failpoint("before_purge")
        await purge_surely(work, self.discard, timeout_s=self._tools.settings.purge_timeout_s)
        failpoint("after_purge")
        result: Json = work.checkpoint["collected"]
        return result

    async def _measure(self, work: Work) -> None:
        settings = self._tools.settings
        spec = msgspec.convert(work.job.spec, RunSpec)
        recipe = Recipe(
            timeout_s=settings.build_timeout_s,
            own_args=specs.own_args(work.job.uuid),
            network=settings.network,
        )
        context = Context(digest=None, dockerfile=spec.dockerfile)
        image = await build_image(self._building, work, recipe, context, self._building.access(work))
        container = await run_image(self._tools, work, image)
        await collect(self._tools, work, container)

    async def leftovers(self) -> set[str]:
        sandboxes = await sandbox.leftovers(self._building.engine)
        return await ours(self._building, sandboxes) | await leftovers(self._building)

    async def discard(self, uuid: str, checkpoint: Mapping[str, Any]) -> None:
        """The container first: as long as it is there, the engine does not let go of its image."""
        await sandbox.discard(self._building.engine, uuid)
        await purge(self._building, uuid)


def _no_context() -> Permanent:
    return invalid("a run has no context: it takes one Dockerfile, as spec.dockerfile")
