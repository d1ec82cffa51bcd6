"""Draining against what happens at the same moment."""

import asyncio
from typing import Any

from runner_bench import Bench, ScriptedKind

from imagejobd.model.job import Claim, Json, State
from imagejobd.model.kind import JobContext
from imagejobd.runner import runner as runner_module
from imagejobd.store.sqlite.store import SqliteStore


async def forever(ctx: JobContext) -> Json:
    await asyncio.sleep(3600)
    return {}


async def test_a_job_claimed_as_the_drain_begins(bench: Bench, monkeypatch: Any) -> None:
    """A claim that is under way when the drain begins is waited for, and its job goes back to the queue unharmed."""
    claiming = asyncio.Event()
    claim = SqliteStore.claim

    async def slow_claim(store: SqliteStore, *args: Any, **kwargs: Any) -> list[Claim]:
        claimed = await claim(store, *args, **kwargs)
        if claimed:
            claiming.set()
            await asyncio.sleep(0.05)
        return claimed

    monkeypatch.setattr(SqliteStore, "claim", slow_claim)
    async with bench.running(ScriptedKind(forever)) as runner:
        uuid = (await bench.enqueue()).uuid
        await claiming.wait()
        await runner.drain(10)
    job = await bench.job(uuid)
    assert (job.state, job.attempt, job.crashes) == (State.QUEUED, 0, 0)


async def test_a_job_that_does_not_stop_does_not_hold_the_drain(bench: Bench, monkeypatch: Any) -> None:
    """The daemon leaves without a job whose work ignores its cancellation; it waits for the next start, unblamed."""
    monkeypatch.setattr(runner_module, "INTERRUPT_TIMEOUT_S", 0.05)
    begun, let_go = asyncio.Event(), asyncio.Event()

    async def deaf(ctx: JobContext) -> Json:
        begun.set()
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                continue
        return {}

    async with bench.running(ScriptedKind(deaf)) as runner:
        uuid = (await bench.enqueue()).uuid
        await begun.wait()
        async with asyncio.timeout(20):
            await runner.drain(0)
        job = await bench.job(uuid)
        assert (job.state, job.attempt, job.crashes) == (State.QUEUED, 0, 0)
        let_go.set()
