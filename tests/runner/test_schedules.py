"""Schedules: each run once, one at a time, whatever the daemon and its clock have been through."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from runner_bench import END_TIMEOUT_S, ScriptedKind

from harness.building import parsing_builder
from imagejobd.jobs.build import BuildKind, BuildSettings
from imagejobd.model.egress import Egress
from imagejobd.model.errors import ErrorCode, Fault, Permanent, Temporary
from imagejobd.model.job import Job, Principal, State
from imagejobd.model.kind import JobKind, by_name
from imagejobd.model.resolver import Resolver
from imagejobd.registry.hosts import RegistryHost, RegistryHosts
from imagejobd.runner import schedules as schedules_module
from imagejobd.runner.schedules import Schedules, ScheduleSettings, read_schedules
from imagejobd.runner.settings import Limits
from imagejobd.store.filters import Filter
from imagejobd.store.protocol import Capacity, Ending
from imagejobd.store.sqlite.store import SqliteStore
from imagejobd.store.vault import KEY_BYTES, Vault

START = "2026-11-22T12:00:00"
MINUTE_MS = 60_000
DAY_MS = 24 * 60 * MINUTE_MS


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1000


def utc(at_ms: int | None) -> str:
    return "" if at_ms is None else f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%dT%H:%M:%S}"


class Night:
    """A daemon's schedules on a clock that only the test moves; entered anew it is the daemon's next life."""

    def __init__(self, database: Path) -> None:
        self.database = database
        self.now_ms = ms(START)
        self.limits = Limits()

    def clock(self) -> int:
        return self.now_ms

    async def begin(self, store: SqliteStore, *tables: ScheduleSettings) -> Schedules:
        schedules = Schedules(read_schedules(tables, KINDS), store, self.limits, self.clock)
        await schedules._begin()
        return schedules

    async def at(self, schedules: Schedules, text: str) -> None:
        """Set the clock, and let the schedules look at it, twice: what has been done is not done again."""
        self.now_ms = ms(text)
        await schedules.enqueue_due()
        await schedules.enqueue_due()


async def _nothing(ctx: Any) -> dict[str, Any]:
    return {}


KINDS: dict[str, JobKind] = by_name(
    ScriptedKind(_nothing), BuildKind(parsing_builder(), Egress(), Resolver(), BuildSettings())
)


def nightly(**changes: Any) -> ScheduleSettings:
    fields: dict[str, Any] = {"name": "nightly", "cron": "30 2 * * *", "kind": "noop", "spec": {"a": 1}}
    return ScheduleSettings(**(fields | changes))


@pytest.fixture
def night(tmp_path: Path) -> Night:
    return Night(tmp_path / "imagejobd.db")


@pytest.fixture
async def store(night: Night) -> AsyncIterator[SqliteStore]:
    async with SqliteStore.open(night.database, vault=Vault(b"k" * KEY_BYTES), clock=night.clock) as store:
        yield store


async def jobs(store: SqliteStore) -> list[Job]:
    """From old to new."""
    page = await store.list_jobs(Filter(), cursor=None, limit=100)
    return page.jobs[::-1]


async def end(store: SqliteStore, state: State = State.SUCCEEDED) -> None:
    """Work on the one job that waits."""
    [claim] = await store.claim("w1", Capacity({"noop": 9}, 9))
    await store.finish(claim, Ending(state))


async def test_a_run_is_a_job_of_the_operators(night: Night, store: SqliteStore) -> None:
    """It has the label, the further labels and the priority, and rights like everybody's who has no token: a name and
    no subject, which an admin could have."""
    schedules = await night.begin(store, nightly(labels={"team": "web"}, priority=-5))
    await night.at(schedules, "2026-11-23T02:29:59")
    assert await jobs(store) == []
    await night.at(schedules, "2026-11-23T02:30:00")
    [job] = await jobs(store)
    assert (job.kind, job.spec, job.priority) == ("noop", {"a": 1}, -5)
    assert job.labels == {"team": "web", "schedule": "nightly"}
    assert (job.submitter, job.principal) == ({"name": "schedule:nightly"}, Principal("local", None))
    assert not job.principal.is_operator


@pytest.mark.parametrize(("tenants", "is_withheld"), [(("local",), False), (("*",), False), (("1",), True)])
def test_the_logins_of_a_run(tmp_path: Path, tenants: tuple[str, ...], is_withheld: bool) -> None:
    """Those that are for `local`, also where an admin's subject is what the run's submitter is called."""
    (tmp_path / "password").write_text("s3cret")
    login = RegistryHost(username="me", password_file=str(tmp_path / "password"), tenants=tenants)
    hosts = RegistryHosts({"r.example": login}, admin_subjects=("schedule:nightly", "nightly"))
    [schedule] = read_schedules([nightly()], KINDS)
    assert hosts.of(schedule.job.principal).is_withheld("r.example") is is_withheld


async def test_each_night_is_one_run(night: Night, store: SqliteStore) -> None:
    """Runs come when they are due, each once."""
    schedules = await night.begin(store, nightly())
    for day in (23, 24, 25):
        await night.at(schedules, f"2026-11-{day}T02:30:01")
        await end(store)
        await night.at(schedules, f"2026-11-{day}T12:00:00")
    assert [utc(job.created_ms) for job in await jobs(store)] == [f"2026-11-{day}T02:30:01" for day in (23, 24, 25)]


async def test_what_was_missed_runs_once(night: Night, store: SqliteStore) -> None:
    """After weeks without a daemon there is one run, for the last time that it was due, and the next as ever."""
    await night.begin(store, nightly())
    night.now_ms += 30 * DAY_MS
    schedules = await night.begin(store, nightly())
    await schedules.enqueue_due()
    [status] = await schedules.status()
    assert (utc(status.last_ms), utc(status.next_ms)) == ("2026-12-22T02:30:00", "2026-12-23T02:30:00")
    await end(store)
    await night.at(schedules, "2026-12-23T02:00:00")
    assert len(await jobs(store)) == 1


@pytest.mark.parametrize("is_running", [True, False])
async def test_one_at_a_time(night: Night, store: SqliteStore, is_running: bool) -> None:
    """While the last run waits or runs the next is skipped, and shown as that; it is not made up for."""
    schedules = await night.begin(store, nightly())
    await night.at(schedules, "2026-11-23T02:30:00")
    claims = await store.claim("w1", Capacity({"noop": 9}, 9)) if is_running else []
    await night.at(schedules, "2026-11-24T02:30:00")
    await night.at(schedules, "2026-11-25T02:30:00")
    [job] = await jobs(store)
    [status] = await schedules.status()
    assert (utc(status.last_ms), utc(status.skipped_ms)) == ("2026-11-23T02:30:00", "2026-11-25T02:30:00")
    assert (status.job, status.state) == (job.uuid, job.state)
    claims = claims or await store.claim("w1", Capacity({"noop": 9}, 9))
    await store.finish(claims[0], Ending(State.FAILED))
    await night.at(schedules, "2026-11-25T12:00:00")
    assert len(await jobs(store)) == 1
    await night.at(schedules, "2026-11-26T02:30:00")
    assert len(await jobs(store)) == 2


async def test_a_retry_is_the_same_run(night: Night, store: SqliteStore) -> None:
    """While somebody tries the last run again, and that again, the next is skipped."""
    schedules = await night.begin(store, nightly())
    await night.at(schedules, "2026-11-23T02:30:00")
    for _ in range(2):
        await end(store, State.FAILED)
        failed = (await jobs(store))[-1]
        await store.enqueue(await store.repeat(failed), queue_max=9)
    await night.at(schedules, "2026-11-24T02:30:00")
    assert len(await jobs(store)) == 3
    await end(store)
    await night.at(schedules, "2026-11-25T02:30:00")
    assert len(await jobs(store)) == 4


async def test_others_hold_up_nothing(night: Night, store: SqliteStore) -> None:
    """A stranger's job with the schedule's label is none of its runs; neither is another schedule's."""
    schedules = await night.begin(store, nightly(), nightly(name="hourly", cron="0 * * * *"))
    stranger = read_schedules([nightly()], KINDS)[0].job
    await store.enqueue(stranger, queue_max=9)
    await night.at(schedules, "2026-11-22T13:00:00")
    await night.at(schedules, "2026-11-23T02:30:00")
    names = [job.labels["schedule"] for job in await jobs(store)]
    assert names == ["nightly", "hourly", "nightly"]


async def test_a_run_and_its_note_are_one(night: Night, store: SqliteStore) -> None:
    """Where what notes the run fails there is no job either; later there is one."""
    schedules = await night.begin(store, nightly())
    with closing(sqlite3.connect(night.database)) as db:
        db.execute("create trigger broken before update on schedule begin select raise(abort, 'broken'); end")
        night.now_ms = ms("2026-11-23T02:30:00")
        with pytest.raises(Fault):
            await schedules.enqueue_due()
        assert await jobs(store) == []
        db.execute("drop trigger broken")
    await night.at(schedules, "2026-11-23T02:31:00")
    assert len(await jobs(store)) == 1


async def test_a_full_queue_delays_a_run(night: Night, store: SqliteStore) -> None:
    """It comes as soon as there is room."""
    night.limits = Limits(queue_max=1)
    schedules = await night.begin(store, nightly(), nightly(name="other"))
    await night.at(schedules, "2026-11-23T02:30:00")
    assert len(await jobs(store)) == 1
    await end(store)
    await night.at(schedules, "2026-11-23T02:40:00")
    assert [job.labels["schedule"] for job in await jobs(store)] == ["nightly", "other"]


async def test_a_store_that_cannot_be_read_delays_a_run(
    night: Night, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes when the store answers again; nothing else of the daemon ends with it."""
    monkeypatch.setattr(schedules_module, "POLL_S", 0.01)
    monkeypatch.setattr(schedules_module, "STORE_RETRY_S", 0.01)
    faults, read = [Temporary(ErrorCode.STORAGE_FULL, "it is busy")] * 2, store.schedules.all

    async def busy() -> Any:
        if faults:
            raise faults.pop()
        return await read()

    monkeypatch.setattr(store.schedules, "all", busy)
    schedules = await night.begin(store, nightly())
    night.now_ms = ms("2026-11-23T02:30:00")
    running = asyncio.create_task(schedules.run())
    async with asyncio.timeout(END_TIMEOUT_S):
        while not await jobs(store):
            await asyncio.sleep(0.005)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_the_clock_is_set_back(night: Night, store: SqliteStore) -> None:
    """By less than an interval: what has run does not run again. By more: it runs as the clock says now, for else it
    would wait until the clock is there again."""
    schedules = await night.begin(store, nightly())
    await night.at(schedules, "2026-11-23T02:30:00")
    await end(store)
    for again in ("2026-11-23T02:29:58", "2026-11-22T13:00:00", "2026-11-23T02:30:00", "2026-11-23T23:00:00"):
        await night.at(schedules, again)
    assert len(await jobs(store)) == 1
    [status] = await schedules.status()
    assert utc(status.next_ms) == "2026-11-24T02:30:00"
    await night.at(schedules, "2026-11-01T12:00:00")
    [status] = await schedules.status()
    assert utc(status.next_ms) == "2026-11-02T02:30:00"
    await night.at(schedules, "2026-11-02T02:30:00")
    assert len(await jobs(store)) == 2


async def test_the_clock_is_set_forward(night: Night, store: SqliteStore) -> None:
    """What it passes over runs once; once it is right again the schedule goes on."""
    schedules = await night.begin(store, nightly())
    await night.at(schedules, "2036-01-01T00:00:00")
    await end(store)
    await night.at(schedules, "2026-11-22T12:00:10")
    assert len(await jobs(store)) == 1
    await night.at(schedules, "2026-11-23T02:30:00")
    assert len(await jobs(store)) == 2


async def test_a_night_when_clocks_go_back(night: Night, store: SqliteStore) -> None:
    """What is due in the hour that comes twice runs the first time alone."""
    night.now_ms = ms("2026-10-24T12:00:00")
    schedules = await night.begin(store, nightly(timezone="Europe/Berlin"))
    for minute in range(0, 24 * 60, 10):
        await night.at(schedules, utc(ms("2026-10-24T20:00:00") + minute * MINUTE_MS))
        for claim in await store.claim("w1", Capacity({"noop": 9}, 9)):
            await store.finish(claim, Ending(State.SUCCEEDED))
    assert [utc(job.created_ms) for job in await jobs(store)] == ["2026-10-25T00:30:00"]


async def test_what_changes_begins_anew(night: Night, store: SqliteStore) -> None:
    """A schedule that is new, has been away, or has another time or zone has missed nothing; one whose spec is another
    goes on."""
    await night.begin(store, nightly())
    for tables in ([nightly(cron="0 * * * *")], [nightly(cron="0 * * * *", timezone="Asia/Tokyo")], [], [nightly()]):
        night.now_ms += 2 * DAY_MS
        schedules = await night.begin(store, *tables)
        await schedules.enqueue_due()
        assert len(await store.schedules.all()) == len(tables)
    assert await jobs(store) == []
    night.now_ms += 2 * DAY_MS
    schedules = await night.begin(store, nightly(spec={"b": 2}))
    await schedules.enqueue_due()
    assert [job.spec for job in await jobs(store)] == [{"b": 2}]


async def test_the_loop(night: Night, store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """It sees by itself that something is due."""
    monkeypatch.setattr(schedules_module, "POLL_S", 0.01)
    task = asyncio.create_task(Schedules(read_schedules([nightly()], KINDS), store, Limits(), night.clock).run())
    async with asyncio.timeout(END_TIMEOUT_S):
        while not await store.schedules.all():
            await asyncio.sleep(0.005)
        night.now_ms += DAY_MS
        while not await jobs(store):
            await asyncio.sleep(0.005)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


BUILD = {"image": "registry.example/a", "dockerfile": "FROM scratch\n"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "Nightly"}, ["schedule[1].name", "a-z"]),
        ({"name": "first"}, ["schedule[first].name", "already"]),
        ({"cron": "61 * * * *"}, ["schedule[nightly].cron", "61 * * * *"]),
        ({"timezone": "Mars"}, ["schedule[nightly].timezone", "Mars"]),
        ({"kind": "bild"}, ["schedule[nightly].kind", "noop, build"]),
        ({"labels": {"schedule": "x"}}, ["schedule[nightly].labels", "'schedule'"]),
        ({"labels": {"a=b": "x"}}, ["schedule[nightly].labels", "a=b"]),
        ({"spec": {}}, ["schedule[nightly].spec: ", "image"]),
        ({"spec": BUILD | {"imgae": "x"}}, ["schedule[nightly].spec: ", "imgae"]),
        ({"spec": BUILD | {"context": "x"}}, ["schedule[nightly].spec.context"]),
        ({"spec": BUILD | {"dockerfile": "FORM x\n"}}, ["schedule[nightly].spec: ", "FORM"]),
        ({"spec": BUILD | {"username": "u", "password": "hidden"}}, ["schedule[nightly].spec: ", "password_file"]),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], words: list[str]) -> None:
    """A schedule that could not run is refused with its name and key, and without its passwords."""
    settings = msgspec.structs.replace(nightly(kind="build", spec=BUILD), **changes)
    with pytest.raises(Permanent) as refused:
        read_schedules([nightly(name="first"), settings], KINDS)
    assert refused.value.code in (ErrorCode.INVALID, ErrorCode.POLICY)
    assert "hidden" not in refused.value.message
    for word in words:
        assert word in refused.value.message
