"""Jobs whose registry does not answer: they wait without cost, one of them looks, and all go on together."""

import asyncio

import msgspec
import pytest
from runner_bench import QUICK, Bench, ScriptedKind

from imagejobd.model import circuit as circuit_module
from imagejobd.model.errors import ErrorCode, Temporary
from imagejobd.model.job import Json, State
from imagejobd.model.kind import JobContext

HOST = "registry.example:5000"


class Registry:
    """What stands in for a registry: up or down, and it counts who knocks."""

    def __init__(self, bench: Bench) -> None:
        self.is_up = False
        self.knocks = 0
        self._circuits = bench.circuits

    async def push(self, ctx: JobContext) -> Json:
        async with ctx.phase("pushing", timeout_s=60):
            await ctx.log("pushing\n")
            self._circuits.check(HOST)
            self.knocks += 1
            if not self.is_up:
                self._circuits.failed(HOST, f"{HOST} refused the connection")
                raise Temporary(ErrorCode.REGISTRY_UNAVAILABLE, f"{HOST} refused the connection", peer=HOST)
            self._circuits.answered(HOST)
        return {}


async def test_one_job_looks_for_all(bench: Bench) -> None:
    """Fifty jobs of a registry that is down knock a few times in all, and all succeed once it is back."""
    registry = Registry(bench)
    uuids = [(await bench.enqueue()).uuid for _ in range(50)]
    async with bench.running(ScriptedKind(registry.push)) as runner:
        for uuid in uuids:
            await bench.when(uuid, lambda job: job.waits_for == HOST)
        first = await bench.job(uuids[0])
        assert "registry.example:5000, which does not answer since 20" in (runner.waiting_for(first) or "")
        await asyncio.sleep(3)
        assert registry.knocks <= 6
        registry.is_up = True
        jobs = [await bench.ended(uuid) for uuid in uuids]
    assert {job.state for job in jobs} == {State.SUCCEEDED}


async def test_a_trial_is_one_job(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the peer is down the same jobs wait: their rows and history do not grow with the trials."""
    monkeypatch.setattr(circuit_module, "TRIAL_MAX_S", 0.01)
    monkeypatch.setattr(circuit_module, "TRIAL_FIRST_S", 0.01)
    registry = Registry(bench)
    uuid = (await bench.enqueue()).uuid
    async with bench.running(ScriptedKind(registry.push)):
        async with asyncio.timeout(30):
            while registry.knocks < 5:
                await asyncio.sleep(0.05)
        job = await bench.when(uuid, lambda job: job.state is State.QUEUED and job.faults >= 4)
        events = await bench.store.changes_since(0, job_id=job.id, limit=500)
        told = [event.type for event in events]
        assert told.count("retry") == 2
        assert len(events) <= 8
        assert (await bench.log_of(uuid)).count("refused the connection") == 1
        registry.is_up = True
        await bench.ended(uuid)
    assert "(this happened " in await bench.log_of(uuid)


async def test_the_wait_ends_with_the_time_for_retries(bench: Bench) -> None:
    """A job does not wait for its peer for longer than `retry_for_s`; then it fails and says how often it tried."""
    registry = Registry(bench)
    async with bench.running(ScriptedKind(registry.push), limits=msgspec.structs.replace(QUICK, retry_for_s=1.5)):
        job = await bench.ended((await bench.enqueue()).uuid)
    assert job.error is not None
    assert job.error.code is ErrorCode.REGISTRY_UNAVAILABLE
    assert "gave up after" in job.error.message


async def test_a_job_that_waits_can_be_cancelled(bench: Bench) -> None:
    """Waiting for a peer is waiting in the queue."""
    registry = Registry(bench)
    uuid = (await bench.enqueue()).uuid
    async with bench.running(ScriptedKind(registry.push)):
        await bench.when(uuid, lambda job: job.waits_for == HOST)
        assert await bench.store.request_cancel(uuid, tenant=None) is State.CANCELLED
        bench.circuits.answered(HOST)
        await asyncio.sleep(0.1)
        assert (await bench.job(uuid)).state is State.CANCELLED


async def test_the_same_fault_is_said_once_and_counted(bench: Bench) -> None:
    """Attempts that fail the same way in the same phase are one line in log and history; another fault is a new one."""
    tries = 0

    async def behaviour(ctx: JobContext) -> Json:
        nonlocal tries
        tries += 1
        async with ctx.phase("pushing", timeout_s=60):
            await ctx.log("pushing registry.example/a:1\n")
            if tries <= 3:
                raise Temporary(ErrorCode.REGISTRY_UNAVAILABLE, "the registry answered 503")
            if tries == 4:
                raise Temporary(ErrorCode.REGISTRY_UNAVAILABLE, "the registry answered 500")
        return {}

    async with bench.running(ScriptedKind(behaviour)):
        job = await bench.ended((await bench.enqueue()).uuid)
    log = await bench.log_of(job.uuid)
    assert (job.state, job.attempt) == (State.SUCCEEDED, 5)
    assert log.count("answered 503") == 1
    assert log.count("(this happened 3 times)") == 1
    assert log.count("answered 500") == 1
    assert "\n\n" not in log
    events = await bench.store.changes_since(0, job_id=job.id, limit=500)
    retries = [event.data for event in events if event.type == "retry"]
    assert [(data["error"]["message"][-3:], data.get("faults")) for data in retries] == [
        ("503", None),
        ("503", 3),
        ("500", 4),
    ]


async def test_progress_starts_the_time_for_retries_anew(bench: Bench) -> None:
    """A job that leaves the phase of its fault behind has its pauses, and its time, from the start again."""
    failed: set[str] = set()

    async def behaviour(ctx: JobContext) -> Json:
        for name in ("fetching", "pushing"):
            async with ctx.phase(name, timeout_s=60):
                if name not in failed:
                    failed.add(name)
                    raise Temporary(ErrorCode.REGISTRY_UNAVAILABLE, f"{name}: 503")
        return {}

    async with bench.running(ScriptedKind(behaviour)):
        uuid = (await bench.enqueue()).uuid
        fetching = await bench.when(uuid, lambda job: job.fault_phase == "fetching")
        pushing = await bench.when(uuid, lambda job: job.fault_phase == "pushing")
        await bench.ended(uuid)
    assert (fetching.faults, pushing.faults) == (1, 1)
    assert (fetching.faults_since_ms or 0) < (pushing.faults_since_ms or 0)
