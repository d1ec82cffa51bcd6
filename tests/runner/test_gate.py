"""What jobs that need the engine do while it is away."""

import asyncio

import msgspec
from runner_bench import QUICK, Bench, ScriptedKind
from structlog.testing import capture_logs

from imagejobd.model.clock import Clock
from imagejobd.model.errors import ENGINE, ErrorCode, Temporary
from imagejobd.model.job import Json, State
from imagejobd.model.kind import JobContext
from imagejobd.runner import gate as gate_module
from imagejobd.runner.retention import expire_loop

AWAY = Temporary(ErrorCode.ENGINE_UNAVAILABLE, "connection refused", peer=ENGINE)


async def done(ctx: JobContext) -> Json:
    return {}


async def test_nothing_is_claimed_while_the_engine_is_away(bench: Bench) -> None:
    """Jobs that need the engine stay queued and untouched, say what they wait for, and run as soon as it answers."""
    bench.engine_fault = AWAY
    uuids = [(await bench.enqueue()).uuid for _ in range(20)]
    async with bench.running(ScriptedKind(done, uses_engine=True)) as runner:
        await asyncio.sleep(1.5)
        jobs = [await bench.job(uuid) for uuid in uuids]
        assert {(job.state, job.attempt, job.faults) for job in jobs} == {(State.QUEUED, 0, 0)}
        waiting = runner.waiting_for(jobs[0]) or ""
        assert waiting.startswith("waiting for the Docker Engine since 20")
        assert waiting.endswith("connection refused")
        bench.engine_fault = None
        for uuid in uuids:
            assert (await bench.ended(uuid)).state is State.SUCCEEDED
        assert runner.waiting_for(jobs[0]) is None


async def test_other_kinds_go_on(bench: Bench) -> None:
    """A kind that does not need the engine does not wait for it."""
    bench.engine_fault = AWAY
    async with bench.running(ScriptedKind(done, uses_engine=False)):
        assert (await bench.ended((await bench.enqueue()).uuid)).state is State.SUCCEEDED


async def test_an_attempt_that_the_engine_cut_is_no_attempt(bench: Bench) -> None:
    """Work that an engine ended by going away is no attempt, and fails no job, however often it happens; the log says
    what the job waits for."""
    cuts = 0

    async def behaviour(ctx: JobContext) -> Json:
        nonlocal cuts
        if cuts < 3:
            cuts += 1
            bench.engine_fault = AWAY
            asyncio.get_running_loop().call_later(0.2, setattr, bench, "engine_fault", None)
            raise AWAY
        return {}

    limits = msgspec.structs.replace(QUICK, retry_for_s=0.0)
    async with bench.running(ScriptedKind(behaviour, uses_engine=True), limits=limits):
        job = await bench.ended((await bench.enqueue()).uuid)
    assert (job.state, job.attempt, cuts) == (State.SUCCEEDED, 1, 3)
    log = await bench.log_of(job.uuid)
    assert log.count("the job goes on when the Docker Engine answers") == 1
    assert "(this happened 3 times)" in log


async def test_an_engine_that_is_back_has_cut_the_attempt_all_the_same(bench: Bench) -> None:
    """Work that ends late by an outage is no attempt either, though the engine answers when it is asked about."""
    cuts = 0

    async def behaviour(ctx: JobContext) -> Json:
        nonlocal cuts
        if cuts == 0:
            cuts += 1
            bench.engine_fault = AWAY
            assert not await bench.gate.check()
            bench.engine_fault = None
            assert await bench.gate.check()
            raise AWAY
        return {}

    limits = msgspec.structs.replace(QUICK, retry_for_s=0.0)
    async with bench.running(ScriptedKind(behaviour, uses_engine=True), limits=limits):
        job = await bench.ended((await bench.enqueue()).uuid)
    assert (job.state, job.attempt) == (State.SUCCEEDED, 1)


async def test_the_gate_opens_and_closes_once() -> None:
    """One line when it closes and one when it opens; the time between is known."""
    answers = iter([AWAY, AWAY, AWAY, None, None])

    async def probe() -> None:
        if (fault := next(answers)) is not None:
            raise fault

    gate = gate_module.EngineGate(probe)
    opened: list[bool] = []
    gate.on_open = lambda: opened.append(gate.is_open)
    with capture_logs() as lines:
        for _ in range(5):
            await gate.check()
            await asyncio.sleep(0.01)
    assert [line["log_level"] for line in lines] == ["warning", "info"]
    assert opened == [True]
    assert gate.downtime_s() >= 0.02
    assert gate.downtime_ms(0) >= 20
    assert gate.waiting is None


async def test_waiting_for_the_engine_is_no_waiting_too_long(bench: Bench) -> None:
    """The queue's time limit does not count the time in which a job could not start, nor what a clock jumped over."""
    uuid = (await bench.enqueue()).uuid
    await asyncio.sleep(0.05)
    away = asyncio.create_task(expire_loop(bench.store, 0.01, Clock(), lambda kind, since_ms: 60_000))
    await asyncio.sleep(0.3)
    away.cancel()
    assert (await bench.job(uuid)).state is State.QUEUED
    there = asyncio.create_task(expire_loop(bench.store, 0.01, Clock(), lambda kind, since_ms: 0))
    job = await bench.ended(uuid)
    there.cancel()
    assert job.error is not None
    assert job.error.code is ErrorCode.TIMEOUT


async def test_who_finds_the_engine_there_pays_for_its_faults(bench: Bench) -> None:
    """A job whose work the engine breaks off every time, though it answers all the time, is given up in the end."""

    async def behaviour(ctx: JobContext) -> Json:
        raise AWAY

    limits = msgspec.structs.replace(QUICK, retry_for_s=1.0)
    async with bench.running(ScriptedKind(behaviour, uses_engine=True), limits=limits):
        job = await bench.ended((await bench.enqueue()).uuid)
    assert job.error is not None
    assert (job.state, job.error.code) == (State.FAILED, ErrorCode.ENGINE_UNAVAILABLE)
    assert "gave up after" in job.error.message


async def test_an_outage_is_no_time_for_retries(bench: Bench) -> None:
    """Seconds in which the engine was away do not count as ones in which a job was tried in vain."""
    faults = iter([Temporary(ErrorCode.REGISTRY_UNAVAILABLE, "503"), AWAY])

    async def behaviour(ctx: JobContext) -> Json:
        fault = next(faults, None)
        if fault is AWAY:
            bench.engine_fault = AWAY
            asyncio.get_running_loop().call_later(3.0, setattr, bench, "engine_fault", None)
        if fault is not None:
            raise fault
        return {}

    limits = msgspec.structs.replace(QUICK, retry_for_s=3.0)
    async with bench.running(ScriptedKind(behaviour, uses_engine=True), limits=limits):
        job = await bench.ended((await bench.enqueue()).uuid)
    assert (job.state, job.attempt) == (State.SUCCEEDED, 2)


async def test_a_probe_that_breaks_closes_the_gate(bench: Bench) -> None:
    """Not even a defect of the probe ends the loop that asks."""

    async def broken() -> None:
        raise KeyError("message")

    gate = gate_module.EngineGate(broken)
    with capture_logs() as lines:
        assert not await gate.check()
    assert "KeyError" in (gate.waiting or "")
    assert [line["log_level"] for line in lines] == ["error", "warning"]


async def test_who_needs_no_engine_gets_no_time_for_its_absence(bench: Bench) -> None:
    """A job of another kind has its time for retries, and no more, also where there is no engine at all."""
    bench.engine_fault = AWAY

    async def behaviour(ctx: JobContext) -> Json:
        raise Temporary(ErrorCode.REGISTRY_UNAVAILABLE, "503")

    limits = msgspec.structs.replace(QUICK, retry_for_s=0.5)
    async with bench.running(ScriptedKind(behaviour, uses_engine=False), limits=limits):
        assert (await bench.ended((await bench.enqueue()).uuid)).state is State.FAILED
