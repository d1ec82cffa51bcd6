"""What is done about jobs whose daemon is gone."""

import asyncio

import pytest
from runner_bench import Bench, ScriptedKind

from imagejobd.model.errors import ErrorCode, Temporary
from imagejobd.model.job import Json, State
from imagejobd.model.kind import JobContext
from imagejobd.runner.recovery import rescue, sweep, sweep_loop
from imagejobd.store.protocol import CRASHES_MAX, Capacity
from imagejobd.store.sqlite.store import SqliteStore

ROOM = Capacity({"noop": 10}, 10)


async def forever(ctx: JobContext) -> Json:
    await asyncio.sleep(3600)
    return {}


async def done(ctx: JobContext) -> Json:
    return {"checkpoint": dict(ctx.checkpoint)}


async def test_a_crashed_job_goes_on(bench: Bench) -> None:
    """A job that a dead worker left running runs again from its checkpoint; the crash is no attempt."""
    uuid = (await bench.enqueue()).uuid
    [claim] = await bench.store.claim("dead", ROOM)
    await bench.store.checkpoint(claim, {"built": "x"})
    await rescue(bench.store, "w1", crashes_max=CRASHES_MAX)
    assert (await bench.job(uuid)).state is State.QUEUED
    async with bench.running(ScriptedKind(done)):
        job = await bench.ended(uuid)
    assert (job.state, job.attempt, job.crashes) == (State.SUCCEEDED, 1, 1)
    assert job.result == {"checkpoint": {"built": "x"}}


async def test_crash_loops_end(bench: Bench) -> None:
    """A job that was running through three crashes is quarantined instead of taking the daemon down again."""
    uuid = (await bench.enqueue()).uuid
    for number in range(CRASHES_MAX):
        assert len(await bench.store.claim(f"dead{number}", ROOM)) == 1
        await rescue(bench.store, "w1", crashes_max=CRASHES_MAX)
    job = await bench.job(uuid)
    assert job.error is not None
    assert (job.state, job.error.code, job.crashes) == (State.FAILED, ErrorCode.QUARANTINED, 3)


async def test_own_jobs_are_not_rescued(bench: Bench) -> None:
    """Rescue leaves alone what this worker itself runs."""
    uuid = (await bench.enqueue()).uuid
    await bench.store.claim("w1", ROOM)
    await rescue(bench.store, "w1", crashes_max=CRASHES_MAX)
    assert (await bench.job(uuid)).state is State.RUNNING


async def test_a_cancel_survives_the_crash(bench: Bench) -> None:
    """A job somebody wanted cancelled when the daemon died is cancelled, not run again."""
    uuid = (await bench.enqueue()).uuid
    await bench.store.claim("dead", ROOM)
    await bench.store.request_cancel(uuid, tenant=None)
    await rescue(bench.store, "w1", crashes_max=CRASHES_MAX)
    assert (await bench.job(uuid)).state is State.CANCELLED


async def test_sweep_removes_only_what_belongs_to_no_live_job(bench: Bench) -> None:
    """Leftovers of ended and unknown jobs go; those of queued and running jobs stay."""
    queued = (await bench.enqueue()).uuid
    ended = (await bench.enqueue(priority=1)).uuid
    kind = ScriptedKind(forever)
    kind.outside = {queued, ended, "00000000-0000-7000-8000-000000000000"}
    await bench.store.request_cancel(ended, tenant=None)
    await sweep(bench.store, [kind])
    assert kind.outside == {queued}


async def test_a_cancel_is_followed_by_a_sweep(bench: Bench) -> None:
    """What a job left that is cancelled in the queue goes at once, although no attempt is there to remove it."""
    uuid = (await bench.enqueue()).uuid
    kind = ScriptedKind(forever)
    kind.outside = {uuid}
    sweeping = asyncio.create_task(sweep_loop(bench.store, [kind]))
    await asyncio.sleep(0.05)
    assert kind.outside == {uuid}
    await bench.store.request_cancel(uuid, tenant=None)
    async with asyncio.timeout(5):
        while kind.outside:
            await asyncio.sleep(0.005)
    sweeping.cancel()


async def test_one_stubborn_leftover_does_not_protect_the_others(bench: Bench) -> None:
    """A thing that cannot be removed is told of; everything else is removed all the same."""
    stubborn, plain = ScriptedKind(forever), ScriptedKind(forever, name="other")
    stubborn.outside, plain.outside = {"a"}, {"b"}
    stubborn.discard_fault = Temporary(ErrorCode.CONFLICT, "in use")
    assert await sweep(bench.store, [stubborn, plain]) == {"in use"}
    assert (stubborn.outside, plain.outside) == ({"a"}, set())


async def test_a_defect_of_one_kind_does_not_protect_the_others(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kind that breaks while it lists or removes ends no sweep, and the place of the defect is told."""
    breaking, plain = ScriptedKind(forever), ScriptedKind(forever, name="other")
    plain.outside = {"b"}

    async def broken() -> set[str]:
        raise KeyError("Labels")

    monkeypatch.setattr(breaking, "leftovers", broken)
    [told] = await sweep(bench.store, [breaking, plain])
    assert "KeyError('Labels') at " in told
    assert plain.outside == set()


async def test_the_lost_claim_changes_nothing(bench: Bench) -> None:
    """An attempt whose claim was taken away writes no ending over the new holder's."""
    started = asyncio.Event()
    go_on = asyncio.Event()

    async def behaviour(ctx: JobContext) -> Json:
        started.set()
        await go_on.wait()
        return {"by": "old"}

    uuid = (await bench.enqueue()).uuid
    async with bench.running(ScriptedKind(behaviour), worker="old", slots=1):
        await started.wait()
        await rescue(bench.store, "new", crashes_max=CRASHES_MAX)
        [claim] = await bench.store.claim("new", Capacity({"noop": 1}, 1))
        go_on.set()
        await asyncio.sleep(0.1)
        job = await bench.job(uuid)
        assert (job.state, job.worker, job.result) == (State.RUNNING, "new", None)
        assert claim.job.uuid == uuid


async def test_a_sweep_survives_a_store_that_cannot_be_read(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nobody can say who lives, nothing is removed, and the sweep tells why."""
    kind = ScriptedKind(forever)
    kind.outside = {"a"}

    async def unreadable(store: SqliteStore) -> set[str]:
        raise Temporary(ErrorCode.INTERNAL, "locked")

    monkeypatch.setattr(SqliteStore, "live", unreadable)
    assert await sweep(bench.store, [kind]) == {"locked"}
    assert kind.outside == {"a"}


async def test_a_job_that_the_list_of_the_living_missed_is_spared(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not final lives, whatever was listed before."""
    uuid = (await bench.enqueue()).uuid
    kind = ScriptedKind(forever)
    kind.outside = {uuid}

    async def nobody(store: SqliteStore) -> set[str]:
        return set()

    monkeypatch.setattr(SqliteStore, "live", nobody)
    assert await sweep(bench.store, [kind]) == set()
    assert kind.outside == {uuid}
