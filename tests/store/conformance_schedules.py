"""What every store has to promise of schedules. To be inherited as `StoreConformance` is."""

import pytest
from conformance import claim_one, enqueue, job_of
from simulated_clock import SimulatedClock

from imagejobd.model.errors import ErrorCode, Temporary
from imagejobd.model.job import NewJob, State
from imagejobd.store.protocol import QUEUE_TOPIC, Ending, Store
from imagejobd.store.schedules import ScheduleRecord


def new_job() -> NewJob:
    return NewJob(kind="build", spec={"image": "a/b"}, labels={"schedule": "nightly"})


class ScheduleConformance:
    async def test_schedules_begin_and_are_forgotten(self, store: Store, clock: SimulatedClock) -> None:
        """One that is new or has another rule begins now; of one that is not named any more nothing stays."""
        start_ms = clock.now_ms
        await store.schedules.begin({"a": "1", "b": "1", "c": "1"})
        clock.advance(10)
        await store.schedules.begin({"a": "1", "b": "2"})
        begun = {"a": ScheduleRecord(start_ms), "b": ScheduleRecord(start_ms + 10)}
        assert await store.schedules.all() == begun
        await store.schedules.begin({})
        assert await store.schedules.all() == {}

    async def test_a_scheduled_run_is_a_job_and_a_note(self, store: Store, clock: SimulatedClock) -> None:
        """Both are there when it returns, and workers are told."""
        await store.schedules.begin({"nightly": "1", "other": "1"})
        with store.watch(QUEUE_TOPIC) as queue:
            made = await store.schedules.run("nightly", 7, new_job(), queue_max=9)
            assert await queue.changed(1)
        assert made is not None
        assert (await job_of(store, made.uuid)).labels == {"schedule": "nightly"}
        records = await store.schedules.all()
        assert records["nightly"] == ScheduleRecord(7, last_ms=7, job=made.uuid)
        assert records["other"] == ScheduleRecord(clock.now_ms)

    async def test_a_scheduled_run_is_skipped_while_the_last_goes_on(self, store: Store) -> None:
        """And while a retry of it does, or a retry of that; all else in the queue is no hindrance."""
        await store.schedules.begin({"nightly": "1"})
        await enqueue(store, labels={"schedule": "nightly"}, priority=-1)
        first = await store.schedules.run("nightly", 1, new_job(), queue_max=9)
        assert first is not None
        uuid = first.uuid
        for due_ms in (2, 3, 4):
            assert await store.schedules.run("nightly", due_ms, new_job(), queue_max=9) is None
            record = (await store.schedules.all())["nightly"]
            assert record == ScheduleRecord(due_ms, last_ms=1, skipped_ms=due_ms, job=first.uuid)
            claim = await claim_one(store)
            assert claim.job.uuid == uuid
            assert await store.schedules.run("nightly", due_ms, new_job(), queue_max=9) is None
            await store.finish(claim, Ending(State.FAILED))
            if due_ms < 4:
                uuid = (await store.enqueue(await store.repeat(await job_of(store, uuid)), queue_max=9)).uuid
        assert await store.schedules.run("nightly", 5, new_job(), queue_max=9) is not None

    @pytest.mark.parametrize("bounds", [{"queue_max": 1}, {"queue_max": 9, "tenant_queue_max": 1}])
    async def test_a_refused_run_is_still_due(self, store: Store, bounds: dict[str, int]) -> None:
        """With a full queue nothing changes."""
        await store.schedules.begin({"nightly": "1"})
        await enqueue(store)
        before = await store.schedules.all()
        with pytest.raises(Temporary) as refused:
            await store.schedules.run("nightly", 1, new_job(), **bounds)
        assert refused.value.code is ErrorCode.QUEUE_FULL
        assert await store.schedules.all() == before
        assert sum((await store.stats()).queued.values()) == 1

    async def test_a_schedule_is_settled(self, store: Store) -> None:
        """Its last run stays what it was."""
        await store.schedules.begin({"nightly": "1"})
        made = await store.schedules.run("nightly", 9, new_job(), queue_max=9)
        assert made is not None
        await store.schedules.settle("nightly", 5)
        assert await store.schedules.all() == {"nightly": ScheduleRecord(5, last_ms=9, job=made.uuid)}
