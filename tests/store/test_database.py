"""The database file: whose it is, which schema it has, and that people can open it."""

import asyncio
import json
import os
import shutil
import sqlite3
import subprocess
import tempfile
import threading
from collections import defaultdict
from contextlib import closing
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from conformance import BROKEN, claim_one, enqueue
from msgspec.structs import replace
from simulated_clock import SimulatedClock
from structlog.testing import capture_logs

from harness.services import program, require, require_root
from imagejobd.model.errors import ErrorCode, Permanent, StoreFailed, Temporary
from imagejobd.model.job import JobId, NewJob, Push, State, Wait
from imagejobd.model.secrets import Secret
from imagejobd.store.filters import Filter
from imagejobd.store.protocol import Capacity, Ending
from imagejobd.store.sqlite import database as database_module
from imagejobd.store.sqlite.database import (
    APPLICATION_ID,
    close_database,
    migrations,
    open_database,
    stopped_cleanly,
)
from imagejobd.store.sqlite.store import SqliteStore
from imagejobd.store.vault import Vault

PAGE_BYTES = 4096
SYSTEM_TMP = Path(tempfile.gettempdir())


def shell(database: Path, sql: str, *options: str, user: str | None = None) -> str:
    require("sqlite3")
    command = [str(program("sqlite3")), *options, str(database), sql]
    done = subprocess.run(command, capture_output=True, text=True, check=False, user=user)
    assert done.returncode == 0, done.stderr
    return done.stdout


def pragma(db: sqlite3.Connection, name: str) -> object:
    return db.execute(f"pragma {name}").fetchone()[0]


def test_a_new_file_is_ours_and_durable(database: Path) -> None:
    """It carries our application id and the newest schema, and commits with write-ahead log and full syncs."""
    db = open_database(database)
    assert pragma(db, "application_id") == APPLICATION_ID
    assert pragma(db, "user_version") == migrations()[-1][0]
    assert (pragma(db, "journal_mode"), pragma(db, "synchronous"), pragma(db, "foreign_keys")) == ("wal", 2, 1)
    assert (pragma(db, "busy_timeout"), pragma(db, "mmap_size")) == (5000, 0)
    db.close()


def test_every_table_is_strict(database: Path) -> None:
    """No table takes a value of the wrong type."""
    db = open_database(database)
    tables = db.execute(
        "select name, strict from pragma_table_list where schema = 'main' and type = 'table'"
    ).fetchall()
    assert {table["name"] for table in tables if not table["strict"]} <= {"sqlite_schema", "sqlite_sequence"}
    db.close()


def test_migrations_are_numbered_without_a_gap() -> None:
    """1, 2, 3 …, so that user_version says which have run."""
    numbers = [number for number, _ in migrations()]
    assert numbers == list(range(1, len(numbers) + 1))


def test_an_interrupted_migration_leaves_the_one_before(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A migration that fails half-way leaves neither a table nor its number, and the next start tries it again."""
    known = migrations()
    broken = [*known, (known[-1][0] + 1, "create table half_done (id integer) strict; select no_such_column;")]
    monkeypatch.setattr(database_module, "migrations", lambda: broken)
    with pytest.raises(Permanent):
        open_database(database)
    monkeypatch.undo()
    db = open_database(database)
    assert pragma(db, "user_version") == known[-1][0]
    assert not db.execute("select 1 from sqlite_schema where name = 'half_done'").fetchall()
    db.close()


def test_a_later_migration_runs_once(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older file is brought to the newest schema with its rows, and only once."""
    open_database(database).close()
    known = migrations()
    later = [*known, (known[-1][0] + 1, "create table extra (id integer) strict; insert into extra values (1);")]
    monkeypatch.setattr(database_module, "migrations", lambda: later)
    for _ in range(2):
        db = open_database(database)
        assert db.execute("select count(*) from extra").fetchone()[0] == 1
        db.close()


def test_jobs_from_before_submitters_have_none(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job of a version that kept no submitter is read as an anonymous caller's."""
    monkeypatch.setattr(database_module, "migrations", lambda: migrations()[:2])
    db = open_database(database)
    db.execute(
        "insert into job (uuid, kind, tenant, client, spec, moved_ms, priority, created_ms) "
        "values ('u', 'build', 'local', '', '{}', 1, 0, 1)"
    )
    db.close()
    monkeypatch.undo()
    db = open_database(database)
    assert db.execute("select submitter from job").fetchone()[0] == "{}"
    db.close()


# As schema 8 had them: the outcomes of a distribution in its checkpoint and, as they came, in its history.
DONE_FIELDS = ("tags", "digest", "source_digest", "seconds")
OLD_RECORDS: dict[str, dict[str, Any]] = {
    "0.0": {
        "tags": {"1": "copied"},
        "digest": "sha256:t",
        "source_digest": "sha256:s",
        "sent_bytes": 5,
        "seconds": 1.5,
    },
    "0.1": {"error": "it is down", "tries": 2, "wait": {"peer": "m.example", "not_before_ms": 9, "wish_ms": 4}},
    "1.0": {"tags": {"2": "wanted"}, "error": "denied", "is_final": True},
}


def old_job(db: sqlite3.Connection, uuid: str, kind: str, spec: dict[str, Any], checkpoint: dict[str, Any]) -> int:
    cursor = db.execute(
        "insert into job (uuid, kind, tenant, client, spec, checkpoint, moved_ms, priority, created_ms) "
        "values (?, ?, 'local', '', ?, ?, 3, 0, 1)",
        (uuid, kind, json.dumps(spec), json.dumps(checkpoint)),
    )
    return cursor.lastrowid or 0


async def test_outcomes_from_before_pushes_are_kept(
    database: Path, vault: Vault, clock: SimulatedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a version kept in checkpoints and events is in rows afterwards: a running distribution goes on from there,
    and the history shows it with the time of then."""
    monkeypatch.setattr(database_module, "migrations", lambda: migrations()[:8])
    db = open_database(database)
    targets = [{"endpoint": "http://127.0.0.1:5001/v2/"}, {"endpoint": "https://M.example:443", "image": "x/y"}]
    source = {"endpoint": "index.docker.io", "image": "app", "tags": {"newest": 2}}
    checkpoint = {"tags": ["1", "2"], "outcomes": OLD_RECORDS}
    job_id = old_job(db, "filter", "distribute", {"source": source, "targets": targets}, checkpoint)
    for at_ms in (7, 8):
        data = {"endpoint": targets[0]["endpoint"], "source": "library/app:1", "image": "library/app"}
        db.execute(
            "insert into event (job_id, at_ms, type, data) values (?, ?, 'target', ?)",
            (job_id, at_ms, json.dumps(data | OLD_RECORDS["0.0"])),
        )
    digest = "sha256:" + "d" * 64
    for uuid, source in (
        ("listed", {"endpoint": "a.example", "images": ["t/a:1", f"t/b@{digest}"]}),
        ("one", {"endpoint": "a.example", "image": "t/a", "ref": digest}),
    ):
        records = {"0.0": OLD_RECORDS["0.0"], "1.0": OLD_RECORDS["0.0"]} if uuid == "listed" else {"0.0": {}}
        spec = {"source": source, "targets": [{"endpoint": "http://b.example"}]}
        old_job(db, uuid, "distribute", spec, {"outcomes": records})
    build = old_job(db, "build", "build", {}, {"pushed": {"127.0.0.1:5000/a/b:1": digest}, "built": {}})
    db.close()
    monkeypatch.undo()
    async with SqliteStore.open(database, vault=vault, clock=clock) as store:
        place = {"registry": "127.0.0.1:5001", "repository": "library/app", "image": 0, "target": 0}
        figures = {"sent_bytes": 5, "mounted_bytes": 0, "skipped_bytes": 0, "total_bytes": 0}
        done = Push(**place, source="library/app:1", **{n: OLD_RECORDS["0.0"][n] for n in DONE_FIELDS}, **figures)
        first, down, denied = await store.pushes(JobId(job_id))
        assert first == done
        assert (down.registry, down.repository, down.source) == ("m.example", "x/y", "library/app:1")
        assert (down.error, down.is_final, down.tries, down.wait) == ("it is down", False, 2, Wait("m.example", 9, 4))
        assert (denied.source, denied.error, denied.is_final) == ("library/app:2", "denied", True)
        job = await store.get("filter", tenant=None)
        assert job is not None
        assert job.checkpoint == {"tags": ["1", "2"]}
        copies = shell(
            database, "select uuid, finished, source, endpoint, image, outcome from copy_history", "-readonly"
        )
        assert copies.splitlines() == [
            "filter|1970-01-01T00:00:00.008Z|library/app:1|127.0.0.1:5001|library/app|copied",
            "filter|1970-01-01T00:00:00.003Z|library/app:1|m.example|x/y|failed",
            "filter|1970-01-01T00:00:00.003Z|library/app:2|127.0.0.1:5001|library/app|failed",
            "listed|1970-01-01T00:00:00.003Z|t/a:1|b.example:80|t/a|copied",
            f"listed|1970-01-01T00:00:00.003Z|t/b@{digest}|b.example:80|t/b|copied",
            f"one|1970-01-01T00:00:00.003Z|t/a@{digest}|b.example:80|t/a|identical",
        ]
        (pushed,) = await store.pushes(JobId(build))
        assert (pushed.registry, pushed.repository, pushed.tags) == ("127.0.0.1:5000", "a/b", {"1": "pushed"})
        assert (pushed.digest, pushed.sent_bytes) == (digest, None)


def test_jobs_of_earlier_versions_are_found_by_image_and_submitter(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As new ones are, whether they came to a push or not; what was written then is brought into one spelling."""
    monkeypatch.setattr(database_module, "migrations", lambda: migrations()[:9])
    db = open_database(database)
    source = {"endpoint": "https://Docker.io/v2/", "image": "busybox", "ref": "1"}
    listed = {"endpoint": "http://s.example:5000", "images": ["a/b:1", "c@sha256:d"]}
    old_job(db, "hub", "build", {"image": "app"}, {})
    old_job(db, "port", "build", {"image": "R.example:443/team/app:2"}, {})
    old_job(db, "one", "distribute", {"source": source, "targets": []}, {})
    old_job(db, "many", "distribute", {"source": listed, "targets": []}, {})
    old_job(db, "odd", "build", {}, {})
    db.execute("update job set submitter = json_object('sub', '7', 'email', 'j@e.example') where uuid = 'odd'")
    db.execute(
        "insert into push (job_id, image, target, registry, repository, tags, updated_ms) "
        "select id, 0, 0, 't.example', 'x/y', ?, 1 from job where uuid = 'one'",
        ('{"1": "pushed", "sha256:e": "copied"}',),
    )
    db.close()
    monkeypatch.undo()
    with closing(open_database(database)) as db:
        rows = db.execute(
            "select uuid, term from job_term join job on job.id = job_id order by job_id, term"
        ).fetchall()
    terms = defaultdict[str, list[str]](list)
    for uuid, term in rows:
        terms[uuid].append(term)
    hub, target = "image=docker.io/library/", "image=t.example/x/y"
    assert terms == {
        "hub": [f"{hub}app", f"{hub}app:latest"],
        "port": ["image=r.example/team/app", "image=r.example/team/app:2"],
        "one": [f"{hub}busybox", f"{hub}busybox:1", target, f"{target}:1", f"{target}@sha256:e"],
        "many": [f"image=s.example:5000/{name}" for name in ("a/b", "a/b:1", "c", "c@sha256:d")],
        "odd": ["submitter=7", "submitter=j@e.example"],
    }


async def test_a_retry_of_an_earlier_versions_job_takes_any_secrets(
    database: Path, vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows how they were named: without any it is refused, and those that are given are taken."""
    monkeypatch.setattr(database_module, "migrations", lambda: migrations()[:9])
    with closing(open_database(database)) as db:
        old_job(db, "u", "build", {"image": "a/b"}, {})
        db.execute("update job set has_secret = 1, state = 'failed', move = 'fail', finished_ms = 1")
    monkeypatch.undo()
    async with SqliteStore.open(database, vault=vault) as store:
        job = await store.get("u", tenant=None)
        assert job is not None
        with pytest.raises(Permanent, match="its passwords were deleted when it ended; submit it again with them"):
            await store.repeat(job)
        given = {"password": Secret("hunter2")}
        assert (await store.repeat(job, given)).secrets == given


def test_odd_rows_of_earlier_versions_do_not_stop_the_start(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an earlier version never wrote so is passed over, and registries have one spelling."""
    monkeypatch.setattr(database_module, "migrations", lambda: migrations()[:8])
    db = open_database(database)
    targets = [{"endpoint": "http://[::1]"}, {"endpoint": "HTTPS://[::1]:5000/v2/"}]
    spec = {"source": {"endpoint": "a.example", "image": "t/a", "ref": "1"}, "targets": targets}
    records: dict[str, Any] = {"0.0": {}, "0.1": {}, "0.2": {}, "7.0": {}, "0": {}, "x": {}}
    for uuid, outcomes in (("odd", records), ("null", None), ("none", {})):
        old_job(db, uuid, "distribute", spec, {"outcomes": outcomes})
    for uuid, pushed in (("build", {"R.example:443/a:1": "sha256:d", "x": "y"}), ("null build", None)):
        old_job(db, uuid, "build", {}, {"pushed": pushed})
    db.close()
    monkeypatch.undo()
    with closing(open_database(database)) as db:
        rows = db.execute("select uuid, registry, outcome from push_history order by job_id, registry").fetchall()
    assert [tuple(row) for row in rows] == [
        ("odd", "[::1]:5000", "identical"),
        ("odd", "[::1]:80", "identical"),
        ("build", "r.example", "pushed"),
    ]


async def test_pushes_read_well_in_the_shell(database: Path, store: SqliteStore, clock: SimulatedClock) -> None:
    """Copies and the pushes of builds stand in one view, by registry; what nobody tells is empty."""
    made = await enqueue(store)
    claim = await claim_one(store)
    built = Push(image=0, target=0, registry="r.example", repository="a/b", tags={"1": "pushed", "2": "pushed"})
    await store.record_pushes(claim, [replace(built, digest="sha256:1", seconds=1.5)])
    copied = await enqueue(store, kind="distribute")
    clock.advance(1500)
    claim = await claim_one(store, kind="distribute")
    await store.record_pushes(
        claim,
        [
            replace(built, tags={"1": "copied", "2": "identical"}, sent_bytes=7),
            replace(built, target=1, tags={"copied": "skipped"}),
            replace(built, target=2, tags={"1": "wanted"}),
            replace(built, target=3, tags={"1": "identical"}),
            replace(built, target=4, tags={"1": "copied", "2": "wanted"}, error="denied"),
        ],
    )
    columns = "uuid, kind, finished, registry, repository, tag, digest, sent_bytes, seconds, outcome"
    rows = shell(database, f"select {columns} from push_history", "-readonly").splitlines()
    place = "2023-11-14T22:13:21.500Z|r.example|a/b"
    assert rows == [
        f"{made.uuid}|build|2023-11-14T22:13:20.000Z|r.example|a/b|1 2|sha256:1||1.5|pushed",
        f"{copied.uuid}|distribute|{place}|1 2||7|0.0|copied",
        f"{copied.uuid}|distribute|{place}|copied|||0.0|skipped",
        f"{copied.uuid}|distribute|{place}|1|||0.0|wanted",
        f"{copied.uuid}|distribute|{place}|1|||0.0|identical",
        f"{copied.uuid}|distribute|{place}|1 2|||0.0|failed",
    ]


def test_a_newer_schema_is_refused(database: Path) -> None:
    """A file of a newer version is refused with what to do, and left as it is."""
    db = open_database(database)
    db.execute("pragma user_version = 999")
    db.close()
    with pytest.raises(Permanent, match=r"schema 999.*install the newer imagejobd"):
        open_database(database)


def test_anothers_database_is_refused(database: Path) -> None:
    """An SQLite file of another program is refused and left as it is."""
    db = sqlite3.connect(database)
    db.execute("create table theirs (id integer)")
    db.close()
    before = database.read_bytes()
    with pytest.raises(Permanent, match="not one of imagejobd's"):
        open_database(database)
    assert database.read_bytes() == before


def test_what_is_no_database_is_refused(database: Path) -> None:
    """A file of another format is refused by name."""
    database.write_bytes(b"not a database" * 1000)
    with pytest.raises(Permanent, match=str(database)):
        open_database(database)


@pytest.fixture
def damaged(database: Path) -> Path:
    """A database that was stopped cleanly, in which the page of an index is noise that no start has to read."""
    db = open_database(database)
    (page,) = db.execute("select rootpage from sqlite_schema where name = 'log_block'").fetchone()
    close_database(db)
    with database.open("r+b") as file:
        file.seek((page - 1) * PAGE_BYTES)
        file.write(os.urandom(PAGE_BYTES))
    return database


def leave_without_closing(database: Path) -> None:
    """As a crash does: the file stays in WAL mode."""
    with closing(sqlite3.connect(database)) as db:
        db.execute("pragma journal_mode = wal")


async def test_damage_is_found_after_an_unclean_stop(damaged: Path, vault: Vault, clock: SimulatedClock) -> None:
    """The store opens at once, looks meanwhile, and stops with what to do; the start after that looks again."""
    leave_without_closing(damaged)
    for _ in range(2):
        async with SqliteStore.open(damaged, vault=vault, clock=clock) as store:
            reason = await asyncio.wait_for(store.failed, 20)
            assert "damaged (log_block" in reason
            assert "restore a backup" in reason
            with pytest.raises(StoreFailed, match="damaged"):
                await enqueue(store)
        assert not stopped_cleanly(damaged)


async def test_a_sound_file_is_left_in_peace(database: Path, vault: Vault, clock: SimulatedClock) -> None:
    """A check that finds nothing ends by itself, and the stop after it is a clean one."""
    open_database(database).close()
    leave_without_closing(database)
    with capture_logs() as logs:
        async with SqliteStore.open(database, vault=vault, clock=clock) as store:
            async with asyncio.timeout(20):
                while not any("is sound" in line["event"] for line in logs):
                    await asyncio.sleep(0.01)
            await enqueue(store)
            assert not store.failed.done()
    assert stopped_cleanly(database)


async def test_nothing_is_read_through_after_a_clean_stop(damaged: Path, vault: Vault, clock: SimulatedClock) -> None:
    """A start takes no longer because the file is large: whatever it does not need stays unread."""
    with capture_logs() as logs:
        async with SqliteStore.open(damaged, vault=vault, clock=clock) as store:
            await enqueue(store)
            assert not [thread for thread in threading.enumerate() if thread.name == "store-inspection"]
    assert not [line for line in logs if "checking" in line["event"]]


async def test_a_stop_does_not_wait_for_the_check(database: Path, vault: Vault, clock: SimulatedClock) -> None:
    """A check that is under way is interrupted, and does not keep the file from being closed cleanly."""
    db = open_database(database)
    db.execute(
        "insert into job (uuid, kind, tenant, client, spec, moved_ms, priority, created_ms) "
        "values ('u', 'build', 'local', '', '{}', 1, 0, 1)"
    )
    db.execute(
        "with recursive n (n) as (select 0 union all select n + 1 from n where n < 200000) "
        "insert into log_block (job_id, offset, size, at_ms, text) select 1, n, 1, 1, hex(zeroblob(100)) from n"
    )
    db.close()
    leave_without_closing(database)
    async with SqliteStore.open(database, vault=vault, clock=clock):
        assert [thread for thread in threading.enumerate() if thread.name == "store-inspection"]
    assert not [thread for thread in threading.enumerate() if thread.name == "store-inspection"]
    assert stopped_cleanly(database)


@pytest.mark.parametrize("left", ["nothing", "an empty file", "a file without tables"])
async def test_a_database_that_was_lost_is_not_made_anew(
    database: Path, vault: Vault, clock: SimulatedClock, left: str
) -> None:
    """Where payloads are, there were jobs: the start is refused with what to do. Without payloads it is a first one."""
    if left == "an empty file":
        database.touch()
    elif left == "a file without tables":
        with closing(sqlite3.connect(database)) as db:
            db.execute("pragma user_version = 0")
            db.execute("create table t (x)")
            db.execute("drop table t")
    with pytest.raises(Permanent, match=r"missing or empty.*restore it from a backup.*start anew"):
        async with SqliteStore.open(database, vault=vault, clock=clock, has_content=True):
            pass
    async with SqliteStore.open(database, vault=vault, clock=clock, has_content=False) as store:
        await enqueue(store)


async def test_a_log_without_its_database_is_kept(database: Path, vault: Vault, clock: SimulatedClock) -> None:
    """SQLite would remove the write-ahead log beside an empty file, with all jobs that are only there."""
    log_file = database.with_name(database.name + "-wal")
    log_file.write_bytes(b"jobs")
    with pytest.raises(Permanent, match="missing or empty"):
        async with SqliteStore.open(database, vault=vault, clock=clock):
            pass
    assert log_file.read_bytes() == b"jobs"


async def test_attempts_are_run_and_pauses_are_not(database: Path, store: SqliteStore, clock: SimulatedClock) -> None:
    """`seconds_working` adds up a job's attempts, and of one that a crash cut what is known; no time between them."""
    await enqueue(store)
    clock.advance(1000)
    claim = await claim_one(store)
    clock.advance(2000)
    await store.retry(claim, BROKEN, not_before_ms=clock.now_ms + 60_000)
    clock.advance(60_000)
    claim = await claim_one(store, worker="dead")
    clock.advance(300)
    await store.enter_phase(claim, "building")
    clock.advance(3_600_000)
    await store.rescue("alive", crashes_max=9)
    clock.advance(1000)
    claim = await claim_one(store)
    clock.advance(500)
    await store.finish(claim, Ending(State.SUCCEEDED))
    cancelled = await enqueue(store)
    clock.advance(1000)
    await store.request_cancel(cancelled.uuid, tenant=None)
    await enqueue(store)
    seconds = shell(database, "select seconds_waited, seconds_working from job_history order by id", "-readonly")
    assert seconds.splitlines() == ["1.0|2.8", "1.0|", "|"]


async def test_a_changed_key_is_noticed_once(database: Path, clock: SimulatedClock) -> None:
    """How many jobs a new key loses is known at the start; none when the old one is back, or nothing has changed."""
    old, new = Vault(b"1" * 32), Vault(b"2" * 32)
    async with SqliteStore.open(database, vault=old, clock=clock) as store:
        assert await store.register_key() == 0
        for _ in range(3):
            await enqueue(store, secrets={"password": Secret("x")})
        await store.finish(await claim_one(store), Ending(State.SUCCEEDED))
        await enqueue(store)
    for vault, lost in ((old, 0), (new, 2), (new, 0), (old, 0)):
        async with SqliteStore.open(database, vault=vault, clock=clock) as store:
            assert await store.register_key() == lost
    text = database.read_bytes()
    assert b"1" * 32 not in text
    assert b"2" * 32 not in text


async def test_after_a_clean_stop_the_file_opens_readonly(database: Path, vault: Vault, clock: SimulatedClock) -> None:
    """A user who may read but not write the folder opens it with `sqlite3 -readonly`; no log file is left over."""
    require_root("becoming another user")
    async with SqliteStore.open(database, vault=vault, clock=clock) as store:
        made = await enqueue(store)
    assert [path.name for path in database.parent.iterdir()] == [database.name]
    database.chmod(0o644)
    for folder in takewhile(lambda folder: folder != SYSTEM_TMP, database.parents):
        folder.chmod(0o755)
    assert shell(database, "select uuid from job_history", "-readonly", user="nobody").strip() == made.uuid


async def test_after_a_crash_the_file_opens_readonly(
    database: Path, vault: Vault, clock: SimulatedClock, tmp_path: Path
) -> None:
    """A user who may read but not write the folder opens what a crash has left with `sqlite3 -readonly`."""
    require_root("becoming another user")
    remains = tmp_path / "remains"
    remains.mkdir()
    async with SqliteStore.open(database, vault=vault, clock=clock) as store:
        made = await enqueue(store)
        for path in database.parent.glob(f"{database.name}*"):
            shutil.copyfile(path, remains / path.name)
    for folder in takewhile(lambda folder: folder != SYSTEM_TMP, [remains, *remains.parents]):
        folder.chmod(0o755)
    for path in remains.iterdir():
        path.chmod(0o644)
    left = shell(remains / database.name, "select uuid from job_history", "-readonly", user="nobody")
    assert left.strip() == made.uuid


async def test_a_clean_stop_keeps_everything(database: Path, vault: Vault, clock: SimulatedClock) -> None:
    """What was accepted before the stop is there after it, and work goes on."""
    async with SqliteStore.open(database, vault=vault, clock=clock) as store:
        made = await enqueue(store, secrets={"password": Secret("hunter2")})
    async with SqliteStore.open(database, vault=vault, clock=clock) as store:
        claim = await claim_one(store)
        assert (claim.job.uuid, claim.secrets) == (made.uuid, {"password": Secret("hunter2")})


async def test_stopping_with_a_shell_open_still_stops(database: Path, vault: Vault, clock: SimulatedClock) -> None:
    """A reader in the middle of a transaction can't keep the daemon from closing, and nothing is lost."""
    async with SqliteStore.open(database, vault=vault, clock=clock) as store:
        await enqueue(store)
        reader = sqlite3.connect(database)
        reader.execute("begin")
        assert reader.execute("select count(*) from job").fetchone() == (1,)
        await enqueue(store)
    reader.close()
    async with SqliteStore.open(database, vault=vault, clock=clock) as store:
        assert (await store.stats()).queued == {"build": 2}


async def test_history_reads_well_in_the_shell(database: Path, store: SqliteStore, clock: SimulatedClock) -> None:
    """The views show ISO times in UTC, seconds, image and error, while the daemon runs."""
    made = await enqueue(store, spec={"image": "registry.example/a:1"})
    clock.advance(1500)
    claim = await claim_one(store)
    await store.enter_phase(claim, "building")
    await store.log(claim, "Step 1/2\nStep 2/2\n")
    clock.advance(2250)
    await store.finish(claim, Ending(State.FAILED, error=BROKEN))
    history = shell(
        database,
        "select uuid, kind, state, image, created, finished, seconds_waited, seconds_working, error_code, "
        "error_message from job_history",
        "-readonly",
    )
    assert history.strip().split("|") == [
        *(made.uuid, "build", "failed", "registry.example/a:1"),
        *("2023-11-14T22:13:20.000Z", "2023-11-14T22:13:23.750Z", "1.5", "2.25", "build_failed", "exit code 1"),
    ]
    phases = shell(database, "select job_id, phase, attempt, started, seconds from phase_history", "-readonly")
    assert phases.strip() == f"{made.id}|building|1|2023-11-14T22:13:21.500Z|2.25"
    assert shell(database, "select text from job_log", "-readonly") == "Step 1/2\nStep 2/2\n"


async def test_secrets_are_nowhere_in_the_file(database: Path, vault: Vault, clock: SimulatedClock) -> None:
    """A password is in no file of the database; its sealed row goes with its job's end, and that of a job which was
    quarantined, and may be tried again, with the payload."""
    password = "correct horse battery staple"
    async with SqliteStore.open(database, vault=vault, clock=clock) as store:
        for ending in ("finish", "cancel", "expire", "quarantine"):
            await enqueue(store, labels={"ending": ending}, secrets={"password": Secret(password)})
        assert all(password.encode() not in path.read_bytes() for path in database.parent.iterdir())
        assert shell(database, "select count(*) from job_secret", "-readonly").strip() == "4"
        await store.finish(await claim_one(store), Ending(State.SUCCEEDED))
        await claim_one(store, worker="dead")
        await store.rescue("alive", crashes_max=1)
        third = (await store.list_jobs(Filter(states=frozenset({State.QUEUED})), cursor=None, limit=1)).jobs[0]
        await store.request_cancel(third.uuid, tenant=None)
        await store.expire(due_before_ms=clock.now_ms + 1)
        kept = "select error_code from job join job_secret on job_id = job.id"
        assert shell(database, kept, "-readonly").strip() == "quarantined"
        later = clock.now_ms + 1
        await store.prune(jobs_before_ms=0, logs_before_ms=0, blobs_before_ms=later, batch_max=100)
        assert shell(database, "select count(*) from job_secret", "-readonly").strip() == "0"
        assert await store.live() == set()
    assert password.encode() not in database.read_bytes()


async def test_a_job_with_another_keys_secrets_fails_alone(database: Path, clock: SimulatedClock) -> None:
    """When the key was replaced, the jobs it sealed fail with the reason and the others are claimed."""
    async with SqliteStore.open(database, vault=Vault(b"1" * 32), clock=clock) as store:
        sealed = await enqueue(store, secrets={"password": Secret("x")})
        plain = await enqueue(store)
    async with SqliteStore.open(database, vault=Vault(b"2" * 32), clock=clock) as store:
        claims = await store.claim("w", Capacity({"build": 9}, 9))
        assert [claim.job.uuid for claim in claims] == [plain.uuid]
        job = await store.get(sealed.uuid, tenant=None)
        assert job is not None
        assert job.error is not None
        assert (job.state, job.error.code) == (State.FAILED, ErrorCode.SECRETS_LOST)


async def test_no_duration_is_negative(database: Path, vault: Vault, clock: SimulatedClock) -> None:
    """A clock that is set back while a job waits and runs makes its times odd, and its durations nothing."""
    async with SqliteStore.open(database, vault=vault, clock=clock) as store:
        await enqueue(store)
        clock.advance(-3_600_000)
        claim = await claim_one(store)
        await store.enter_phase(claim, "building")
        clock.advance(-3_600_000)
        await store.finish(claim, Ending(State.SUCCEEDED))
    waited = shell(database, "select seconds_waited, seconds_working from job_history", "-readonly").strip()
    assert waited == "0.0|0.0"
    assert shell(database, "select seconds from phase_history", "-readonly").strip() == "0.0"


async def test_a_tenants_payloads_have_a_bound(database: Path, vault: Vault, clock: SimulatedClock) -> None:
    """What is kept for a tenant's jobs counts until it is pruned; past the bound its next payload is refused, nobody
    else's."""

    async def submit(store: SqliteStore, tenant: str, blob: str) -> None:
        job = NewJob(kind="build", spec={}, tenant=tenant, blobs=(blob,))
        await store.enqueue(job, queue_max=99, tenant_stored_max_bytes=250)

    async with SqliteStore.open(database, vault=vault, clock=clock, blob_size=lambda digest: 100) as store:
        await submit(store, "a", "sha256:1")
        await submit(store, "a", "sha256:2")
        with pytest.raises(Temporary, match=r"limits\.per_tenant\.stored_max_bytes") as refused:
            await submit(store, "a", "sha256:3")
        assert refused.value.code is ErrorCode.STORAGE_FULL
        await submit(store, "b", "sha256:1")
        await store.finish(await claim_one(store), Ending(State.SUCCEEDED))
        later = clock.now_ms + 1
        await store.prune(jobs_before_ms=0, logs_before_ms=0, blobs_before_ms=later, batch_max=100)
        await submit(store, "a", "sha256:3")
