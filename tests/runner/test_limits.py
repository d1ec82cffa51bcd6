"""How much runs at once, and whose turn it is."""

import asyncio
import time
from collections import Counter

import msgspec
from runner_bench import QUICK, Bench, ScriptedKind

from imagejobd.model.job import Json
from imagejobd.model.kind import JobContext
from imagejobd.runner.runner import POLL_S


class Gauge:
    """Counts what runs at once, in all and by tenant, and in which order tenants were served."""

    def __init__(self, hold_s: float = 0.01) -> None:
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.served: list[str] = []
        self._hold_s = hold_s

    async def __call__(self, ctx: JobContext) -> Json:
        tenant = ctx.job.tenant
        self.served.append(tenant)
        for name in ("all", tenant):
            self.now[name] += 1
            self.most[name] = max(self.most[name], self.now[name])
        await asyncio.sleep(self._hold_s)
        for name in ("all", tenant):
            self.now[name] -= 1
        return {}


async def test_no_more_than_the_slots_run(bench: Bench) -> None:
    """200 queued jobs with two slots: never more than two at once, all done."""
    gauge = Gauge(hold_s=0.001)
    jobs = [await bench.enqueue() for _ in range(200)]
    async with bench.running(ScriptedKind(gauge), slots=2):
        for job in jobs:
            await bench.ended(job.uuid)
    assert gauge.most["all"] == 2
    assert len(gauge.served) == 200


async def test_a_tenant_has_its_own_bound(bench: Bench) -> None:
    """One tenant's jobs fill at most `per_tenant_running` slots, however many are free."""
    gauge = Gauge()
    jobs = [await bench.enqueue(tenant="a") for _ in range(12)]
    limits = msgspec.structs.replace(QUICK, per_tenant_running=3)
    async with bench.running(ScriptedKind(gauge), slots=8, limits=limits):
        for job in jobs:
            await bench.ended(job.uuid)
    assert gauge.most["a"] == 3


async def test_tenants_take_turns(bench: Bench) -> None:
    """A tenant with one job does not wait behind another's hundred."""
    gauge = Gauge()
    crowd = [await bench.enqueue(tenant="crowd") for _ in range(40)]
    for tenant in ("b", "c", "d"):
        await bench.enqueue(tenant=tenant)
    async with bench.running(ScriptedKind(gauge), slots=2):
        for job in crowd:
            await bench.ended(job.uuid)
    assert {"b", "c", "d"} <= set(gauge.served[:8])


async def test_priority_comes_before_age(bench: Bench) -> None:
    """Within a tenant the higher priority goes first, then the older."""
    order: list[str] = []

    async def behaviour(ctx: JobContext) -> Json:
        order.append(ctx.job.labels["name"])
        return {}

    jobs = [
        await bench.enqueue(priority=priority, labels={"name": name})
        for name, priority in (("low", -5), ("first", 0), ("second", 0), ("high", 9))
    ]
    async with bench.running(ScriptedKind(behaviour), slots=1):
        for job in jobs:
            await bench.ended(job.uuid)
    assert order == ["high", "first", "second", "low"]


async def test_not_before_is_kept(bench: Bench) -> None:
    """A delayed job waits for its time while others pass it."""
    gauge = Gauge()
    due_ms = time.time_ns() // 1_000_000 + 2500
    delayed = await bench.enqueue(not_before_ms=due_ms)
    other = await bench.enqueue()
    async with bench.running(ScriptedKind(gauge), slots=1):
        passed = await bench.ended(other.uuid)
        late = await bench.ended(delayed.uuid)
    assert late.started_ms is not None
    assert passed.started_ms is not None
    assert late.started_ms >= due_ms
    assert passed.started_ms < due_ms


async def test_jobs_start_without_waiting_for_a_poll(bench: Bench) -> None:
    """A job that arrives, or a slot that becomes free, is noticed at once: 30 in a row take well under a poll each."""
    async with bench.running(ScriptedKind(Gauge(hold_s=0)), slots=1):
        async with asyncio.timeout(30 * POLL_S / 2):
            for _ in range(30):
                await bench.ended((await bench.enqueue()).uuid)
