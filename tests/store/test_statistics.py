"""What monitoring reads of the history: everything that happens, once, with how long it took."""

import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from conformance import BROKEN, claim_one, enqueue
from simulated_clock import SimulatedClock

from imagejobd.model.job import JobError, State
from imagejobd.store.protocol import Ending
from imagejobd.store.sqlite import statistics
from imagejobd.store.sqlite.database import load, open_database
from imagejobd.store.sqlite.store import SqliteStore
from imagejobd.store.statistics import Activity


async def all_activity(store: SqliteStore, cursor: int = 0) -> list[Activity]:
    """What happened after `cursor`, asked for until there is no more."""
    activities: list[Activity] = []
    while True:
        some, after = await store.activity(cursor)
        if after == cursor:
            return activities
        activities += some
        cursor = after


async def test_a_job_with_a_retry(store: SqliteStore, clock: SimulatedClock) -> None:
    """Its wait counts up to the first start only, each phase by itself, its duration with the pause in between."""
    await enqueue(store)
    clock.advance(1500)
    claim = await claim_one(store)
    await store.enter_phase(claim, "building")
    clock.advance(2000)
    await store.retry(claim, BROKEN, not_before_ms=clock.now_ms + 60_000)
    clock.advance(60_000)
    claim = await claim_one(store)
    await store.enter_phase(claim, "building")
    clock.advance(100)
    await store.enter_phase(claim, "pushing")
    clock.advance(400)
    await store.finish(claim, Ending(State.FAILED, error=BROKEN))
    assert set(await all_activity(store)) == {
        Activity("build", "enqueue", None, None, False, None, 1),
        Activity("build", "claim", None, None, False, 1500, 1),
        Activity("build", "claim", None, None, False, None, 1),
        Activity("build", "leave_phase", "building", None, False, 2000, 1),
        Activity("build", "leave_phase", "building", None, False, 100, 1),
        Activity("build", "leave_phase", "pushing", None, False, 400, 1),
        Activity("build", "retry", None, "build_failed", False, None, 1),
        Activity("build", "fail", None, "build_failed", False, 62_500, 1),
    }


async def test_a_wish_for_later_is_no_wait(store: SqliteStore, clock: SimulatedClock) -> None:
    """A job with a `not_before` waits from then on."""
    await enqueue(store, not_before_ms=clock.now_ms + 3_600_000)
    clock.advance(3_600_250)
    await claim_one(store)
    waits = [activity.duration_ms for activity in await all_activity(store) if activity.event == "claim"]
    assert waits == [250]


async def test_ends_in_the_queue_and_after_crashes(store: SqliteStore, clock: SimulatedClock) -> None:
    """Cancelled, expired, taken back, quarantined: each is there, and what the daemon's death had to do with it."""
    cancelled = await enqueue(store, kind="run")
    await store.request_cancel(cancelled.uuid, tenant=None)
    await enqueue(store, kind="dispatch")
    clock.advance(1)
    await store.expire(due_before_ms=clock.now_ms)
    await enqueue(store)
    for _ in range(2):
        await claim_one(store, worker="dead")
        await store.rescue("alive", crashes_max=2)
    await enqueue(store, kind="distribute")
    await claim_one(store, kind="distribute", worker="stopped")
    await store.drain("stopped")
    await store.rescue("alive", crashes_max=2)
    endings = [
        (activity.kind, activity.event, activity.code, activity.is_crash)
        for activity in await all_activity(store)
        if activity.event in ("cancel", "fail", "rescue")
    ]
    assert Counter(endings) == Counter(
        [
            ("run", "cancel", None, False),
            ("dispatch", "fail", "timeout", False),
            ("build", "rescue", None, True),
            ("build", "fail", "quarantined", True),
            ("distribute", "rescue", None, False),
        ]
    )


async def test_nothing_is_read_twice(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """However small the parts are in which it is read, each thing is in one of them; what is new is in the next."""
    monkeypatch.setattr(statistics, "EVENTS_AT_ONCE", 3)
    for _ in range(10):
        await enqueue(store)
    assert sum(activity.count for activity in await all_activity(store)) == 10
    cursor = await store.last_event()
    assert await store.activity(cursor) == ([], cursor)
    await enqueue(store)
    assert [activity.count for activity in await all_activity(store, cursor)] == [1]


async def test_how_the_queue_stands(store: SqliteStore, clock: SimulatedClock) -> None:
    """By kind: what waits for its turn and since when, what for its time, what runs, and what has to run alone."""
    began_ms = clock.now_ms
    await enqueue(store, not_before_ms=2**50)
    await enqueue(store)
    await claim_one(store, worker="dead")
    await store.rescue("alive", crashes_max=9)
    clock.advance(5000)
    await enqueue(store)
    await enqueue(store, kind="run")
    await claim_one(store, kind="run")
    stats = await store.kind_stats(crashes_max=1)
    build, run = stats["build"], stats["run"]
    assert (build.ready, build.delayed, build.running, build.suspects, build.oldest_due_ms) == (2, 1, 0, 1, began_ms)
    assert (run.ready, run.delayed, run.running, run.suspects, run.oldest_due_ms) == (0, 0, 1, 0, None)
    assert (await store.kind_stats(crashes_max=2))["build"].suspects == 0


async def test_a_paused_kind_is_told(store: SqliteStore, database: Path) -> None:
    """Also where no job of it waits."""
    await enqueue(store)
    with closing(sqlite3.connect(database, isolation_level=None)) as db:
        db.execute("insert into pause (kind, reason, since_ms, paused_by) values ('run', 'upgrade', 1, 'jane')")
    stats = await store.kind_stats(crashes_max=1)
    assert {kind: (one.ready, one.is_paused) for kind, one in stats.items()} == {"build": (1, False), "run": (0, True)}


async def test_commits_are_measured(store: SqliteStore) -> None:
    """Each commit counts with the requests that it took."""
    before = store.commits.requests.sum
    await enqueue(store)
    await store.probe()
    assert store.commits.requests.sum == before + 2
    assert 1 <= store.commits.seconds.cumulative()[-1] <= 2 + before


async def test_an_error_of_an_earlier_attempt_is_no_ones_end(store: SqliteStore) -> None:
    """A job that succeeds after a fault has succeeded without a code."""
    await enqueue(store)
    await store.retry(await claim_one(store), JobError(BROKEN.code, "x"), not_before_ms=0)
    await store.finish(await claim_one(store), Ending(State.SUCCEEDED))
    assert [a.code for a in await all_activity(store) if a.event == "succeed"] == [None]


@pytest.mark.parametrize(("topic", "statement"), [("statistics", "activity"), ("webhooks", "next_end")])
def test_the_history_is_read_from_where_it_was_left(tmp_path: Path, topic: str, statement: str) -> None:
    """What is new is found by its number; nothing walks all events, or all jobs."""
    db = open_database(tmp_path / "plan.db")
    names = ("after", "upto", "moves", "kinds", "tenants")
    plan = db.execute(f"explain query plan {load(topic)[statement]}", dict.fromkeys(names, 1)).fetchall()
    details = [row["detail"] for row in plan]
    assert "SEARCH event USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)" in details
    assert "SEARCH job USING INTEGER PRIMARY KEY (rowid=?)" in details
    db.close()
