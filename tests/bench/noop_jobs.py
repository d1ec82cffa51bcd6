"""No-op jobs through the daemon's own store and runner, in a process of its own: `python -m bench.noop_jobs FOLDER N`.

Prints how many seconds passed from the first acceptance to the last job's durable end.
"""

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

import uvloop

from imagejobd import logs
from imagejobd.model.circuit import Circuits
from imagejobd.model.clock import Clock
from imagejobd.model.job import Json, NewJob, uuid7
from imagejobd.model.kind import Accepted, JobContext, JobKind, Upload
from imagejobd.runner.gate import EngineGate
from imagejobd.runner.runner import Runner
from imagejobd.runner.settings import Limits
from imagejobd.store.sqlite.store import SqliteStore
from imagejobd.store.vault import Vault

CALLERS = 64
SLOTS = 64
KIND = "noop"
POLL_S = 0.005


class Noop(JobKind):
    """A kind of job that does nothing but be counted."""

    name = KIND

    def __init__(self) -> None:
        self.runs = 0

    def parse(self, spec: Json, upload: Upload | None = None) -> Accepted:
        return Accepted(spec)

    async def run(self, ctx: JobContext) -> Json:
        self.runs += 1
        return {}


async def _answer() -> None:
    """An engine that is never asked for anything else."""


async def seconds_for(folder: Path, count: int) -> float:
    """Accept `count` jobs while a runner works them off; callers and runner share the loop, as in the daemon."""
    async with SqliteStore.open(folder / "imagejobd.db", vault=Vault.from_environment(folder)) as store:
        kind = Noop()
        limits = Limits(per_tenant_running=SLOTS, queue_max=count)
        runner = Runner(
            store,
            {KIND: kind},
            limits,
            slots={KIND: SLOTS},
            worker=uuid7(),
            gate=EngineGate(_answer),
            circuits=Circuits(),
            clock=Clock(),
        )
        running = asyncio.create_task(runner.run())
        began = time.perf_counter()
        numbers = iter(range(count))
        await asyncio.gather(*(_accept(store, numbers, count) for _ in range(CALLERS)))
        while await _unfinished(store):
            await asyncio.sleep(POLL_S)
        took = time.perf_counter() - began
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        if kind.runs != count:
            raise RuntimeError(f"{count} jobs were accepted and {kind.runs} were run")
        return took


async def _unfinished(store: SqliteStore) -> int:
    stats = await store.stats()
    return sum(stats.queued.values()) + sum(stats.running.values())


async def _accept(store: SqliteStore, numbers: Any, queue_max: int) -> None:
    for number in numbers:
        await store.enqueue(NewJob(kind=KIND, spec={"number": number}), queue_max=queue_max)


if __name__ == "__main__":
    logs.configure()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
        print(loop.run(seconds_for(Path(sys.argv[1]), int(sys.argv[2]))))
