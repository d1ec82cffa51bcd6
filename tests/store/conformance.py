"""What every store has to promise: the other half of `store/protocol.py`.

A store is tested by a class that inherits `StoreConformance`, in a folder whose fixtures give `store` (empty) and the
`clock` that it was opened with.
"""

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any

import pytest
from msgspec.structs import replace
from simulated_clock import SimulatedClock

from imagejobd.model.errors import ClaimLost, ErrorCode, Permanent, Temporary
from imagejobd.model.job import Claim, Enqueued, Job, JobError, NewJob, Push, State, Transition, Wait, next_state
from imagejobd.model.reference import ImageReference
from imagejobd.model.secrets import Secret
from imagejobd.store.filters import Filter
from imagejobd.store.protocol import CANCEL_TOPIC, EVENT_TOPIC, QUEUE_TOPIC, Capacity, Ending, Store, job_topic

QUEUE_MAX = 1000
HOUR_MS = 3_600_000
BROKEN = JobError(ErrorCode.BUILD_FAILED, "exit code 1")
CRASHES_MAX = 3
IMAGE = ImageReference.parse("r.example/a/b:1")
PUSH = Push(
    image=0,
    target=0,
    registry="r.example",
    repository="a/b",
    source="b:1",
    tags={"1": "wanted"},
    digest="sha256:1",
    source_digest="sha256:2",
    sent_bytes=1,
    mounted_bytes=2,
    skipped_bytes=3,
    total_bytes=7,
    seconds=0.5,
    error="it is down",
    is_final=True,
    tries=2,
    wait=Wait("r.example", 1_000, 500),
)


async def enqueue(store: Store, **fields: Any) -> Enqueued:
    return await store.enqueue(NewJob(**({"kind": "build", "spec": {"image": "a/b"}} | fields)), queue_max=QUEUE_MAX)


async def claim_up_to(
    store: Store, count: int, *, kind: str = "build", worker: str = "w1", per_tenant: int = 100
) -> list[Claim]:
    return await store.claim(worker, Capacity({kind: count}, per_tenant))


async def claim_one(store: Store, **options: Any) -> Claim:
    (claim,) = await claim_up_to(store, 1, **options)
    return claim


async def job_of(store: Store, uuid: str) -> Job:
    job = await store.get(uuid, tenant=None)
    assert job is not None
    return job


async def event_types(store: Store, job: Enqueued) -> list[str]:
    return [event.type for event in await store.changes_since(0, job_id=job.id, limit=100)]


class StoreConformance:
    async def test_an_accepted_job_is_there_as_it_was_given(self, store: Store, clock: SimulatedClock) -> None:
        """Everything of a new job can be read back, by UUID and by row id."""
        person = {"sub": "jane", "name": 'Žofie "Z" Nováková'}
        made = await enqueue(
            store, tenant="t", client="c", submitter=person, priority=5, labels={"a": "b"}, idempotency_key="k"
        )
        job = await job_of(store, made.uuid)
        assert (job.kind, job.tenant, job.client, job.spec, job.priority) == ("build", "t", "c", {"image": "a/b"}, 5)
        assert job.submitter == person
        assert (job.state, job.attempt, job.crashes, job.labels) == (State.QUEUED, 0, 0, {"a": "b"})
        assert (job.created_ms, job.started_ms, job.finished_ms) == (clock.now_ms, None, None)
        assert await store.get_by_id(made.id, tenant="t") == job
        assert (await store.list_jobs(Filter(), cursor=None, limit=1)).jobs[0].submitter == person

    async def test_the_submitter_is_no_part_of_what_was_asked(self, store: Store) -> None:
        """Nobody has to be known to submit; a colleague who repeats a request with its key gets the first one's job."""
        assert (await job_of(store, (await enqueue(store)).uuid)).submitter == {}
        first = await enqueue(store, idempotency_key="k", submitter={"sub": "jane"})
        again = await enqueue(store, idempotency_key="k", submitter={"sub": "joe"})
        assert (again.uuid, again.is_new) == (first.uuid, False)
        assert (await job_of(store, first.uuid)).submitter == {"sub": "jane"}

    async def test_a_tenant_does_not_see_the_jobs_of_another(self, store: Store) -> None:
        """Reading and cancelling with another tenant's name finds nothing."""
        made = await enqueue(store, tenant="mine")
        assert await store.get(made.uuid, tenant="yours") is None
        assert await store.get_by_id(made.id, tenant="yours") is None
        assert await store.request_cancel(made.uuid, tenant="yours") is None
        assert (await store.list_jobs(Filter(tenant="yours"), cursor=None, limit=10)).jobs == []

    async def test_a_full_queue_refuses_with_a_time_to_come_back(self, store: Store) -> None:
        """With `queue_max` jobs waiting, delayed ones included, the next is refused and nothing of it is kept."""
        await store.enqueue(NewJob(kind="build", spec={}), queue_max=2)
        await store.enqueue(NewJob(kind="build", spec={}, not_before_ms=2**50), queue_max=2)
        with pytest.raises(Temporary) as refused:
            await store.enqueue(NewJob(kind="build", spec={}), queue_max=2)
        assert refused.value.code is ErrorCode.QUEUE_FULL
        assert refused.value.retry_after_s
        assert (await store.stats()).queued == {"build": 2}

    async def test_the_queue_bound_holds_for_callers_at_once(self, store: Store) -> None:
        """Of many callers at the same time exactly `queue_max` get in."""
        tries = [store.enqueue(NewJob(kind="build", spec={}), queue_max=7) for _ in range(50)]
        answers = await asyncio.gather(*tries, return_exceptions=True)
        assert sum(isinstance(answer, Enqueued) for answer in answers) == 7
        assert sum(isinstance(answer, Temporary) for answer in answers) == 43

    async def test_an_idempotency_key_makes_one_job(self, store: Store) -> None:
        """The same request with the same key gets the first one's job, also when both come at the same moment."""
        answers = await asyncio.gather(*(enqueue(store, idempotency_key="k") for _ in range(20)))
        assert len({answer.uuid for answer in answers}) == 1
        assert [answer.is_new for answer in answers].count(True) == 1
        later = await enqueue(store, idempotency_key="k")
        assert (later.uuid, later.is_new) == (answers[0].uuid, False)
        assert (await enqueue(store, idempotency_key="k", tenant="other")).is_new

    async def test_an_idempotency_key_is_not_for_another_request(self, store: Store) -> None:
        """The same key with another kind, spec, label or blob is a conflict and makes no job."""
        await enqueue(store, idempotency_key="k")
        for other in ({"kind": "run"}, {"spec": {"image": "x"}}, {"labels": {"a": "b"}}, {"blobs": ("sha256:1",)}):
            with pytest.raises(Permanent) as refused:
                await enqueue(store, idempotency_key="k", **other)
            assert refused.value.code is ErrorCode.CONFLICT
        assert (await store.stats()).queued == {"build": 1}

    async def test_a_repeated_request_is_answered_even_by_a_full_queue(self, store: Store) -> None:
        """A client that repeats its request for an accepted job does not hear that the queue is full."""
        job = NewJob(kind="build", spec={}, idempotency_key="k")
        await store.enqueue(job, queue_max=1)
        assert not (await store.enqueue(job, queue_max=1)).is_new

    async def test_a_claim_starts_a_job(self, store: Store, clock: SimulatedClock) -> None:
        """A claimed job runs, has used an attempt, and carries worker and start."""
        await enqueue(store)
        clock.advance(5)
        claim = await claim_one(store)
        assert claim.token
        job = await job_of(store, claim.job.uuid)
        assert job == claim.job
        assert (job.state, job.attempt, job.worker) == (State.RUNNING, 1, "w1")
        assert job.started_ms == clock.now_ms

    async def test_nothing_is_claimed_twice(self, store: Store) -> None:
        """Claims at the same time never share a job."""
        for _ in range(30):
            await enqueue(store)
        claims = await asyncio.gather(*(claim_up_to(store, 4, worker=f"w{n}") for n in range(10)))
        uuids = [claim.job.uuid for some in claims for claim in some]
        assert len(uuids) == len(set(uuids)) == 30

    async def test_within_a_tenant_priority_then_age(self, store: Store) -> None:
        """The highest priority goes first, also across kinds; among equals the oldest."""
        low = await enqueue(store, priority=-1)
        first, second = await enqueue(store), await enqueue(store)
        high = await enqueue(store, kind="run", priority=1)
        claims = await store.claim("w1", Capacity({"build": 3, "run": 1}, 9))
        assert [claim.job.uuid for claim in claims] == [high.uuid, first.uuid, second.uuid, low.uuid]

    async def test_capacity_bounds_kinds_and_tenants(self, store: Store) -> None:
        """A claim takes no more than a kind's free slots, and no more than a tenant may have running in all."""
        for kind in ("build", "run"):
            for tenant in ("a", "b"):
                for _ in range(5):
                    await enqueue(store, kind=kind, tenant=tenant)
        claims = await store.claim("w1", Capacity({"build": 3, "run": 9}, 4))
        kinds = [claim.job.kind for claim in claims]
        tenants = [claim.job.tenant for claim in claims]
        assert (len(claims), tenants.count("a"), tenants.count("b")) == (8, 4, 4)
        assert kinds.count("build") == 3
        assert await store.claim("w1", Capacity({"build": 0, "run": 9}, 4)) == []
        assert await store.claim("w1", Capacity({}, 100)) == []

    async def test_a_flood_does_not_starve_others(self, store: Store) -> None:
        """A tenant with one job is served beside one with a hundred."""
        for _ in range(100):
            await enqueue(store, tenant="flood")
        small = await enqueue(store, tenant="small")
        assert small.uuid in [claim.job.uuid for claim in await claim_up_to(store, 2)]

    async def test_equal_tenants_take_turns(self, store: Store) -> None:
        """With one slot, tenants are served one after the other, the one served longest ago first."""
        for tenant in ("a", "a", "a", "b", "b", "b", "c", "c", "c"):
            await enqueue(store, tenant=tenant)
        served = []
        for _ in range(9):
            claim = await claim_one(store)
            served.append(claim.job.tenant)
            await store.finish(claim, Ending(State.SUCCEEDED))
        assert [sorted(served[n : n + 3]) for n in (0, 3, 6)] == [["a", "b", "c"]] * 3

    async def test_a_delayed_job_waits_for_its_time(self, store: Store, clock: SimulatedClock) -> None:
        """Before `not_before_ms` a job is not claimed, from then on it is."""
        await enqueue(store, not_before_ms=clock.now_ms + 10)
        assert await claim_up_to(store, 1) == []
        clock.advance(9)
        assert await claim_up_to(store, 1) == []
        clock.advance(1)
        assert len(await claim_up_to(store, 1)) == 1

    async def test_secrets_live_as_long_as_their_job(self, store: Store) -> None:
        """Every attempt is given the job's secrets."""
        await enqueue(store, secrets={"password": Secret("hunter2")})
        claim = await claim_one(store)
        assert claim.secrets == {"password": Secret("hunter2")}
        await store.retry(claim, BROKEN, not_before_ms=0)
        assert (await claim_one(store)).secrets == {"password": Secret("hunter2")}

    async def test_a_checkpoint_merges_and_survives_a_retry(self, store: Store) -> None:
        """Later values replace earlier ones key by key, and the next attempt goes on from there."""
        made = await enqueue(store, blobs=("sha256:one",))
        claim = await claim_one(store)
        await store.checkpoint(claim, {"a": 1, "b": {"x": 1}})
        await store.checkpoint(claim, {"b": {"y": 2}, "c": None}, blobs=["sha256:two", "sha256:one"])
        await store.retry(claim, BROKEN, not_before_ms=0)
        again = await claim_one(store)
        assert again.job.uuid == made.uuid
        assert again.job.checkpoint == {"a": 1, "b": {"y": 2}, "c": None}
        assert await store.referenced_blobs() == {"sha256:one", "sha256:two"}

    async def test_progress_is_replaced(self, store: Store) -> None:
        """The latest progress is what a reader sees."""
        await enqueue(store)
        claim = await claim_one(store)
        await store.progress(claim, {"step": 1, "of": 3})
        await store.progress(claim, {"step": 2})
        assert (await job_of(store, claim.job.uuid)).progress == {"step": 2}

    async def test_phases_are_timed(self, store: Store, clock: SimulatedClock) -> None:
        """Entering a phase ends the one before; finishing ends the current one."""
        await enqueue(store)
        claim = await claim_one(store)
        start = clock.now_ms
        await store.enter_phase(claim, "building")
        assert (await job_of(store, claim.job.uuid)).phase == "building"
        clock.advance(10)
        await store.enter_phase(claim, "pushing")
        clock.advance(10)
        await store.finish(claim, Ending(State.SUCCEEDED))
        assert (await job_of(store, claim.job.uuid)).phase is None
        phases = await store.phases(claim.job.id)
        assert [phase.name for phase in phases] == ["building", "pushing"]
        assert [(p.started_ms - start, (p.finished_ms or 0) - start) for p in phases] == [(0, 10), (10, 20)]

    async def test_a_crash_leaves_its_phase_without_an_end(self, store: Store, clock: SimulatedClock) -> None:
        """Nobody knows when a crashed phase ended, and the next attempt's phases do not end it either."""
        await enqueue(store)
        await store.enter_phase(await claim_one(store), "building")
        clock.advance(HOUR_MS)
        await store.rescue("w2", crashes_max=CRASHES_MAX)
        claim = await claim_one(store, worker="w2")
        await store.enter_phase(claim, "building")
        await store.finish(claim, Ending(State.SUCCEEDED))
        assert [phase.finished_ms for phase in await store.phases(claim.job.id)] == [None, clock.now_ms]

    async def test_a_log_is_read_by_byte_offsets(self, store: Store) -> None:
        """Blocks come back in order, from the block that holds the wanted byte; offsets count UTF-8."""
        await enqueue(store)
        claim = await claim_one(store)
        for text in ("äöü\n", "", "two\n", "three\n"):
            await store.log(claim, text)
        assert (await job_of(store, claim.job.uuid)).log_bytes == 17
        read = await store.read_log(claim.job.id, from_offset=0, max_blocks=9)
        assert [(block.offset, block.text) for block in read] == [(0, "äöü\n"), (7, "two\n"), (11, "three\n")]
        for from_offset, first in ((6, 0), (7, 7), (10, 7), (11, 11), (16, 11)):
            assert (await store.read_log(claim.job.id, from_offset=from_offset, max_blocks=1))[0].offset == first
        assert await store.read_log(claim.job.id, from_offset=17, max_blocks=9) == []
        for to_offset, count in ((0, 0), (1, 1), (7, 1), (8, 2), (11, 2), (12, 3), (99, 3)):
            assert len(await store.read_log(claim.job.id, from_offset=0, to_offset=to_offset, max_blocks=9)) == count

    @pytest.mark.parametrize("text", ["", "\n", "a", "a\n", "a\nb", "é\n\n\x00\nb\n", "\n\na\n" * 99], ids=len)
    @pytest.mark.parametrize("block_chars", [1, 3, 1000])
    async def test_a_log_has_a_tail(self, store: Store, text: str, block_chars: int) -> None:
        """The last lines are found however the log was written, and what comes after its end so far is not."""
        await enqueue(store)
        claim = await claim_one(store)
        for at in range(0, len(text), block_chars):
            await store.log(claim, text[at : at + block_chars])
        data = text.encode()
        await store.log(claim, "later\n")
        for lines in (0, 1, 2, 3, 4, 296, 297, 298, 10**18):
            offset = await store.log_tail(claim.job.id, lines=lines, end=len(data))
            assert data[offset:] == b"".join(data.splitlines(keepends=True)[-lines:] if lines else [])

    async def test_a_log_that_was_pruned_is_told_from_none(self, store: Store, clock: SimulatedClock) -> None:
        """When all of a log is gone its job's history says so."""
        silent = await enqueue(store)
        await store.finish(await claim_one(store), Ending(State.SUCCEEDED))
        made = await enqueue(store)
        claim = await claim_one(store)
        await store.log(claim, "one\n")
        await store.log(claim, "two\n")
        await store.finish(claim, Ending(State.SUCCEEDED))
        limit_ms = clock.advance(1000)
        for is_gone in (False, True):
            assert await store.is_log_pruned(made.id) is False
            await store.prune(jobs_before_ms=0, logs_before_ms=limit_ms, blobs_before_ms=0, batch_max=1)
            assert ("prune_log" in await event_types(store, made)) is is_gone
        assert await store.is_log_pruned(made.id) is True
        assert await store.is_log_pruned(silent.id) is False

    async def test_a_log_takes_any_text(self, store: Store) -> None:
        """NUL and lone surrogates from a build's output do no harm."""
        await enqueue(store)
        claim = await claim_one(store)
        await store.log(claim, "a\x00b\ud800c")
        (block,) = await store.read_log(claim.job.id, from_offset=0, max_blocks=9)
        assert block.text == "a\x00b?c"

    @pytest.mark.parametrize(
        "ending",
        [
            Ending(State.SUCCEEDED, result={"digest": "sha256:1"}),
            Ending(State.FAILED, error=BROKEN),
            Ending(State.CANCELLED, error=JobError(ErrorCode.TIMEOUT, "too slow")),
        ],
        ids=lambda ending: str(ending.state),
    )
    async def test_an_ending_is_kept(self, store: Store, clock: SimulatedClock, ending: Ending) -> None:
        """State, result, error and time of the end are read back, and the claim is over."""
        await enqueue(store)
        claim = await claim_one(store)
        clock.advance(7)
        await store.finish(claim, ending)
        job = await job_of(store, claim.job.uuid)
        assert (job.state, job.result, job.error) == (ending.state, ending.result, ending.error)
        assert job.finished_ms == clock.now_ms
        assert await store.live() == set()

    async def test_an_attempts_error_stays_until_the_next_ending(self, store: Store) -> None:
        """While a job is retried its last error shows; a success takes it away."""
        await enqueue(store)
        claim = await claim_one(store)
        await store.retry(claim, BROKEN, not_before_ms=0)
        assert (await job_of(store, claim.job.uuid)).error == BROKEN
        claim = await claim_one(store)
        await store.interrupt(claim)
        claim = await claim_one(store)
        assert claim.job.error == BROKEN
        await store.finish(claim, Ending(State.SUCCEEDED))
        assert (await job_of(store, claim.job.uuid)).error is None

    async def test_a_retry_waits_and_is_an_attempt(self, store: Store, clock: SimulatedClock) -> None:
        """A retried job is claimed again from `not_before_ms` on, as the next attempt; its start stays."""
        await enqueue(store)
        claim = await claim_one(store)
        await store.retry(claim, BROKEN, not_before_ms=clock.now_ms + 100)
        assert await claim_up_to(store, 1) == []
        clock.advance(100)
        again = await claim_one(store)
        assert (again.job.attempt, again.job.started_ms) == (2, claim.job.started_ms)
        assert again.token != claim.token

    async def test_an_interruption_is_no_attempt(self, store: Store) -> None:
        """A job that a shutdown interrupted has its attempt back and is ready at once."""
        await enqueue(store)
        await store.interrupt(await claim_one(store))
        assert (await claim_one(store)).job.attempt == 1

    async def test_a_claim_that_is_over_changes_nothing(self, store: Store) -> None:
        """Every verb on a claim that was taken over raises ClaimLost and leaves the job as it is."""
        await enqueue(store)
        old = await claim_one(store)
        await store.interrupt(old)
        new = await claim_one(store, worker="w2")
        for verb in (
            store.enter_phase(old, "p"),
            store.checkpoint(old, {"a": 1}, blobs=["sha256:x"]),
            store.log(old, "text"),
            store.log(old, ""),
            store.progress(old, {"a": 1}),
            store.note(old, "target", {}),
            store.record_pushes(old, [PUSH]),
            store.finish(old, Ending(State.SUCCEEDED)),
            store.retry(old, BROKEN, not_before_ms=0),
            store.interrupt(old),
        ):
            with pytest.raises(ClaimLost):
                await verb
        assert await job_of(store, new.job.uuid) == new.job
        assert await store.referenced_blobs() == set()
        assert await store.pushes(new.job.id) == []

    async def test_one_lost_claim_does_not_harm_the_others(self, store: Store) -> None:
        """Finishing many jobs at once, among them one whose claim is over, finishes the others."""
        for _ in range(10):
            await enqueue(store)
        claims = await claim_up_to(store, 10)
        await store.interrupt(claims[3])
        finishing = [store.finish(claim, Ending(State.SUCCEEDED)) for claim in claims]
        answers = await asyncio.gather(*finishing, return_exceptions=True)
        assert [n for n, answer in enumerate(answers) if isinstance(answer, ClaimLost)] == [3]
        states = [(await job_of(store, claim.job.uuid)).state for claim in claims]
        assert states.count(State.SUCCEEDED) == 9

    async def test_cancelling_a_queued_job_ends_it(self, store: Store, clock: SimulatedClock) -> None:
        """A job that waits, delayed or not, is cancelled at once and never claimed."""
        for not_before_ms in (None, clock.now_ms + 5):
            made = await enqueue(store, not_before_ms=not_before_ms)
            assert await store.request_cancel(made.uuid, tenant=None) is State.CANCELLED
            assert (await job_of(store, made.uuid)).finished_ms == clock.now_ms
        clock.advance(10)
        assert await claim_up_to(store, 9) == []

    async def test_cancelling_a_running_job_asks_its_worker(self, store: Store, clock: SimulatedClock) -> None:
        """A running job goes on until its worker, who finds the request, ends it; asking twice changes nothing."""
        await enqueue(store)
        claim = await claim_one(store)
        with store.watch(CANCEL_TOPIC) as requests:
            assert await store.request_cancel(claim.job.uuid, tenant=None) is State.RUNNING
            assert await requests.changed(5)
        asked_ms = clock.now_ms
        clock.advance(5)
        assert await store.request_cancel(claim.job.uuid, tenant=None) is State.RUNNING
        assert (await job_of(store, claim.job.uuid)).cancel_requested_ms == asked_ms
        assert await store.cancel_requests("w1") == [claim.job.uuid]
        assert await store.cancel_requests("w2") == []
        await store.finish(claim, Ending(State.CANCELLED))
        assert await store.cancel_requests("w1") == []

    async def test_cancelling_what_has_ended_changes_nothing(self, store: Store) -> None:
        """An ended job answers with its state, an unknown one with None."""
        await enqueue(store)
        claim = await claim_one(store)
        await store.finish(claim, Ending(State.SUCCEEDED))
        assert await store.request_cancel(claim.job.uuid, tenant=None) is State.SUCCEEDED
        assert await store.request_cancel("00000000-0000-7000-8000-000000000000", tenant=None) is None

    @pytest.mark.parametrize("way", ["retry", "interrupt", "rescue"])
    async def test_a_requested_cancel_is_never_forgotten(self, store: Store, way: str) -> None:
        """A job that goes back to the queue after somebody asked to cancel it is cancelled instead of run again."""
        await enqueue(store)
        claim = await claim_one(store)
        await store.request_cancel(claim.job.uuid, tenant=None)
        if way == "retry":
            await store.retry(claim, BROKEN, not_before_ms=0)
        elif way == "interrupt":
            await store.interrupt(claim)
        else:
            (rescued,) = await store.rescue("w2", crashes_max=CRASHES_MAX)
            assert rescued.state is State.CANCELLED
        assert (await job_of(store, claim.job.uuid)).state is State.CANCELLED

    async def test_rescue_takes_back_what_a_dead_worker_ran(self, store: Store) -> None:
        """Its jobs are queued again with their attempt and one crash more; those of the living worker go on."""
        await enqueue(store)
        await enqueue(store)
        dead, alive = await claim_one(store, worker="old"), await claim_one(store, worker="new")
        (rescued,) = await store.rescue("new", crashes_max=CRASHES_MAX)
        assert (rescued.uuid, rescued.state) == (dead.job.uuid, State.QUEUED)
        job = await job_of(store, dead.job.uuid)
        assert (job.state, job.attempt, job.crashes, job.worker) == (State.QUEUED, 0, 1, None)
        assert (await job_of(store, alive.job.uuid)).state is State.RUNNING
        with pytest.raises(ClaimLost):
            await store.finish(dead, Ending(State.SUCCEEDED))

    async def test_a_job_that_keeps_crashing_alone_is_quarantined(self, store: Store) -> None:
        """What a job does that was alone in so many crashes in a row is known: it fails with a code of its own."""
        made = await enqueue(store)
        states = []
        for boot in range(CRASHES_MAX):
            await claim_one(store, worker=f"boot{boot}")
            (rescued,) = await store.rescue(f"boot{boot + 1}", crashes_max=CRASHES_MAX)
            states.append(rescued.state)
        assert states == [State.QUEUED, State.QUEUED, State.FAILED]
        job = await job_of(store, made.uuid)
        assert job.error is not None
        assert (job.error.code, job.crashes) == (ErrorCode.QUARANTINED, 3)
        assert await claim_up_to(store, 1) == []

    async def test_who_crashes_in_company_becomes_a_suspect(self, store: Store) -> None:
        """Jobs that share their crashes are not quarantined: they run one at a time, with nothing beside them, until a
        phase is done."""
        first, second = await enqueue(store), await enqueue(store)
        for boot in range(CRASHES_MAX):
            assert len(await claim_up_to(store, 2, worker=f"boot{boot}")) == 2
            await store.rescue("next", crashes_max=CRASHES_MAX)
        innocent = await enqueue(store, kind="run", tenant="other", priority=9)
        capacity = Capacity({"build": 2, "run": 2}, 9, crashes_max=CRASHES_MAX)
        (alone,) = await store.claim("w", capacity)
        assert alone.job.uuid == first.uuid
        assert await store.claim("w", capacity) == []
        assert await store.enter_phase(alone, "building") == 0
        assert await store.claim("w", capacity) == []
        await store.enter_phase(alone, "pushing")
        job = await job_of(store, first.uuid)
        assert (job.crashes, job.crashes_in_phase) == (3, 0)
        assert await store.claim("w", capacity) == []
        await store.finish(alone, Ending(State.SUCCEEDED))
        (alone,) = await store.claim("w", capacity)
        assert alone.job.uuid == second.uuid
        await store.finish(alone, Ending(State.SUCCEEDED))
        (claim,) = await store.claim("w", capacity)
        assert claim.job.uuid == innocent.uuid

    async def test_one_crash_in_company_clears_the_count_of_those_alone(self, store: Store) -> None:
        """Only crashes in a row, with nothing beside it, are a job's own."""
        made = await enqueue(store)
        for alone in (True, True, False, True, True):
            if not alone:
                await enqueue(store, kind="run")
            await store.claim("dead", Capacity({"build": 1, "run": 0 if alone else 1}, 9, crashes_max=9))
            await store.rescue("next", crashes_max=CRASHES_MAX)
        job = await job_of(store, made.uuid)
        assert (job.state, job.crashes) == (State.QUEUED, 5)

    async def test_a_suspect_that_only_fails_is_none_any_more(self, store: Store, clock: SimulatedClock) -> None:
        """An attempt that ends with a fault did not take the daemon down: the job no longer holds up the others."""
        made = await enqueue(store)
        await enqueue(store)
        for boot in range(CRASHES_MAX):
            assert len(await claim_up_to(store, 2, worker=f"boot{boot}")) == 2
            await store.rescue("next", crashes_max=CRASHES_MAX)
        (alone,) = await claim_up_to(store, 2)
        await store.retry(alone, BROKEN, not_before_ms=clock.now_ms)
        (alone,) = await claim_up_to(store, 2)
        assert alone.job.uuid != made.uuid
        await store.retry(alone, BROKEN, not_before_ms=clock.now_ms)
        assert len(await claim_up_to(store, 2)) == 2

    async def test_what_a_drain_left_is_no_crash(self, store: Store) -> None:
        """A worker that was asked to stop, and then died, was not brought down by its jobs."""
        made = await enqueue(store)
        for _ in range(CRASHES_MAX + 1):
            await claim_one(store, worker="old")
            await store.drain("old")
            (rescued,) = await store.rescue("new", crashes_max=CRASHES_MAX)
            assert rescued.state is State.QUEUED
        job = await job_of(store, made.uuid)
        assert (job.crashes, job.attempt) == (0, 0)

    async def test_a_quarantined_job_can_be_repeated_with_all_it_had(self, store: Store) -> None:
        """It keeps its passwords and payloads for that; of another job they are gone with its end."""
        secrets = {"password": Secret("s3cret")}
        made = await enqueue(store, secrets=secrets, blobs=("sha256:1",), labels={"a": "b"}, priority=3, tenant="t")
        await claim_one(store, worker="dead")
        await store.rescue("next", crashes_max=1)
        again = await store.repeat(await job_of(store, made.uuid))
        assert (again.secrets, again.blobs, again.retry_of) == (secrets, ("sha256:1",), made.uuid)
        assert (again.kind, again.spec, again.tenant) == ("build", {"image": "a/b"}, "t")
        assert (again.labels, again.priority) == ({"a": "b"}, 3)
        failed = await enqueue(store, secrets=secrets)
        await store.finish(await claim_one(store), Ending(State.FAILED, error=BROKEN))
        with pytest.raises(Permanent, match="its secrets were deleted when it ended"):
            await store.repeat(await job_of(store, failed.uuid))
        old = await enqueue(store, spec={"context": "sha256:2"}, blobs=("sha256:2",))
        await store.request_cancel(old.uuid, tenant=None)
        assert (await store.repeat(await job_of(store, old.uuid))).blobs == ("sha256:2",)
        later = (await job_of(store, old.uuid)).created_ms + HOUR_MS
        await store.prune(jobs_before_ms=0, logs_before_ms=0, blobs_before_ms=later, batch_max=100)
        with pytest.raises(Permanent, match="its payload is no longer kept"):
            await store.repeat(await job_of(store, old.uuid))

    async def test_waiting_tenants_share_the_slots(self, store: Store) -> None:
        """While two wait for four slots none gets more than two; who waits alone gets all that are free."""
        for tenant in ("a", "a", "a", "a", "b"):
            await enqueue(store, tenant=tenant)
        capacity = Capacity({"build": 4}, 9, slots={"build": 4})
        first = await store.claim("w", capacity)
        assert sorted(claim.job.tenant for claim in first) == ["a", "a", "b"]
        (rest,) = await store.claim("w", Capacity({"build": 1}, 9, slots={"build": 4}))
        assert rest.job.tenant == "a"

    async def test_the_next_free_slot_is_for_who_has_less_than_its_share(self, store: Store) -> None:
        """A tenant that holds every slot gives way with its first job that ends."""
        for _ in range(9):
            await enqueue(store, tenant="a")
        held = await store.claim("w", Capacity({"build": 4}, 9, slots={"build": 4}))
        late = [await enqueue(store, tenant="b") for _ in range(3)]
        won = []
        for claim in held:
            await store.finish(claim, Ending(State.SUCCEEDED))
            won += await store.claim("w", Capacity({"build": 1}, 9, slots={"build": 4}))
        assert [claim.job.tenant for claim in won] == ["b", "b", "a", "a"]
        assert [claim.job.uuid for claim in won[:2]] == [job.uuid for job in late[:2]]

    async def test_a_tenant_that_may_not_start_more_holds_no_share(self, store: Store) -> None:
        """Slots are not kept free for who is at its own bound."""
        for tenant in ("a", "a", "a", "b", "b"):
            await enqueue(store, tenant=tenant)
        capacity = Capacity({"build": 4}, 9, slots={"build": 4}, per_tenant={"build": 1})
        assert sorted(claim.job.tenant for claim in await store.claim("w", capacity)) == ["a", "b"]

    async def test_a_tenant_has_a_queue_and_room_of_its_own(self, store: Store) -> None:
        """One tenant's bound refuses its next job, with the key's name, and nobody else's."""
        job = NewJob(kind="build", spec={}, tenant="a")
        await store.enqueue(job, queue_max=9, tenant_queue_max=1)
        with pytest.raises(Temporary, match=r"limits\.per_tenant\.queue_max") as refused:
            await store.enqueue(NewJob(kind="build", spec={}, tenant="a"), queue_max=9, tenant_queue_max=1)
        assert refused.value.code is ErrorCode.QUEUE_FULL
        await store.enqueue(NewJob(kind="build", spec={}, tenant="b"), queue_max=9, tenant_queue_max=1)

    async def test_jobs_wait_for_a_peer_until_it_answers(self, store: Store, clock: SimulatedClock) -> None:
        """They are not claimed meanwhile, one may look, and all are ready once it has answered."""
        for _ in range(3):
            await enqueue(store)
        for claim in await claim_up_to(store, 3):
            await store.retry(claim, BROKEN, not_before_ms=clock.now_ms + HOUR_MS, waits_for="registry")
            clock.advance(1)
        assert await claim_up_to(store, 3) == []
        await store.try_one("registry", ["run"])
        assert await claim_up_to(store, 3) == []
        await store.try_one("registry", ["build"])
        await store.try_one("registry", ["build"])
        (trial,) = await claim_up_to(store, 3)
        assert trial.job.faults == 1
        await store.retry(trial, BROKEN, not_before_ms=clock.now_ms + HOUR_MS, waits_for="registry")
        await store.try_one("registry", ["build"])
        (other,) = await claim_up_to(store, 3)
        assert other.job.id != trial.job.id
        assert await store.answered("another") == 0
        assert await store.answered("registry") == 2
        assert len(await claim_up_to(store, 3)) == 2

    async def test_a_clock_that_was_set_back_delays_no_attempt(self, store: Store, clock: SimulatedClock) -> None:
        """A retry waits for its pause and no longer; what its user wants later stays later."""
        await enqueue(store)
        await store.retry(await claim_one(store), BROKEN, not_before_ms=clock.now_ms + 5_000)
        wanted = await enqueue(store, not_before_ms=clock.now_ms + 5_000)
        clock.advance(-24 * HOUR_MS)
        assert await store.clamp_delays(0) == 1
        clock.advance(2_000)
        clock.advance(-1_500)
        assert await store.clamp_delays(1_500) == 1
        clock.advance(3_000)
        (claim,) = await claim_up_to(store, 2)
        assert claim.job.uuid != wanted.uuid

    async def test_jobs_that_wait_too_long_expire(self, store: Store, clock: SimulatedClock) -> None:
        """Queued jobs that never started fail with `timeout`; who ran once, runs, is newer or not due yet stays."""
        retried, running = await enqueue(store), await enqueue(store)
        claims = await claim_up_to(store, 2)
        await store.retry(claims[0], BROKEN, not_before_ms=clock.now_ms + HOUR_MS)
        old, delayed = await enqueue(store), await enqueue(store, not_before_ms=clock.now_ms + HOUR_MS)
        clock.advance(10)
        newer = await enqueue(store)
        assert set(await store.expire(due_before_ms=clock.now_ms)) == {old.uuid}
        job = await job_of(store, old.uuid)
        assert job.error is not None
        assert (job.state, job.error.code) == (State.FAILED, ErrorCode.TIMEOUT)
        assert await store.live() == {retried.uuid, running.uuid, newer.uuid, delayed.uuid}

    async def test_history_is_pruned_by_age_in_batches(self, store: Store, clock: SimulatedClock) -> None:
        """Old ended jobs go with all that hangs on them; newer and living ones stay. A batch counts every row, those of
        the history too, and a full one says so."""
        for number in range(5):
            await enqueue(store, labels={"n": str(number)}, blobs=(f"sha256:{number}",), images=[IMAGE])
            claim = await claim_one(store)
            await store.log(claim, "text\n")
            await store.record_pushes(claim, [PUSH, replace(PUSH, target=1)])
            await store.finish(claim, Ending(State.SUCCEEDED))
        limit_ms = clock.advance(1000)
        living = await enqueue(store, blobs=("sha256:living",))
        events = len(await store.changes_since(0, job_id=None, limit=99)) - 1
        batches: list[tuple[int, int, int, int]] = []
        while not batches or batches[-1][3] == 2:
            pruned = await store.prune(jobs_before_ms=limit_ms, logs_before_ms=0, blobs_before_ms=0, batch_max=2)
            batches.append((pruned.jobs, pruned.logs, pruned.blobs, pruned.rows))
        # What a job is found by is one row as long as it is new.
        labels, pushes, terms = 5, 10, 5
        # That a log is gone is a line of the history until its job goes too.
        rows = 5 + 5 + 5 + events + 5 + labels + pushes + terms
        assert [sum(column) for column in zip(*batches, strict=True)] == [5, 5, 5, rows]
        assert max(rows for *_, rows in batches) == 2
        assert {job.uuid for job in (await store.list_jobs(Filter(), cursor=None, limit=9)).jobs} == {living.uuid}
        assert await store.referenced_blobs() == {"sha256:living"}
        assert {event.job_id for event in await store.changes_since(0, job_id=None, limit=99)} == {living.id}

    async def test_logs_and_blobs_may_go_before_their_jobs(self, store: Store, clock: SimulatedClock) -> None:
        """With a shorter limit only the log or the blob references of ended jobs are pruned."""
        await enqueue(store, blobs=("sha256:1",))
        claim = await claim_one(store)
        await store.log(claim, "text\n")
        await store.finish(claim, Ending(State.SUCCEEDED))
        limit_ms = clock.advance(1000)
        pruned = await store.prune(jobs_before_ms=0, logs_before_ms=limit_ms, blobs_before_ms=0, batch_max=9)
        assert (pruned.jobs, pruned.logs, pruned.blobs) == (0, 1, 0)
        assert await store.read_log(claim.job.id, from_offset=0, max_blocks=9) == []
        assert (await job_of(store, claim.job.uuid)).log_bytes == 0
        pruned = await store.prune(jobs_before_ms=0, logs_before_ms=limit_ms, blobs_before_ms=limit_ms, batch_max=9)
        assert (pruned.jobs, pruned.logs, pruned.blobs) == (0, 0, 1)

    async def test_a_payload_in_a_spec_goes_as_a_blob_does(self, store: Store, clock: SimulatedClock) -> None:
        """`content` leaves the specs of old ended jobs, in batches; all else of them stays, and so do younger ones."""
        spec = {"payload": "sha256:1", "content": "QQ=="}
        ended = [await enqueue(store, spec=spec) for _ in range(3)]
        for _ in ended:
            await store.finish(await claim_one(store), Ending(State.SUCCEEDED))
        limit_ms = clock.advance(1000)
        young, living = await enqueue(store, spec=spec), await enqueue(store, spec=spec)
        await store.finish(await claim_one(store), Ending(State.SUCCEEDED))
        batches = [
            await store.prune(jobs_before_ms=0, logs_before_ms=0, blobs_before_ms=limit_ms, batch_max=2)
            for _ in range(3)
        ]
        assert [(pruned.jobs, pruned.blobs) for pruned in batches] == [(0, 2), (0, 1), (0, 0)]
        assert [(await job_of(store, job.uuid)).spec for job in ended] == [{"payload": "sha256:1"}] * 3
        assert [(await job_of(store, job.uuid)).spec for job in (young, living)] == [spec, spec]

    async def test_a_listing_pages_from_new_to_old(self, store: Store) -> None:
        """The cursor continues exactly where the page ended, whatever came in meanwhile."""
        made = [await enqueue(store) for _ in range(7)]
        first = await store.list_jobs(Filter(), cursor=None, limit=3)
        await enqueue(store)
        second = await store.list_jobs(Filter(), cursor=first.next_cursor, limit=3)
        third = await store.list_jobs(Filter(), cursor=second.next_cursor, limit=3)
        uuids = [job.uuid for page in (first, second, third) for job in page.jobs]
        assert uuids == [job.uuid for job in reversed(made)]
        assert third.next_cursor is None
        exact = await store.list_jobs(Filter(), cursor=made[3].id, limit=3)
        assert exact.next_cursor is None

    async def test_a_listing_filters_by_everything_at_once(self, store: Store, clock: SimulatedClock) -> None:
        """Every combination of tenant, kinds, states and label lists exactly what fits, in order, page by page."""
        everything = await self._jobs_of_every_sort(store, clock)
        tenants, kinds = (None, "a", "b", "none"), ((), ("build",), ("build", "run"), ("none",))
        states = ((), *((state,) for state in State), (State.QUEUED, State.FAILED), (State.FAILED, State.CANCELLED))
        labels = (None, ("n", "0"), ("n", "none"))
        for tenant in tenants:
            for kind in kinds:
                for some in states:
                    for label in labels:
                        which = Filter(tenant=tenant, kinds=frozenset(kind), states=frozenset(some), label=label)
                        wanted = [job.id for job in everything if _fits(job, which)]
                        assert await _list_all(store, which) == wanted, which

    async def _jobs_of_every_sort(self, store: Store, clock: SimulatedClock) -> list[Job]:
        endings = [Ending(State.SUCCEEDED), Ending(State.FAILED, error=BROKEN), Ending(State.CANCELLED), None]
        for tenant in ("a", "b"):
            for kind in ("build", "run"):
                for number, ending in enumerate(endings):
                    await enqueue(store, tenant=tenant, kind=kind, labels={"n": str(number % 2)})
                    claim = await claim_one(store, kind=kind)
                    if ending is not None:
                        await store.finish(claim, ending)
                await enqueue(store, tenant=tenant, kind=kind, not_before_ms=clock.now_ms + 1)
        for tenant in ("a", "b"):
            await enqueue(store, tenant=tenant, labels={"n": "0"})
        return list((await store.list_jobs(Filter(), cursor=None, limit=99)).jobs)

    async def test_a_listing_leaves_out_what_may_be_long(self, store: Store) -> None:
        """However a page is found, jobs have no checkpoint, Dockerfile, arguments, labels, payload; `get` has all."""
        long = {"dockerfile": "FROM x", "build_args": {"a": "b"}, "labels": {"c": "d"}, "content": "cGF5bG9hZA=="}
        spec = {"image": "a/b", "nocache": True} | long
        made = await enqueue(store, spec=spec, labels={"n": "1"})
        claim = await claim_one(store)
        await store.checkpoint(claim, {"built": "x" * 1000})
        for which in (Filter(), Filter(kinds=frozenset({"build"})), Filter(label=("n", "1"))):
            (listed,) = (await store.list_jobs(which, cursor=None, limit=9)).jobs
            assert (listed.spec, listed.checkpoint) == ({"image": "a/b", "nocache": True}, {})
            assert (listed.uuid, listed.labels, listed.state) == (made.uuid, {"n": "1"}, State.RUNNING)
        assert (await job_of(store, made.uuid)).spec == spec

    async def test_position_counts_who_goes_before(self, store: Store) -> None:
        """Jobs of the same tenant and kind with higher priority, or as high and older, go before."""
        first = await enqueue(store)
        await enqueue(store, kind="run")
        await enqueue(store, tenant="other")
        low, high = await enqueue(store, priority=-1), await enqueue(store, priority=1)
        positions = [await store.position(await job_of(store, job.uuid)) for job in (high, first, low)]
        assert positions == [0, 1, 2]
        claim = await claim_one(store, kind="run")
        assert await store.position(claim.job) == 0

    async def test_history_is_a_list_of_events(self, store: Store, clock: SimulatedClock) -> None:
        """Each move is one event with its time, in order; the cursor continues without gap or repetition."""
        made = await enqueue(store)
        claim = await claim_one(store)
        await store.enter_phase(claim, "building")
        await store.retry(claim, BROKEN, not_before_ms=0)
        claim = await claim_one(store)
        await store.request_cancel(made.uuid, tenant=None)
        await store.finish(claim, Ending(State.CANCELLED))
        events = await store.changes_since(0, job_id=made.id, limit=100)
        types = [event.type for event in events]
        assert sorted(types[2:5]) == sorted(["enter_phase", "leave_phase", "retry"])
        assert [*types[:2], *types[5:]] == ["enqueue", "claim", "claim", "request_cancel", "cancel"]
        (retried,) = [event for event in events if event.type == "retry"]
        assert retried.data["error"] == {"code": "build_failed", "message": "exit code 1"}
        assert {event.at_ms for event in events} == {clock.now_ms}
        assert {(event.uuid, event.tenant, event.kind) for event in events} == {(made.uuid, "local", "build")}
        halves = await store.changes_since(0, job_id=None, limit=3)
        halves += await store.changes_since(halves[-1].id, job_id=None, limit=100)
        assert halves == events

    async def test_a_kind_adds_to_the_history(self, store: Store, clock: SimulatedClock) -> None:
        """A note stands in the history where it was made, with its time and data, and changes nothing of the job."""
        made = await enqueue(store)
        claim = await claim_one(store)
        before = await job_of(store, made.uuid)
        clock.advance(7)
        with store.watch(job_topic(made.id)) as changes:
            await store.note(claim, "target", {"endpoint": "r.example", "tags": {"1": "copied"}})
            assert await changes.changed(1.0)
        assert await job_of(store, made.uuid) == before
        await store.finish(claim, Ending(State.SUCCEEDED))
        *_, noted, _ = await store.changes_since(0, job_id=made.id, limit=100)
        assert (noted.type, noted.at_ms) == ("target", clock.now_ms)
        assert noted.data == {"endpoint": "r.example", "tags": {"1": "copied"}}

    async def test_pushes_are_kept_as_they_stand(self, store: Store) -> None:
        """What is recorded of a push comes back the same, in place of what was there, job by job and in order; it
        survives a crash, a retry and the job's end."""
        made, other = await enqueue(store), await enqueue(store)
        claim, another = await claim_up_to(store, 2)
        second, third = replace(PUSH, target=1), replace(PUSH, image=1)
        with store.watch(job_topic(made.id)) as changes:
            await store.record_pushes(claim, [third, second, PUSH])
            assert await changes.changed(1.0)
        await store.record_pushes(another, [PUSH])
        assert await store.pushes(made.id) == [PUSH, second, third]
        done = replace(PUSH, error=None, is_final=False, tags={"1": "copied"}, sent_bytes=None, wait=Wait(), tries=3)
        await store.record_pushes(claim, [done])
        await store.record_pushes(claim, [])
        await store.rescue("w2", crashes_max=CRASHES_MAX)
        again = await claim_one(store, worker="w2")
        await store.retry(again, BROKEN, not_before_ms=0)
        assert await store.pushes(made.id) == [done, second, third]
        assert await store.pushes(other.id) == [PUSH]

    async def test_every_transition_of_the_table_and_no_other(self, store: Store) -> None:
        """From every state, each move leads where model/job.py says, or changes nothing."""
        for state in State:
            for move in Transition:
                await self._drain(store)
                made = await enqueue(store)
                claim = await _bring_to(store, made, state)
                await _try(store, made, claim, move)
                expected = next_state(state, move) or state
                job = await job_of(store, made.uuid)
                assert job.state is expected, f"{move} from {state}"
                if next_state(state, move):
                    assert (await event_types(store, made))[-1] == move

    async def _drain(self, store: Store) -> None:
        for uuid in await store.live():
            await store.request_cancel(uuid, tenant=None)
        await store.rescue("nobody", crashes_max=CRASHES_MAX)

    async def test_statistics_count_by_kind(self, store: Store) -> None:
        """Waiting (delayed included) and running jobs are counted for each kind."""
        await enqueue(store)
        await enqueue(store, not_before_ms=2**50)
        await enqueue(store, kind="run", tenant="t")
        await claim_one(store, kind="run")
        stats = await store.stats()
        assert {kind: count for kind, count in stats.queued.items() if count} == {"build": 2}
        assert {kind: count for kind, count in stats.running.items() if count} == {"run": 1}

    async def test_watchers_hear_of_commits(self, store: Store) -> None:
        """A watch tells of a commit on its topic once, and of nothing else."""
        with store.watch(QUEUE_TOPIC) as queue:
            assert not await queue.changed(0.01)
            made = await enqueue(store)
            assert await queue.changed(5)
            assert not await queue.changed(0.01)
            with store.watch(job_topic(made.id)) as changes:
                claim = await claim_one(store)
                assert await changes.changed(5)
                await store.log(claim, "text")
                assert await changes.changed(5)
                await enqueue(store)
                assert not await changes.changed(0.01)
                await store.interrupt(claim)
                assert await changes.changed(5)
            assert await queue.changed(5)

    async def test_every_new_line_of_a_history_is_heard_of(self, store: Store) -> None:
        """Whatever adds an event publishes it, and names the cursor from which it is seen; others do not."""

        async def adds(verb: Awaitable[object], *, types: Sequence[str]) -> None:
            cursor = await store.last_event()
            with store.watch(EVENT_TOPIC) as changes:
                await verb
                events = await store.changes_since(cursor, job_id=None, limit=99)
                assert [event.type for event in events] == list(types)
                assert await changes.changed(0.01) is bool(types)

        assert await store.last_event() == 0
        await adds(enqueue(store), types=["enqueue"])
        await adds(claim_up_to(store, 1, kind="run"), types=[])
        claim = await claim_one(store)
        await adds(store.log(claim, "text"), types=[])
        await adds(store.progress(claim, {"a": 1}), types=[])
        await adds(store.enter_phase(claim, "building"), types=["enter_phase"])
        await adds(store.note(claim, "target", {}), types=["target"])
        await adds(store.request_cancel(claim.job.uuid, tenant=None), types=["request_cancel"])
        await adds(store.finish(claim, Ending(State.CANCELLED)), types=["leave_phase", "cancel"])
        made = await enqueue(store)
        await adds(claim_one(store), types=["claim"])
        await adds(store.rescue("w2", crashes_max=CRASHES_MAX), types=["rescue"])
        await adds(store.request_cancel(made.uuid, tenant=None), types=["cancel"])

    async def test_a_probe_passes_through_the_writer(self, store: Store) -> None:
        """It returns where commits go on."""
        await store.probe()


def _fits(job: Job, which: Filter) -> bool:
    return (
        which.tenant in (None, job.tenant)
        and (not which.kinds or job.kind in which.kinds)
        and (not which.states or job.state in which.states)
        and (which.label is None or job.labels.get(which.label[0]) == which.label[1])
    )


async def _list_all(store: Store, which: Filter) -> list[int]:
    ids: list[int] = []
    cursor = None
    while True:
        page = await store.list_jobs(which, cursor=cursor, limit=4)
        ids += [job.id for job in page.jobs]
        cursor = page.next_cursor
        if cursor is None:
            return ids


async def _bring_to(store: Store, made: Enqueued, state: State) -> Claim | None:
    if state is State.QUEUED:
        return None
    claim = await claim_one(store)
    assert claim.job.uuid == made.uuid
    if state is not State.RUNNING:
        await store.finish(claim, Ending(state))
    return claim


async def _try(store: Store, made: Enqueued, claim: Claim | None, move: Transition) -> None:
    """Make `move` the way a daemon would; one without a claim tries with one that never was."""
    stale = claim or Claim(job=await job_of(store, made.uuid), token="none", secrets={})
    state = (await job_of(store, made.uuid)).state
    try:
        match move:
            case Transition.CLAIM:
                await claim_up_to(store, 1)
            case Transition.SUCCEED:
                await store.finish(stale, Ending(State.SUCCEEDED))
            case Transition.FAIL if state is State.QUEUED:
                await store.expire(due_before_ms=2**50)
            case Transition.FAIL:
                await store.finish(stale, Ending(State.FAILED, error=BROKEN))
            case Transition.CANCEL if state is State.RUNNING:
                await store.finish(stale, Ending(State.CANCELLED))
            case Transition.CANCEL:
                await store.request_cancel(made.uuid, tenant=None)
            case Transition.RETRY:
                await store.retry(stale, BROKEN, not_before_ms=0)
            case Transition.INTERRUPT:
                await store.interrupt(stale)
            case Transition.RESCUE:
                await store.rescue("another", crashes_max=CRASHES_MAX)
    except ClaimLost:
        pass
