"""How attempts end, on a real store."""

import asyncio
from typing import Any

import msgspec
import pytest
from runner_bench import QUICK, Bench, ScriptedKind

from imagejobd.model.errors import ErrorCode, Permanent, Temporary
from imagejobd.model.job import Json, State
from imagejobd.model.kind import JobContext
from imagejobd.model.secrets import Secret
from imagejobd.runner import attempt as attempt_module
from imagejobd.runner import runner as runner_module
from imagejobd.runner.context import AttemptContext
from imagejobd.runner.settings import Limits
from imagejobd.store.protocol import Capacity
from imagejobd.store.sqlite.store import SqliteStore


async def test_a_percentage_is_that_of_its_phase(bench: Bench) -> None:
    """The next phase begins without one."""

    async def behaviour(ctx: JobContext) -> Json:
        async with ctx.phase("building", timeout_s=60):
            ctx.progress(step=3, percent=100)
        async with ctx.phase("pushing", timeout_s=60):
            raise Permanent(ErrorCode.DENIED, "no")

    async with bench.running(ScriptedKind(behaviour)):
        job = await bench.ended((await bench.enqueue()).uuid)
    assert job.progress == {"step": 3, "percent": None}


async def test_success_keeps_result_phases_and_log(bench: Bench) -> None:
    """What a kind returns, logs, and passes through is kept with the job."""

    async def behaviour(ctx: JobContext) -> Json:
        async with ctx.phase("one", timeout_s=5):
            await ctx.log("hello\n")
        async with ctx.phase("two", timeout_s=5):
            ctx.progress(done=3)
        return {"answer": 42}

    async with bench.running(ScriptedKind(behaviour)):
        job = await bench.ended((await bench.enqueue()).uuid)
    assert (job.state, job.result, job.attempt, job.error) == (State.SUCCEEDED, {"answer": 42}, 1, None)
    assert job.progress == {"done": 3}
    phases = await bench.store.phases(job.id)
    assert [phase.name for phase in phases] == ["one", "two"]
    assert all(phase.finished_ms is not None for phase in phases)
    assert "hello\n" in await bench.log_of(job.uuid)


async def test_temporary_faults_are_retried(bench: Bench) -> None:
    """A temporary fault is tried again, with what the attempt had saved."""

    async def behaviour(ctx: JobContext) -> Json:
        seen = ctx.checkpoint.get("tries", 0)
        await ctx.save(tries=seen + 1)
        if seen < 2:
            raise Temporary(ErrorCode.REGISTRY_UNAVAILABLE, "the registry is down")
        return {"tries": seen + 1}

    kind = ScriptedKind(behaviour)
    async with bench.running(kind):
        job = await bench.ended((await bench.enqueue()).uuid)
    assert (job.state, job.attempt, job.result) == (State.SUCCEEDED, 3, {"tries": 3})
    assert "the registry is down" in await bench.log_of(job.uuid)
    assert kind.discarded == []


async def test_retries_end(bench: Bench) -> None:
    """When `retry_for_s` is over a temporary fault is final, and says how often it was tried."""

    async def behaviour(ctx: JobContext) -> Json:
        raise Temporary(ErrorCode.ENGINE_UNAVAILABLE, "no engine")

    kind = ScriptedKind(behaviour)
    async with bench.running(kind, limits=msgspec.structs.replace(QUICK, retry_for_s=0.1)):
        job = await bench.ended((await bench.enqueue()).uuid)
    assert job.state is State.FAILED
    assert job.attempt > 1
    assert job.error is not None
    assert job.error.code == ErrorCode.ENGINE_UNAVAILABLE
    assert f"gave up after {job.attempt} attempts" in job.error.message
    assert kind.discarded == [job.uuid]


async def test_permanent_faults_end_at_once(bench: Bench) -> None:
    """A permanent fault is final after one attempt, is in the log, and leaves nothing outside."""

    async def behaviour(ctx: JobContext) -> Json:
        raise Permanent(ErrorCode.BUILD_FAILED, "line 3: no")

    kind = ScriptedKind(behaviour)
    async with bench.running(kind):
        job = await bench.ended((await bench.enqueue()).uuid)
    assert (job.state, job.attempt) == (State.FAILED, 1)
    assert kind.discarded == [job.uuid]
    assert await bench.log_of(job.uuid) == "failed: line 3: no\n"


@pytest.mark.parametrize("words", ["pushing app:1\n", "10%"], ids=["whole-line", "open-line"])
async def test_the_last_words_have_a_line_of_their_own(bench: Bench, words: str) -> None:
    """Right below what the job has logged, whether or not that has ended its line."""

    async def behaviour(ctx: JobContext) -> Json:
        await ctx.log(words)
        raise Permanent(ErrorCode.PUSH_FAILED, "no")

    async with bench.running(ScriptedKind(behaviour)):
        job = await bench.ended((await bench.enqueue()).uuid)
    assert await bench.log_of(job.uuid) == f"{words.rstrip()}\nfailed: no\n"


async def test_defects_fail_the_job_and_not_the_daemon(bench: Bench) -> None:
    """An exception that is no fault fails its own job as `internal`, without its text, and others go on."""

    async def behaviour(ctx: JobContext) -> Json:
        if ctx.job.labels:
            raise KeyError("inner detail")
        return {}

    async with bench.running(ScriptedKind(behaviour)):
        broken = await bench.ended((await bench.enqueue(labels={"a": "b"})).uuid)
        fine = await bench.ended((await bench.enqueue()).uuid)
    assert broken.error is not None
    assert broken.error.code == ErrorCode.INTERNAL
    assert "inner detail" not in broken.error.message
    assert fine.state is State.SUCCEEDED


async def test_phase_timeout(bench: Bench) -> None:
    """A phase past its limit ends the job with `timeout`, naming phase and limit."""

    async def behaviour(ctx: JobContext) -> Json:
        async with ctx.phase("building", timeout_s=0.05):
            await asyncio.sleep(60)
        return {}

    async with bench.running(ScriptedKind(behaviour)):
        job = await bench.ended((await bench.enqueue()).uuid)
    assert job.error is not None
    assert (job.state, job.error.code) == (State.FAILED, ErrorCode.TIMEOUT)
    assert "building" in job.error.message
    assert "0.05 s" in job.error.message


async def test_a_phase_that_waits_for_others_may_take_its_time(bench: Bench) -> None:
    """What makes progress is not stopped, however long it takes; what stands still is, and is tried again."""

    async def behaviour(ctx: JobContext) -> Json:
        async with ctx.phase("pushing", timeout_s=1.5, waits_for="registry.example"):
            for layer in range(4):
                ctx.progress(layer=layer)
                await asyncio.sleep(0.75)
            if ctx.job.attempt == 1:
                while True:
                    ctx.progress(layer=3)  # the same again is no progress
                    await asyncio.sleep(0.1)
        return {}

    async with bench.running(ScriptedKind(behaviour)):
        job = await bench.ended((await bench.enqueue()).uuid)
    assert (job.state, job.attempt) == (State.SUCCEEDED, 2)
    told = "pushing was stopped: it has waited for registry.example for 1.5 s without progress"
    assert told in await bench.log_of(job.uuid)


async def test_the_engines_absence_does_not_count(bench: Bench) -> None:
    """A limit on users' own code stands still while the Docker Engine is away, and goes on when it is back."""
    made = await bench.enqueue()
    (claim,) = await bench.store.claim("w1", Capacity({"noop": 1}, 1))
    loop = asyncio.get_running_loop()
    start_s = loop.time()
    # Away all the time, until two seconds have passed.
    ctx = AttemptContext(bench.store, claim, log_max_bytes=1000, downtime_s=lambda: min(loop.time() - start_s, 2.0))
    with pytest.raises(Permanent, match=r"building took longer than its limit of 0\.1 s"):
        async with ctx.phase("building", timeout_s=0.1):
            await asyncio.sleep(60)
    assert 2.0 <= loop.time() - start_s < 30.0
    await ctx.end_log("")
    assert (await bench.job(made.uuid)).phase == "building"


async def test_job_timeout(bench: Bench) -> None:
    """An attempt past `job_timeout_s` ends with `timeout`, naming the key."""

    async def behaviour(ctx: JobContext) -> Json:
        await asyncio.sleep(60)
        return {}

    async with bench.running(ScriptedKind(behaviour), limits=msgspec.structs.replace(QUICK, job_timeout_s=0.05)):
        job = await bench.ended((await bench.enqueue()).uuid)
    assert job.error is not None
    assert job.error.code == ErrorCode.TIMEOUT
    assert "limits.job_timeout_s" in job.error.message


async def test_a_kinds_own_timeout_error_is_a_defect(bench: Bench) -> None:
    """A TimeoutError that no limit of ours raised is not mistaken for one."""

    async def behaviour(ctx: JobContext) -> Json:
        async with ctx.phase("p", timeout_s=60):
            raise TimeoutError

    async with bench.running(ScriptedKind(behaviour)):
        job = await bench.ended((await bench.enqueue()).uuid)
    assert job.error is not None
    assert job.error.code == ErrorCode.INTERNAL


async def test_cancel_stops_the_work(bench: Bench) -> None:
    """A cancel ends running work at once, cleans up outside, and is no failure."""
    stopped = asyncio.Event()

    async def behaviour(ctx: JobContext) -> Json:
        try:
            await asyncio.sleep(60)
        finally:
            stopped.set()
        return {}

    kind = ScriptedKind(behaviour)
    async with bench.running(kind):
        uuid = (await bench.enqueue()).uuid
        await bench.when(uuid, lambda job: job.state is State.RUNNING)
        assert await bench.store.request_cancel(uuid, tenant=None) is State.RUNNING
        job = await bench.ended(uuid)
    assert stopped.is_set()
    assert job.state is State.CANCELLED
    assert kind.discarded == [uuid]


async def test_success_wins_over_a_late_cancel(bench: Bench) -> None:
    """Work that was done when the cancel came is not thrown away."""

    async def behaviour(ctx: JobContext) -> Json:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return {"done": True}
        return {}

    async with bench.running(ScriptedKind(behaviour)):
        uuid = (await bench.enqueue()).uuid
        await bench.when(uuid, lambda job: job.state is State.RUNNING)
        await bench.store.request_cancel(uuid, tenant=None)
        assert (await bench.ended(uuid)).state is State.SUCCEEDED


async def test_drain_waits_then_interrupts(bench: Bench) -> None:
    """Draining lets a short job end and interrupts a long one, which keeps its attempt and its checkpoint."""

    async def behaviour(ctx: JobContext) -> Json:
        await ctx.save(started=True)
        await asyncio.sleep(0.1 if ctx.job.labels else 60)
        return {}

    kind = ScriptedKind(behaviour)
    async with bench.running(kind) as runner:
        short, long = (await bench.enqueue(labels={"s": "1"})).uuid, (await bench.enqueue()).uuid
        for uuid in (short, long):
            await bench.when(uuid, lambda job: bool(job.checkpoint))
        await runner.drain(3)
        queued = (await bench.enqueue()).uuid
        await asyncio.sleep(0.05)
        interrupted = await bench.job(long)
        assert (await bench.job(short)).state is State.SUCCEEDED
        assert (interrupted.state, interrupted.attempt, interrupted.crashes) == (State.QUEUED, 0, 0)
        assert interrupted.checkpoint == {"started": True}
        assert (await bench.job(queued)).state is State.QUEUED
        assert kind.discarded == []


async def test_failed_cleanup_does_not_hide_the_ending(bench: Bench) -> None:
    """When the outside cannot be cleaned now, the job still ends, for the sweep to come."""

    async def behaviour(ctx: JobContext) -> Json:
        raise Permanent(ErrorCode.BUILD_FAILED, "no")

    kind = ScriptedKind(behaviour)
    kind.discard_fault = Temporary(ErrorCode.ENGINE_UNAVAILABLE, "no engine")
    async with bench.running(kind):
        assert (await bench.ended((await bench.enqueue()).uuid)).state is State.FAILED


async def test_secrets_are_masked(bench: Bench) -> None:
    """A secret that the outside echoes appears neither in log, error nor result."""

    async def behaviour(ctx: JobContext) -> Json:
        password = ctx.secrets["password"].reveal()
        await ctx.log(f"login with {password}\n")
        raise Permanent(ErrorCode.DENIED, f"bad password {password}")

    async with bench.running(ScriptedKind(behaviour)):
        enqueued = await bench.enqueue(secrets={"password": Secret("hunter2-long")})
        job = await bench.ended(enqueued.uuid)
    assert "hunter2" not in await bench.log_of(job.uuid)
    assert "hunter2" not in str(job)


async def test_log_is_cut_visibly(bench: Bench) -> None:
    """A log past its bound loses its middle, says so, and keeps its end."""

    async def behaviour(ctx: JobContext) -> Json:
        for number in range(20_000):
            await ctx.log(f"line {number:06d} of the log\n")
        return {}

    limits: Limits = msgspec.structs.replace(QUICK, log_max_bytes=200_000)
    async with bench.running(ScriptedKind(behaviour), limits=limits):
        job = await bench.ended((await bench.enqueue()).uuid)
    text = await bench.log_of(job.uuid)
    assert text.startswith("line 000000")
    assert "bytes of log dropped here" in text
    assert text.endswith("line 019999 of the log\n")
    assert len(text) < 210_000


@pytest.mark.parametrize("lines", [1, 5000])
async def test_log_is_whole_and_in_order(bench: Bench, lines: int) -> None:
    """Every line that was logged is there, in order."""

    async def behaviour(ctx: JobContext) -> Json:
        for number in range(lines):
            await ctx.log(f"{number}\n")
        return {}

    async with bench.running(ScriptedKind(behaviour)):
        job = await bench.ended((await bench.enqueue()).uuid)
    assert await bench.log_of(job.uuid) == "".join(f"{number}\n" for number in range(lines))


async def test_log_can_be_followed_while_it_grows(bench: Bench) -> None:
    """A line is readable well before the job ends."""
    go_on: Any = asyncio.Event()

    async def behaviour(ctx: JobContext) -> Json:
        await ctx.log("early\n")
        await go_on.wait()
        return {}

    async with bench.running(ScriptedKind(behaviour)):
        uuid = (await bench.enqueue()).uuid
        async with asyncio.timeout(5):
            while await bench.log_of(uuid) != "early\n":
                await asyncio.sleep(0.01)
        assert (await bench.job(uuid)).state is State.RUNNING
        go_on.set()
        await bench.ended(uuid)


async def test_a_result_that_cannot_be_kept_fails_the_job(bench: Bench) -> None:
    """What the store does not take as a result is a defect of the kind: the job ends, and says so."""

    async def behaviour(ctx: JobContext) -> Json:
        return {"result": object()}

    async with bench.running(ScriptedKind(behaviour)):
        job = await bench.ended((await bench.enqueue()).uuid)
    assert job.error is not None
    assert (job.state, job.error.code) == (State.FAILED, ErrorCode.INTERNAL)


async def test_a_kind_that_cancels_itself_fails_the_job(bench: Bench) -> None:
    """A cancellation that nobody asked for is a defect, not an interruption that would be tried again for ever."""

    async def behaviour(ctx: JobContext) -> Json:
        raise asyncio.CancelledError

    async with bench.running(ScriptedKind(behaviour)):
        job = await bench.ended((await bench.enqueue()).uuid)
    assert job.error is not None
    assert (job.state, job.error.code) == (State.FAILED, ErrorCode.INTERNAL)


async def test_defects_while_tidying_do_not_hide_the_ending(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that cannot be written and a discard that breaks leave the verdict as it was."""

    async def broken(*_: Any) -> None:
        raise RuntimeError("defect")

    async def behaviour(ctx: JobContext) -> Json:
        if ctx.job.labels:
            raise Permanent(ErrorCode.BUILD_FAILED, "no")
        await ctx.log("early\n")
        return {}

    kind = ScriptedKind(behaviour)
    monkeypatch.setattr(kind, "discard", broken)
    monkeypatch.setattr(SqliteStore, "log", broken)
    async with bench.running(kind):
        failed = await bench.ended((await bench.enqueue(labels={"a": "b"})).uuid)
        succeeded = await bench.ended((await bench.enqueue()).uuid)
    assert failed.error is not None
    assert (failed.error.code, succeeded.state) == (ErrorCode.BUILD_FAILED, State.SUCCEEDED)


async def test_a_discard_that_hangs_is_left_to_the_sweep(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that does not answer delays the ending by a bound, which leaves the drain time to write it."""
    assert attempt_module.DISCARD_TIMEOUT_S < runner_module.INTERRUPT_TIMEOUT_S
    monkeypatch.setattr(attempt_module, "DISCARD_TIMEOUT_S", 0.05)

    async def behaviour(ctx: JobContext) -> Json:
        raise Permanent(ErrorCode.BUILD_FAILED, "no")

    kind = ScriptedKind(behaviour)
    monkeypatch.setattr(kind, "discard", lambda *_: asyncio.sleep(3600))
    async with bench.running(kind):
        assert (await bench.ended((await bench.enqueue()).uuid)).state is State.FAILED


async def test_added_secrets_and_lines_of_secrets_are_masked(bench: Bench) -> None:
    """A login that is not the job's own is masked once the kind has named it, and a long secret also line by line."""

    async def behaviour(ctx: JobContext) -> Json:
        ctx.add_secret(Secret("configured-password"))
        await ctx.log("configured-password and then second-line-of-it\n")
        raise Permanent(ErrorCode.DENIED, "bad configured-password")

    async with bench.running(ScriptedKind(behaviour)):
        enqueued = await bench.enqueue(secrets={"password": Secret("first-line\nsecond-line-of-it\nx\n")})
        job = await bench.ended(enqueued.uuid)
    said = await bench.log_of(job.uuid) + str(job.error)
    assert "configured" not in said
    assert "second-line" not in said
    assert "and then" in said


async def test_cancelling_survives_a_store_that_cannot_be_read(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """When cancel requests cannot be read for a moment, they are read later; the runner goes on."""
    monkeypatch.setattr(runner_module, "POLL_S", 0.01)
    cancel_requests, refusals = SqliteStore.cancel_requests, iter(range(3))

    async def unreadable_at_first(store: SqliteStore, worker: str) -> list[str]:
        if next(refusals, None) is not None:
            raise Temporary(ErrorCode.INTERNAL, "locked")
        return await cancel_requests(store, worker)

    monkeypatch.setattr(SqliteStore, "cancel_requests", unreadable_at_first)

    async def behaviour(ctx: JobContext) -> Json:
        await asyncio.sleep(60)
        return {}

    async with bench.running(ScriptedKind(behaviour)):
        uuid = (await bench.enqueue()).uuid
        await bench.when(uuid, lambda job: job.state is State.RUNNING)
        await bench.store.request_cancel(uuid, tenant=None)
        assert (await bench.ended(uuid)).state is State.CANCELLED


async def test_a_defect_in_judging_fails_the_job(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even a defect of the runner itself leaves a job running."""
    monkeypatch.setattr("imagejobd.runner.attempt.delay_s", lambda *_: 1 / 0)

    async def behaviour(ctx: JobContext) -> Json:
        raise Temporary(ErrorCode.REGISTRY_UNAVAILABLE, "down")

    async with bench.running(ScriptedKind(behaviour)):
        job = await bench.ended((await bench.enqueue()).uuid)
    assert job.error is not None
    assert (job.state, job.error.code) == (State.FAILED, ErrorCode.INTERNAL)


async def test_an_error_holds_nothing_unprintable(bench: Bench) -> None:
    """A NUL does not end the stored message, and no escape reaches a terminal."""

    async def fails(ctx: JobContext) -> Json:
        raise Permanent(ErrorCode.BUILD_FAILED, "a\0b\x1b[31m\nc\x07")

    uuid = (await bench.enqueue()).uuid
    async with bench.running(ScriptedKind(fails)):
        job = await bench.ended(uuid)
    assert job.error is not None
    assert job.error.message == "a b [31m\nc "


async def test_a_cancel_does_not_wait_for_work_that_hangs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work that does not end when it is cancelled is left to itself: its job ends, and what it does later counts for
    nothing."""
    monkeypatch.setattr(attempt_module, "CANCEL_WORK_TIMEOUT_S", 0.1)
    let_go = asyncio.Event()

    async def deaf(ctx: JobContext) -> Json:
        try:
            await asyncio.sleep(3600)
        finally:
            await let_go.wait()
        return {}

    kind = ScriptedKind(deaf)
    async with bench.running(kind):
        uuid = (await bench.enqueue()).uuid
        await bench.when(uuid, lambda job: job.state is State.RUNNING)
        await bench.store.request_cancel(uuid, tenant=None)
        job = await bench.ended(uuid)
        assert job.state is State.CANCELLED
        assert (job.finished_ms or 0) - (job.cancel_requested_ms or 0) < 2000
        assert kind.discarded == [uuid]
        let_go.set()
        await asyncio.sleep(0.1)
        assert await bench.job(uuid) == job


async def test_an_ending_that_cannot_be_written_leaves_no_job_running(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that nobody works on any more is queued again, and goes on."""
    monkeypatch.setattr(runner_module, "UNWRITTEN_RETRY_S", 0.1)
    finish, refusals = SqliteStore.finish, iter(range(2))

    async def refused_at_first(store: SqliteStore, *args: Any) -> None:
        if next(refusals, None) is not None:
            raise Permanent(ErrorCode.INTERNAL, "the job database refused a change")
        await finish(store, *args)

    monkeypatch.setattr(SqliteStore, "finish", refused_at_first)

    async def behaviour(ctx: JobContext) -> Json:
        return {}

    async with bench.running(ScriptedKind(behaviour)):
        job = await bench.ended((await bench.enqueue()).uuid)
    assert (job.state, job.crashes) == (State.SUCCEEDED, 0)
