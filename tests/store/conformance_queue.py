"""What every store has to promise of the queue as a whole: finding jobs, pausing kinds, trying again, and what comes
before a job. To be inherited as `StoreConformance` is."""

from itertools import product

import pytest
from conformance import BROKEN, HOUR_MS, claim_one, claim_up_to, enqueue, job_of
from simulated_clock import SimulatedClock

from imagejobd.model.errors import ErrorCode, Permanent
from imagejobd.model.job import Job, JobError, State
from imagejobd.model.reference import ImageReference
from imagejobd.model.secrets import Secret
from imagejobd.store.filters import Failures, Filter, Place
from imagejobd.store.protocol import PAUSE_TOPIC, QUEUE_TOPIC, Capacity, Ending, Store

AWAY = JobError(ErrorCode.REGISTRY_UNAVAILABLE, "503")
FAILED = Ending(State.FAILED, error=BROKEN)
JANE, JOE = {"sub": "1", "email": "jane@example.org"}, {"sub": "2", "name": "Joe"}


class QueueConformance:
    async def test_jobs_are_found_by_image_submitter_and_time(self, store: Store, clock: SimulatedClock) -> None:
        """Every combination with a state, a tenant and a label lists exactly what fits, in order, page by page."""
        start_ms = clock.now_ms
        everything = await self._jobs_of_all_sorts(store, clock)
        images = (None, "r.example/a/b", "r.example/a/b:1", "r.example/a", "docker.io/library/busybox")
        people = (None, "jane@example.org", "2", "nobody")
        times = ((None, None), (start_ms + 2, None), (None, start_ms + 5), (start_ms + 2, start_ms + 5))
        others = (Filter(), Filter(tenant="a"), Filter(states=frozenset({State.FAILED, State.QUEUED})))
        others += (Filter(label=("n", "1")), Filter(label=("n", "1"), tenant="b", kinds=frozenset({"build"})))
        for image, submitter, (after_ms, before_ms), other in product(images, people, times, others):
            which = Filter(
                tenant=other.tenant,
                kinds=other.kinds,
                states=other.states,
                label=other.label,
                image=image,
                submitter=submitter,
                created_from_ms=after_ms,
                created_before_ms=before_ms,
            )
            wanted = [job.id for job, names in everything if _fits(job, names, which)]
            assert await _listed(store, which) == wanted, which

    async def _jobs_of_all_sorts(self, store: Store, clock: SimulatedClock) -> list[tuple[Job, set[str]]]:
        """Each with the canonical names of its images, from new to old."""
        jobs = []
        texts = (["r.example/a/b:1", "r.example/a/b:2"], ["busybox"], ["R.example:443/a/b:1"], [])
        for number, (names, person) in enumerate(product(texts, (JANE, JOE))):
            references = [ImageReference.parse(name) for name in names]
            tenant = "ab"[number % 2]
            made = await enqueue(
                store, tenant=tenant, submitter=person, images=references, labels={"n": str(number % 3)}
            )
            if number % 4:
                await store.finish(await claim_one(store), FAILED if number % 4 == 1 else Ending(State.SUCCEEDED))
            canonical = {each.canonical for each in references}
            canonical |= {each.repository_only.canonical for each in references}
            jobs.append((made.uuid, canonical))
            clock.advance(1)
        return [(await job_of(store, uuid), names) for uuid, names in reversed(jobs)]

    async def test_a_clock_that_was_set_back_hides_no_job(self, store: Store, clock: SimulatedClock) -> None:
        """Jobs are listed by the time that they were created at, whatever the order of those times."""
        start_ms = clock.now_ms
        for step_ms in (10, 10, -15, 10, 10):
            await enqueue(store)
            clock.advance(step_ms)
        listed = (await store.list_jobs(Filter(), cursor=None, limit=9)).jobs
        for since_ms, before_ms in product((None, start_ms, start_ms + 5, start_ms + 12), (None, start_ms + 6)):
            which = Filter(created_from_ms=since_ms, created_before_ms=before_ms)
            wanted = [job.id for job in listed if _fits(job, set(), which)]
            assert await _listed(store, which) == wanted, which

    async def test_a_paused_kind_starts_nothing(self, store: Store) -> None:
        """Its jobs are accepted and wait; other kinds, and its own once it is resumed, start."""
        await enqueue(store)
        other = await enqueue(store, kind="run")
        await store.pause(["build"], reason="the disk is changed", by="jane")
        both = Capacity({"build": 2, "run": 2}, 9, slots={"build": 2, "run": 2})
        assert [claim.job.uuid for claim in await store.claim("w1", both)] == [other.uuid]
        await enqueue(store)
        assert await store.claim("w1", both) == []
        await store.resume(["build", "run"])
        assert len(await store.claim("w1", both)) == 2

    async def test_a_pause_says_why_since_when_and_by_whom(self, store: Store, clock: SimulatedClock) -> None:
        """A second pause of a kind changes the reason and the name; since when it is stays."""
        start_ms = clock.now_ms
        await store.pause(["build", "run"], reason="one", by="jane")
        clock.advance(5)
        await store.pause(["run"], reason="two", by="joe")
        pauses = await store.pauses()
        assert {kind: (pause.reason, pause.by, pause.since_ms) for kind, pause in pauses.items()} == {
            "build": ("one", "jane", start_ms),
            "run": ("two", "joe", start_ms),
        }
        await store.resume(["build"])
        assert set(await store.pauses()) == {"run"}

    async def test_a_pause_stops_nothing_else(self, store: Store, clock: SimulatedClock) -> None:
        """Of a paused kind jobs are retried, rescued, cancelled, expired and finished as ever."""
        for _ in range(5):
            await enqueue(store)
        claims = await claim_up_to(store, 3)
        await claim_up_to(store, 1, worker="dead")
        await store.pause(["build"], reason="", by="jane")
        await store.finish(claims[0], Ending(State.SUCCEEDED))
        await store.retry(claims[1], BROKEN, not_before_ms=0)
        assert await store.request_cancel(claims[1].job.uuid, tenant=None) is State.CANCELLED
        await store.interrupt(claims[2])
        assert [rescued.state for rescued in await store.rescue("w1", crashes_max=3)] == [State.QUEUED]
        clock.advance(10)
        assert len(await store.expire(due_before_ms=clock.now_ms)) == 1
        assert await claim_up_to(store, 9) == []
        await store.resume(["build"])
        assert len(await claim_up_to(store, 9)) == 2

    async def test_a_paused_suspect_holds_nobody_up(self, store: Store) -> None:
        """A job that has to run alone and may not start lets others start."""
        await enqueue(store)
        for worker in ("w1", "w2", "w3"):
            await claim_up_to(store, 1, worker=worker)
            await enqueue(store, kind="run")
            await claim_up_to(store, 1, kind="run", worker=worker)
            await store.rescue(f"{worker}'s next", crashes_max=3)
        await store.pause(["build"], reason="", by="jane")
        for _ in range(2):
            job = await enqueue(store, kind="copy")
            claims = await store.claim("w4", Capacity({"build": 9, "copy": 9}, 99, slots={"build": 9, "copy": 9}))
            assert [claim.job.uuid for claim in claims] == [job.uuid]

    async def test_watchers_hear_of_pauses(self, store: Store) -> None:
        """Pausing and resuming publish the pause's topic, resuming the queue's too: jobs are ready again."""
        with store.watch(PAUSE_TOPIC) as pauses, store.watch(QUEUE_TOPIC) as queue:
            await store.pause(["build"], reason="", by="jane")
            assert await pauses.changed(1.0)
            assert not await queue.changed(0.0)
            await store.resume(["build"])
            assert await pauses.changed(1.0)
            assert await queue.changed(1.0)

    async def test_depths_are_a_tenants_or_everybodys(self, store: Store, clock: SimulatedClock) -> None:
        """How many wait and run, and since when the oldest that could start; one that waits for its time could not."""
        await enqueue(store, tenant="a", not_before_ms=clock.now_ms + HOUR_MS)
        first = clock.advance(1)
        await enqueue(store, tenant="a")
        second = clock.advance(1)
        await enqueue(store, tenant="b")
        await enqueue(store, tenant="b", kind="run")
        await claim_one(store, kind="run")
        everybodys, of_b = await store.depths(None), await store.depths("b")
        assert {kind: (one.queued, one.running, one.oldest_queued_ms) for kind, one in everybodys.items()} == {
            "build": (3, 0, first),
            "run": (0, 1, None),
        }
        assert (of_b["build"].queued, of_b["build"].oldest_queued_ms) == (1, second)
        assert await store.depths("c") == {}

    async def test_one_job_has_one_retry(self, store: Store) -> None:
        """The second is refused and names the first, also where both are asked for at the same moment."""
        made = await enqueue(store, labels={"a": "b"}, priority=7)
        await store.finish(await claim_one(store), FAILED)
        again = await store.repeat(await job_of(store, made.uuid))
        retry = await store.enqueue(again, queue_max=9)
        job = await job_of(store, retry.uuid)
        assert (job.retry_of, job.labels, job.priority) == (made.uuid, {"a": "b"}, 7)
        with pytest.raises(Permanent, match=f"already, as job {retry.uuid}") as refused:
            await store.enqueue(await store.repeat(await job_of(store, made.uuid)), queue_max=9)
        assert refused.value.code is ErrorCode.CONFLICT
        assert (await store.stats()).queued == {"build": 1}

    async def test_a_payload_that_goes_meanwhile_refuses_the_retry(self, store: Store, clock: SimulatedClock) -> None:
        """Between looking and storing the payload may be pruned; then no job is made that could not work."""
        made = await enqueue(store, spec={"context": "sha256:1"}, blobs=("sha256:1",))
        await store.finish(await claim_one(store), FAILED)
        again = await store.repeat(await job_of(store, made.uuid))
        limit_ms = clock.advance(1000)
        await store.prune(jobs_before_ms=0, logs_before_ms=0, blobs_before_ms=limit_ms, batch_max=9)
        with pytest.raises(Permanent, match="its payload is no longer kept"):
            await store.enqueue(again, queue_max=9)
        assert (await store.stats()).queued == {}

    async def test_a_retry_asks_for_the_secrets_by_name(self, store: Store) -> None:
        """What was deleted is named, others are refused, and those that are given go to the new job."""
        secrets = {"password": Secret("old"), "tar_url": Secret("http://u:p@h/")}
        made = await enqueue(store, secrets=secrets)
        await store.finish(await claim_one(store), FAILED)
        job = await job_of(store, made.uuid)
        assert job.secret_names == ("password", "tar_url")
        for given, words in (({}, "password, tar_url"), ({"password": Secret("new")}, "as secrets: tar_url")):
            with pytest.raises(Permanent, match=words) as refused:
                await store.repeat(job, given)
            assert refused.value.code is ErrorCode.CONFLICT
        with pytest.raises(Permanent, match=r"no secret 'pasword'; it has: password, tar_url") as refused:
            await store.repeat(job, secrets | {"pasword": Secret("x")})
        assert refused.value.code is ErrorCode.INVALID
        new = secrets | {"password": Secret("new")}
        await store.enqueue(await store.repeat(job, new), queue_max=9)
        assert (await claim_one(store)).secrets == new

    async def test_failures_are_found_from_old_to_new(self, store: Store, clock: SimulatedClock) -> None:
        """By tenant, kind, state, label, code and time of the end, in pieces, without those that were tried again."""
        start_ms = clock.now_ms
        uuids = []
        for number in range(8):
            made = await enqueue(store, tenant="ab"[number % 2], labels={"n": str(number % 2)})
            claim = await claim_one(store)
            await store.finish(claim, Ending(State.FAILED, error=AWAY if number < 4 else BROKEN))
            uuids.append(made.uuid)
            clock.advance(1)
        cancelled = await enqueue(store)
        await store.request_cancel(cancelled.uuid, tenant=None)
        await enqueue(store)
        await store.finish(await claim_one(store), Ending(State.SUCCEEDED))
        assert await _failures(store, Failures()) == [*uuids, cancelled.uuid]
        assert await _failures(store, Failures(states=frozenset({State.FAILED}))) == uuids
        assert await _failures(store, Failures(tenant="a", code=ErrorCode.BUILD_FAILED)) == uuids[4::2]
        assert await _failures(store, Failures(label=("n", "1"), since_ms=start_ms + 2)) == uuids[3::2]
        assert await _failures(store, Failures(kinds=frozenset({"run"}))) == []
        await store.enqueue(await store.repeat(await job_of(store, uuids[1])), queue_max=9)
        assert await _failures(store, Failures(code=ErrorCode.REGISTRY_UNAVAILABLE)) == [uuids[0], *uuids[2:4]]

    async def test_a_backlog_is_what_comes_before_a_job(self, store: Store, clock: SimulatedClock) -> None:
        """Its own tenant's jobs, as many of each other tenant and one, what runs, and how long the last ones took."""
        for length_ms in (100, 300):
            await enqueue(store)
            claim = await claim_one(store)
            clock.advance(length_ms)
            await store.finish(claim, Ending(State.SUCCEEDED))
        await enqueue(store)
        await claim_one(store)
        since_ms = clock.now_ms
        for tenant, count in (("b", 5), ("c", 1), ("local", 2)):
            for _ in range(count):
                made = await enqueue(store, tenant=tenant)
        await enqueue(store, kind="run")
        backlog = await store.backlog(await job_of(store, made.uuid))
        assert (backlog.ahead, list(backlog.running_since_ms)) == (1 + 2 + 1, [since_ms])
        assert sorted(backlog.durations_ms) == [100, 300]


def _fits(job: Job, names: set[str], which: Filter) -> bool:
    return (
        which.tenant in (None, job.tenant)
        and (not which.kinds or job.kind in which.kinds)
        and (not which.states or job.state in which.states)
        and (which.label is None or job.labels.get(which.label[0]) == which.label[1])
        and (which.image is None or which.image in names)
        and (which.submitter is None or which.submitter in job.submitter.values())
        and (which.created_from_ms is None or job.created_ms >= which.created_from_ms)
        and (which.created_before_ms is None or job.created_ms < which.created_before_ms)
    )


async def _listed(store: Store, which: Filter) -> list[int]:
    ids: list[int] = []
    cursor = None
    while True:
        page = await store.list_jobs(which, cursor=cursor, limit=3)
        ids += [job.id for job in page.jobs]
        cursor = page.next_cursor
        if cursor is None:
            return ids


async def _failures(store: Store, which: Failures) -> list[str]:
    uuids: list[str] = []
    place: Place | None = None
    while True:
        page = await store.retryable(which, after=place, limit=2)
        uuids += page.uuids
        place = page.next
        if place is None:
            return uuids
