"""Paused kinds in the runner: what runs goes on, what waits says why, and the pause is no waiting."""

import asyncio

import pytest
from runner_bench import Bench, ScriptedKind

from imagejobd.model.errors import ErrorCode, Temporary
from imagejobd.model.job import Json, NewJob, State
from imagejobd.model.kind import JobContext
from imagejobd.runner import retention
from imagejobd.runner.eta import eta_s
from imagejobd.runner.pauses import covered_ms
from imagejobd.runner.retention import expire_loop
from imagejobd.store.protocol import Backlog, Capacity

REASON = "the disk is changed"
NOOP = ("noop",)


async def test_what_runs_goes_on_and_what_waits_waits(bench: Bench) -> None:
    """A pause stops no running job; its retry, and jobs that come later, wait until the kind is resumed."""
    may_end = asyncio.Event()

    async def behaviour(ctx: JobContext) -> Json:
        await may_end.wait()
        if ctx.job.attempt == 1 and "flaky" in ctx.job.labels:
            raise Temporary(ErrorCode.REGISTRY_UNAVAILABLE, "503")
        return {}

    async with bench.running(ScriptedKind(behaviour)) as runner:
        sound, flaky = (await bench.enqueue()).uuid, (await bench.enqueue(labels={"flaky": "1"})).uuid
        for uuid in (sound, flaky):
            await bench.when(uuid, lambda job: job.state is State.RUNNING)
        await bench.store.pause(NOOP, reason=REASON, by="jane")
        late = (await bench.enqueue()).uuid
        may_end.set()
        assert (await bench.ended(sound)).state is State.SUCCEEDED
        again = await bench.when(flaky, lambda job: job.state is State.QUEUED)
        await bench.when(late, lambda job: runner.waiting_for(job) == f"paused: {REASON}")
        assert runner.waiting_for(again) == runner.waiting_for_kind("noop") == f"paused: {REASON}"
        assert await runner.eta_s(await bench.job(late)) is None
        # A claim that is asked for now finds nothing, whoever asks.
        assert not await bench.store.claim("w1", Capacity({"noop": 9}, 9))
        await bench.store.resume(NOOP)
        for uuid in (flaky, late):
            assert (await bench.ended(uuid)).state is State.SUCCEEDED
        assert runner.waiting_for_kind("noop") is None


async def test_a_pause_is_known_from_the_start(bench: Bench) -> None:
    """A runner that is started on a paused kind starts none of its jobs, and says why, with no one having to repeat
    it."""

    async def behaviour(ctx: JobContext) -> Json:
        return {}

    await bench.store.pause(NOOP, reason="", by="jane")
    uuid = (await bench.enqueue()).uuid
    async with bench.running(ScriptedKind(behaviour)) as runner:
        await bench.when(uuid, lambda job: runner.waiting_for(job) == "paused")
        assert (await bench.job(uuid)).attempt == 0


async def test_the_time_of_a_pause_is_no_waiting(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job of a paused kind does not wait too long, however long that is; of another kind it does. Once the kind is
    resumed the time that it has waited counts again, without the pause."""
    monkeypatch.setattr(retention, "EXPIRE_EVERY_S", 0.01)

    async def behaviour(ctx: JobContext) -> Json:
        return {}

    async with bench.running(ScriptedKind(behaviour)) as runner:
        await bench.store.pause(NOOP, reason=REASON, by="jane")
        while runner.waiting_for_kind("noop") is None:
            await asyncio.sleep(0.005)
        paused = (await bench.enqueue()).uuid
        other = (await bench.store.enqueue(NewJob(kind="other", spec={}), queue_max=99)).uuid
        loop = asyncio.create_task(expire_loop(bench.store, 0.2, bench.clock, runner.downtime_ms))
        assert (await bench.ended(other)).state is State.FAILED
        assert (await bench.job(paused)).state is State.QUEUED
        await bench.store.resume(NOOP)
        assert (await bench.ended(paused)).state is State.SUCCEEDED
        assert runner.downtime_ms("noop", 0) >= 200
        assert runner.downtime_ms("other", 0) == 0
        loop.cancel()


@pytest.mark.parametrize(
    ("intervals", "since_ms", "ms"),
    [
        ([], 0, 0),
        ([(10, 20), (15, 30), (12, 14)], 0, 20),
        ([(10, 20), (30, 40)], 15, 15),
        ([(10, 20)], 20, 0),
    ],
)
def test_times_that_overlap_count_once(intervals: list[tuple[int, int]], since_ms: int, ms: int) -> None:
    """An engine that is away while the kind is paused takes no time twice."""
    assert covered_ms(intervals, since_ms) == ms


@pytest.mark.parametrize(
    ("ahead", "running_since_ms", "slots", "seconds"),
    [
        (0, [], 2, 0.0),
        (0, [1000], 2, 0.0),
        (1, [1000], 2, 3.0),
        (0, [1000, 2000], 2, 3.0),
        (1, [1000, 2000], 2, 4.0),
        (2, [1000, 2000], 2, 13.0),
        (0, [-90_000, 2000], 2, 0.0),
        (0, [9000], 1, 10.0),
        (5, [], 1, 50.0),
    ],
)
def test_an_estimate_goes_through_the_slots(
    ahead: int, running_since_ms: list[int], slots: int, seconds: float
) -> None:
    """Where all jobs take ten seconds and it is the eighth: who goes before, what runs, and which slot is free when."""
    backlog = Backlog(ahead, running_since_ms, [9000, 10_000, 99_000])
    assert eta_s(backlog, slots, now_ms=8000) == seconds


def test_nothing_is_estimated_of_what_never_succeeded() -> None:
    """Without a duration there is no guess."""
    assert eta_s(Backlog(3, [], []), 2, now_ms=0) is None


async def test_a_queued_job_knows_when_it_may_start(bench: Bench) -> None:
    """From the durations of its kind, but not while it waits for its own time."""
    may_end = asyncio.Event()

    async def behaviour(ctx: JobContext) -> Json:
        if "long" in ctx.job.labels:
            await may_end.wait()
        return {}

    async with bench.running(ScriptedKind(behaviour), slots=1) as runner:
        first = (await bench.enqueue(labels={"long": "1"})).uuid
        await bench.when(first, lambda job: job.state is State.RUNNING)
        queued = await bench.job((await bench.enqueue()).uuid)
        assert await runner.eta_s(queued) is None
        delayed = await bench.job((await bench.enqueue(not_before_ms=2**50)).uuid)
        may_end.set()
        await bench.ended(queued.uuid)
        may_end.clear()
        await bench.when((await bench.enqueue(labels={"long": "1"})).uuid, lambda job: job.state is State.RUNNING)
        again = await bench.job((await bench.enqueue()).uuid)
        estimate = await runner.eta_s(again)
        assert estimate is not None
        assert 0 <= estimate < 60
        assert await runner.eta_s(delayed) is None
        may_end.set()
        await bench.ended(again.uuid)
