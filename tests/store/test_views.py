"""The views that people read: right across retries, crashes and waits, quick however long the history is."""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from conformance import BROKEN, CRASHES_MAX, PUSH, claim_one, enqueue
from simulated_clock import SimulatedClock

from imagejobd.model.errors import ErrorCode
from imagejobd.model.job import JobError, State
from imagejobd.model.reference import ImageReference
from imagejobd.store.protocol import Ending
from imagejobd.store.sqlite.database import open_database
from imagejobd.store.sqlite.store import SqliteStore
from imagejobd.store.webhooks import JobEnd

DIGEST = f"sha256:{'a' * 64}"
METADATA = Path(__file__).parents[2] / "docs/metadata.yaml"
# What each of the histories calls the number of a job.
JOB_COLUMNS = {
    "job_history": "id",
    "attempt_history": "job",
    "push_history": "job_id",
    "copy_history": "job_id",
    "phase_history": "job_id",
}


def plan(db: sqlite3.Connection, sql: str) -> list[str]:
    return [row["detail"] for row in db.execute(f"explain query plan {sql}")]


def rows(database: Path, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as db:
        return db.execute(sql, parameters).fetchall()


async def test_job_history(database: Path, store: SqliteStore, clock: SimulatedClock) -> None:
    """Who asked for what, where it came to, what it made, and how long was waited and worked."""
    person = {"sub": "7", "email": "jane@example.org", "name": "Jane"}
    await enqueue(store, client="web", submitter=person, labels={"team": "web"})
    clock.advance(1500)
    claim = await claim_one(store)
    await store.enter_phase(claim, "building")
    clock.advance(2250)
    await store.finish(claim, Ending(State.SUCCEEDED, result={"image": "a/b:latest", "digest": DIGEST}))
    await enqueue(store, submitter={"sub": "7"})
    columns = "state, phase, digest, who, client, labels, seconds_waited, seconds_working"
    assert rows(database, f"select {columns} from job_history order by id") == [
        ("succeeded", "building", DIGEST, "jane@example.org", "web", '{"team":"web"}', 1.5, 2.25),
        ("queued", None, None, "7", None, None, None, None),
    ]


async def test_what_is_told_of_a_job_is_no_work(database: Path, store: SqliteStore, clock: SimulatedClock) -> None:
    """A webhook that took its time, also longer than the log was kept, adds nothing to the job's."""
    job = await enqueue(store)
    claim = await claim_one(store)
    await store.log(claim, "done\n")
    clock.advance(2000)
    await store.finish(claim, Ending(State.SUCCEEDED))
    await store.webhooks.begin(["ci"])
    for _ in range(2):
        clock.advance(60_000)
        await store.webhooks.delivered("ci", JobEnd(1, clock.now_ms, job.id), {"delivered": True})
        clock.advance(60_000)
        await store.prune(jobs_before_ms=0, logs_before_ms=clock.now_ms, blobs_before_ms=0, batch_max=10)
    assert rows(database, "select seconds_working from job_history") == [(2.0,)]
    assert rows(database, "select seconds from attempt_history") == [(2.0,)]


@pytest.mark.parametrize(
    "image",
    [
        *("busybox", "team/app", "library/busybox:1", f"busybox@{DIGEST}", "docker.io/busybox", "localhost/app"),
        *("Index.Docker.io/app:2", "127.0.0.1:5000/hello", "Registry.Example/a/b:v1.0", "[::1]:5000/a:1"),
    ],
)
async def test_a_build_has_the_full_name_of_its_image(database: Path, store: SqliteStore, image: str) -> None:
    """As Docker's grammar reads it."""
    await enqueue(store, spec={"image": image})
    parsed = ImageReference.parse(image)
    name = f":{parsed.tag}" if parsed.tag else f"@{parsed.digest}"
    full = f"{parsed.host}/{parsed.path}{name}"
    assert rows(database, "select image, reference from job_history") == [(image, full)]


@pytest.mark.parametrize(
    ("source", "reference"),
    [
        (
            {"endpoint": "https://registry-1.docker.io/v2/", "image": "busybox", "ref": "1"},
            "docker.io/library/busybox:1",
        ),
        ({"endpoint": "R.example:443", "image": "a", "ref": DIGEST}, f"r.example/a@{DIGEST}"),
        ({"endpoint": "http://r.example", "image": "a", "ref": "1"}, "r.example:80/a:1"),
        ({"endpoint": "http://r.example:5000/v2", "image": "a/b", "tags": {"regex": ".*"}}, "r.example:5000/a/b"),
        ({"endpoint": "r.example", "images": ["x.y/z:2", "q:1"]}, "r.example/x.y/z:2"),
    ],
)
async def test_a_distribution_has_the_full_name_of_its_source(
    database: Path, store: SqliteStore, source: dict[str, Any], reference: str
) -> None:
    """At the registry that it is read from, one name however that is written."""
    await enqueue(store, kind="distribute", spec={"source": source, "targets": []})
    assert rows(database, "select reference from job_history") == [(reference,)]


async def test_a_result_that_sqlite_cannot_read_hides_no_job(database: Path, store: SqliteStore) -> None:
    """It may be nested deeper than SQLite goes."""
    await enqueue(store)
    await store.finish(await claim_one(store), Ending(State.SUCCEEDED, result={}))
    with closing(sqlite3.connect(database, isolation_level=None)) as db:
        db.execute("update job set result = ?", ("[" * 3000 + "]" * 3000,))
    assert rows(database, "select state, image, digest from job_history") == [("succeeded", "a/b", None)]


async def test_work_ends_with_the_last_word_before_a_crash(
    database: Path, store: SqliteStore, clock: SimulatedClock
) -> None:
    """Also where the crash ends the job: the time in which the daemon was down is nobody's work."""
    await enqueue(store)
    for _ in range(CRASHES_MAX):
        claim = await claim_one(store, worker="dead")
        clock.advance(100)
        await store.enter_phase(claim, "building")
        clock.advance(3_600_000)
        await store.rescue("alive", crashes_max=CRASHES_MAX)
    assert rows(database, "select state, seconds_working from job_history") == [("failed", 0.3)]


async def test_attempts(database: Path, store: SqliteStore, clock: SimulatedClock) -> None:
    """Each has its phase, its seconds, what came of it and what was to come; what ends in the queue has none."""
    job = await enqueue(store)
    claim = await claim_one(store)
    await store.enter_phase(claim, "building")
    await store.enter_phase(claim, "pushing")
    clock.advance(1500)
    await store.retry(claim, BROKEN, not_before_ms=clock.now_ms + 60_000)
    clock.advance(60_000)
    claim = await claim_one(store)
    clock.advance(250)
    await store.interrupt(claim)
    claim = await claim_one(store)
    await store.enter_phase(claim, "pushing")
    clock.advance(500)
    away = JobError(ErrorCode.REGISTRY_UNAVAILABLE, "no answer")
    await store.retry(claim, away, not_before_ms=clock.now_ms + 1000, waits_for="r.example")
    await store.answered("r.example")
    await claim_one(store, worker="dead")
    clock.advance(9000)
    await store.rescue("alive", crashes_max=CRASHES_MAX)
    await claim_one(store, worker="stopped")
    await store.drain("stopped")
    await store.rescue("alive", crashes_max=CRASHES_MAX)
    claim = await claim_one(store)
    clock.advance(2000)
    await store.finish(claim, Ending(State.SUCCEEDED))
    cancelled = await enqueue(store)
    await store.request_cancel(cancelled.uuid, tenant=None)
    await enqueue(store)
    clock.advance(1)
    await store.expire(due_before_ms=clock.now_ms)
    columns = "job, attempt, phase, seconds, outcome, code, message, next"
    broken, silent = ("build_failed", "exit code 1"), ("registry_unavailable", "no answer")
    assert rows(database, f"select {columns} from attempt_history order by id") == [
        (job.id, 1, "pushing", 1.5, "retry", *broken, "at 2023-11-14T22:14:21Z"),
        (job.id, 2, None, 0.25, "interrupted", None, None, "after the restart"),
        (job.id, 2, "pushing", 0.5, "retry", *silent, "when r.example answers, or at 2023-11-14T22:14:23Z"),
        (job.id, 3, None, 0.0, "crashed", None, None, "at once"),
        (job.id, 3, None, 0.0, "interrupted", None, None, "at once"),
        (job.id, 3, None, 2.0, "succeeded", None, None, None),
    ]


@pytest.mark.parametrize("is_attempt", [True, False])
async def test_attempts_that_failed_alike(
    database: Path, store: SqliteStore, clock: SimulatedClock, is_attempt: bool
) -> None:
    """There are the first and the last of them, with their numbers; when the last began is not known any more."""
    await enqueue(store)
    for _ in range(5):
        claim = await claim_one(store)
        await store.enter_phase(claim, "building")
        clock.advance(1000)
        await store.retry(claim, BROKEN, not_before_ms=clock.now_ms, is_attempt=is_attempt)
    columns = "attempt, phase, seconds, outcome"
    last = 5 if is_attempt else 1
    expected: list[tuple[Any, ...]] = [(1, "building", 1.0, "retry"), (last, "building", None, "retry")]
    assert rows(database, f"select {columns} from attempt_history order by id") == expected
    await store.finish(await claim_one(store), Ending(State.SUCCEEDED))
    expected.append((last + is_attempt, None, 0.0, "succeeded"))
    assert rows(database, f"select {columns} from attempt_history order by id") == expected


async def test_what_runs_and_what_waits(database: Path, store: SqliteStore) -> None:
    """Each job that has not ended is in one of the two, with how far it is or what it waits for."""
    await enqueue(store)
    claim = await claim_one(store)
    await store.enter_phase(claim, "building")
    await store.progress(claim, {"step": "1/2"})
    await store.record_pushes(claim, [PUSH])
    await enqueue(store, kind="run", spec={"dockerfile": "FROM scratch\n"}, priority=7)
    await enqueue(store, not_before_ms=4_000_000_000_000)
    waiting = await enqueue(store, kind="dispatch", spec={})
    claim = await claim_one(store, kind="dispatch")
    await store.retry(claim, BROKEN, not_before_ms=4_000_000_000_000, waits_for="r.example")
    running = "select job, kind, image, attempt, phase, progress, seconds > 0, seconds_in_phase > 0 from running_now"
    assert rows(database, running) == [(1, "build", "a/b", 1, "building", '{"step":"1/2"}', 1, 1)]
    later = "2096-10-02T07:06:40Z"
    columns = "job, kind, priority, not_before, waits_for, paused, attempt, last_code"
    with closing(sqlite3.connect(database, isolation_level=None)) as db:
        db.execute("insert into pause (kind, reason, since_ms, paused_by) values ('run', 'upgrade', 1, 'jane')")
    assert rows(database, f"select {columns} from queue_now order by job") == [
        (2, "run", 7, None, None, "upgrade", 0, None),
        (3, "build", 0, later, None, None, 0, None),
        (waiting.id, "dispatch", 0, later, "r.example", None, 1, "build_failed"),
    ]


@pytest.fixture(scope="module", params=["fresh", "analyzed"])
def long_history(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[sqlite3.Connection]:
    """A database of ended jobs that no test changes."""
    db = open_database(tmp_path_factory.mktemp("views") / "views.db")
    for number in range(300):
        db.execute(
            "insert into job (uuid, kind, tenant, client, spec, moved_ms, priority, created_ms) "
            "values (?, 'build', 'local', '', '{}', 1, 0, 1)",
            (str(number),),
        )
    db.execute("update job set state = 'running', move = 'claim', claim_token = id, worker = 'w', started_ms = 1")
    db.execute("update job set phase = 'building', phase_ms = 1")
    db.execute(
        "insert into push (job_id, image, target, registry, repository, updated_ms) "
        "select job.id, 0, value, 'r.example', 'a', 1 from job, json_each('[0, 1]')"
    )
    db.execute("update job set state = 'succeeded', finished_ms = 1, move = 'succeed', claim_token = null where id > 5")
    if request.param == "analyzed":
        db.execute("analyze")
    yield db
    db.close()


@pytest.mark.parametrize("query", ["where uuid = 'x'", "where {job} = 7"])
@pytest.mark.parametrize("view", JOB_COLUMNS)
def test_one_job_is_found(long_history: sqlite3.Connection, view: str, query: str) -> None:
    """By an index, in every view."""
    details = plan(long_history, f"select * from {view} {query.format(job=JOB_COLUMNS[view])}")
    assert not any(re.match(r"SCAN (job|event|push|job_phase|claim|ending)\b", detail) for detail in details), details


@pytest.mark.parametrize("view", ["job_history", "attempt_history", "push_history", "copy_history"])
def test_the_newest_are_found(long_history: sqlite3.Connection, view: str) -> None:
    """From the end, without sorting all that there is."""
    details = plan(long_history, f"select * from {view} order by {JOB_COLUMNS[view]} desc limit 10")
    assert not any("TEMP B-TREE FOR ORDER BY" in detail for detail in details), details


@pytest.mark.parametrize("view", ["running_now", "queue_now"])
def test_what_has_not_ended_is_found_without_the_history(long_history: sqlite3.Connection, view: str) -> None:
    """By the indexes that hold nothing else."""
    details = plan(long_history, f"select * from {view}")
    scans = [detail for detail in details if re.match(r"SCAN job\b", detail)]
    assert all(re.search(r"INDEX job_(running|ready|delayed|waiting|crashed)", detail) for detail in scans), details


def test_datasette_is_told_of_what_there_is(long_history: sqlite3.Connection) -> None:
    """docs/metadata.yaml names tables, views and columns that exist, hides the daemon's own, and each query runs."""
    metadata = yaml.safe_load(METADATA.read_text())["databases"]["imagejobd"]
    kept = {row["name"]: row["type"] for row in long_history.execute("select name, type from sqlite_schema")}
    names = {name for name, type_ in kept.items() if type_ in ("table", "view") and not name.startswith("sqlite_")}
    assert set(metadata["tables"]) == names
    for name, table in metadata["tables"].items():
        assert table.get("hidden", False) == (kept[name] == "table")
        columns = {row["name"] for row in long_history.execute(f"pragma table_info({name})")}
        assert set(table.get("columns", ())) <= columns, name
    for name, query in metadata["queries"].items():
        values = dict.fromkeys(re.findall(r"(?<!:):([a-z]+)", query["sql"]), "7")
        assert query["title"], name
        long_history.execute(query["sql"], values).fetchall()
