"""A real store and a kind whose work each test writes itself."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from typing import Any

from imagejobd.model.circuit import Circuits
from imagejobd.model.clock import Clock
from imagejobd.model.errors import Fault
from imagejobd.model.job import Enqueued, Job, Json, NewJob
from imagejobd.model.kind import Accepted, JobContext, JobKind, Upload
from imagejobd.runner.gate import EngineGate
from imagejobd.runner.runner import Runner
from imagejobd.runner.settings import Limits
from imagejobd.store.sqlite.store import SqliteStore

END_TIMEOUT_S = 10.0
QUICK = Limits(retry_first_s=0.01, retry_max_s=0.02)

Behaviour = Callable[[JobContext], Awaitable[Json]]


class ScriptedKind(JobKind):
    """The kind `noop`, or any other name; what it does is `behaviour`, what it was told to discard is kept."""

    def __init__(self, behaviour: Behaviour, name: str = "noop", *, uses_engine: bool = False) -> None:
        self.name = name
        self.uses_engine = uses_engine
        self.behaviour = behaviour
        self.needed_hosts: set[str] = set()
        self.discarded: list[str] = []
        self.outside: set[str] = set()
        self.discard_fault: Fault | None = None

    def parse(self, spec: Json, upload: Upload | None = None) -> Accepted:
        return Accepted(spec)

    def hosts(self, job: Job) -> Collection[str]:
        return self.needed_hosts

    async def run(self, ctx: JobContext) -> Json:
        return await self.behaviour(ctx)

    async def leftovers(self) -> set[str]:
        return set(self.outside)

    async def discard(self, uuid: str, checkpoint: Mapping[str, Any]) -> None:
        if self.discard_fault:
            raise self.discard_fault
        self.discarded.append(uuid)
        self.outside.discard(uuid)


class Bench:
    """A store and the means to run a runner on it."""

    def __init__(self, store: SqliteStore) -> None:
        self.store = store
        self.circuits = Circuits()
        self.clock = Clock()
        self.engine_fault: Fault | None = None
        self.gate = EngineGate(self._probe_engine)

    async def _probe_engine(self) -> None:
        if self.engine_fault is not None:
            raise self.engine_fault

    async def enqueue(self, **fields: Any) -> Enqueued:
        return await self.store.enqueue(NewJob(kind="noop", spec={}, **fields), queue_max=10_000)

    @asynccontextmanager
    async def running(
        self, kind: ScriptedKind, *, limits: Limits = QUICK, slots: int = 4, worker: str = "w1"
    ) -> AsyncIterator[Runner]:
        """A runner at work for as long as the block lasts; left without a drain it is a crash."""
        runner = Runner(
            self.store,
            {kind.name: kind},
            limits,
            slots={kind.name: slots},
            worker=worker,
            gate=self.gate,
            circuits=self.circuits,
            clock=self.clock,
        )
        task = asyncio.create_task(runner.run())
        try:
            yield runner
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def job(self, uuid: str) -> Job:
        found = await self.store.get(uuid, tenant=None)
        assert found is not None
        return found

    async def ended(self, uuid: str) -> Job:
        """The job once it is final."""
        return await self.when(uuid, lambda job: job.state.is_final)

    async def when(self, uuid: str, is_so: Callable[[Job], bool]) -> Job:
        """The job as soon as `is_so` holds of it."""
        async with asyncio.timeout(END_TIMEOUT_S):
            while not is_so(job := await self.job(uuid)):
                await asyncio.sleep(0.005)
        return job

    async def log_of(self, uuid: str) -> str:
        blocks = await self.store.read_log((await self.job(uuid)).id, from_offset=0, max_blocks=1000)
        return "".join(block.text for block in blocks)
