"""Dispatched payloads on a real store and runner, with a real engine behind them."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from harness.building import image_builder
from imagejobd.engine import images
from imagejobd.engine.client import Engine
from imagejobd.jobs.dispatch import DispatchKind, DispatchSettings
from imagejobd.model.job import Enqueued, Job, NewJob, uuid7
from imagejobd.model.ownership import JOB_PREFIX
from imagejobd.registry.client import RegistryClient
from imagejobd.store.blobs import BlobStore
from imagejobd.store.sqlite.store import SqliteStore
from runner.runner_bench import QUICK, Bench


class DispatchBench(Bench):
    """`kind` is the real one, with all that it works on."""

    def __init__(self, store: SqliteStore, blobs: BlobStore, engine: Engine, registry: RegistryClient) -> None:
        super().__init__(store)
        self.blobs = blobs
        self.engine = engine
        self._registry = registry
        self._uuids: list[str] = []

    def kind(self, engine: Engine | None = None, **settings: Any) -> DispatchKind:
        client = engine or self.engine
        builder = image_builder(client, self._registry, self.blobs)
        return DispatchKind(builder, DispatchSettings(**settings))

    async def submit(self, kind: DispatchKind, payload: bytes, *, tenant: str = "7") -> Enqueued:
        upload = await kind.receive(_pieces(payload), {})
        accepted = kind.parse({}, upload)
        job = NewJob(kind=kind.name, spec=accepted.spec, blobs=accepted.blobs, uuid=uuid7(), tenant=tenant)
        made = await self.store.enqueue(job, queue_max=10)
        kind.release(upload)
        self._uuids.append(made.uuid)
        return made

    async def run(self, kind: DispatchKind, payload: bytes, *, tenant: str = "7") -> Job:
        """The job once it has ended."""
        made = await self.submit(kind, payload, tenant=tenant)
        async with self.running(kind, limits=QUICK):  # type: ignore[arg-type]
            return await self.ended(made.uuid)

    async def phases(self, job: Job) -> list[str]:
        return [phase.name for phase in await self.store.phases(job.id)]

    def content(self, job: Job) -> bytes:
        """What the job's result names, as the content store has it."""
        assert job.result is not None, job.error
        return self.blobs.path(job.result["location"]["digest"]).read_bytes()

    async def left(self, *, folder: Path) -> list[str]:
        """What is left of the bench's jobs in the engine, which others use too, and in the spool."""
        tags = await images.list_tags(self.engine, f"{JOB_PREFIX}*")
        return [tag for tag in tags if any(uuid in tag for uuid in self._uuids)] + [
            path.name for path in (folder / "spool").iterdir()
        ]


async def _pieces(payload: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(payload), 100_000):
        yield payload[at : at + 100_000]
