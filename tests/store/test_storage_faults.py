"""A full disk passes; a disk that fails stops the store. Nothing acknowledged is lost in either."""

import asyncio
import hashlib
import os
import resource
import shutil
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from conformance import claim_one, claim_up_to, enqueue
from simulated_clock import SimulatedClock

from harness.services import require_root
from imagejobd.model.errors import ErrorCode, Fault, Permanent, StoreFailed, Temporary
from imagejobd.model.job import Enqueued, State
from imagejobd.store.blobs import BlobStore
from imagejobd.store.protocol import Ending
from imagejobd.store.sqlite import database as database_module
from imagejobd.store.sqlite.readers import READERS_MAX
from imagejobd.store.sqlite.store import SqliteStore
from imagejobd.store.vault import Vault

TMPFS_BYTES = 1024 * 1024


async def fill(store: SqliteStore) -> tuple[list[Enqueued], Temporary]:
    """Enqueue until the store refuses; what it had accepted, and the refusal."""
    accepted: list[Enqueued] = []
    for number in range(5000):
        try:
            accepted.append(await enqueue(store, spec={"image": "a/b", "padding": f"{number:020000}"}))
        except Temporary as fault:
            return accepted, fault
    raise AssertionError("the disk was never full")


async def probe_until_the_log_is_full(store: SqliteStore) -> None:
    """What is left of the write-ahead log, where a larger change did not fit, takes a few small ones."""
    for _ in range(500):
        await store.probe()


async def assert_kept(store: SqliteStore, accepted: list[Enqueued]) -> None:
    for job in accepted:
        assert await store.get(job.uuid, tenant=None) is not None


async def test_a_full_database_refuses_and_recovers(store: SqliteStore) -> None:
    """At SQLite's page limit new jobs are refused as storage_full, old ones stay, and with room it goes on."""

    def limit_pages(more: int) -> Any:
        return lambda tx: tx.db.execute(f"pragma max_page_count = {more}").fetchall()

    (pages,) = await store._writer.do(lambda tx: tx.db.execute("pragma page_count").fetchone())
    await store._writer.do(limit_pages(pages + 20))
    accepted, fault = await fill(store)
    assert fault.code is ErrorCode.STORAGE_FULL
    assert fault.retry_after_s
    await store._writer.do(limit_pages(10_000_000))
    accepted.append(await enqueue(store))
    await assert_kept(store, accepted)
    assert (await store.stats()).queued == {"build": len(accepted)}
    assert not store.failed.done()


async def test_finishing_on_a_full_disk_leaves_the_job_running(store: SqliteStore) -> None:
    """A job whose ending could not be stored is still claimed, so that its runner can try again."""
    await enqueue(store)
    claim = await claim_one(store)
    (pages,) = await store._writer.do(lambda tx: tx.db.execute("pragma page_count").fetchone())
    await store._writer.do(lambda tx: tx.db.execute(f"pragma max_page_count = {pages}").fetchall())
    with pytest.raises(Temporary) as full:
        await store.finish(claim, Ending(State.SUCCEEDED, result={"padding": "x" * 100_000}))
    assert full.value.code is ErrorCode.STORAGE_FULL
    assert await store.live() == {claim.job.uuid}
    await store._writer.do(lambda tx: tx.db.execute("pragma max_page_count = 10000000").fetchall())
    await store.finish(claim, Ending(State.SUCCEEDED))
    assert await store.live() == set()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={TMPFS_BYTES}", "tmpfs", str(folder)]
    require_root("mounting a tmpfs")
    subprocess.run(command, check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
async def store_on_small_disk(
    small_disk: Path, vault: Vault, clock: SimulatedClock
) -> AsyncIterator[tuple[SqliteStore, Path]]:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(TMPFS_BYTES // 3))
    async with SqliteStore.open(small_disk / "jobs.db", vault=vault, clock=clock) as store:
        yield store, ballast


async def test_a_full_disk_refuses_and_recovers(store_on_small_disk: tuple[SqliteStore, Path]) -> None:
    """On ENOSPC callers get storage_full, nothing is half-written, and with space the store goes on by itself."""
    store, ballast = store_on_small_disk
    accepted, fault = await fill(store)
    assert fault.code is ErrorCode.STORAGE_FULL
    await asyncio.gather(*(enqueue(store, spec={"padding": "y" * 50_000}) for _ in range(5)), return_exceptions=True)
    await assert_kept(store, accepted)
    with pytest.raises(Temporary, match="full"):
        await probe_until_the_log_is_full(store)
    ballast.unlink()
    await store.probe()
    accepted.append(await enqueue(store))
    await assert_kept(store, accepted)
    assert not store.failed.done()
    (result,) = await store._writer.do(lambda tx: tx.db.execute("pragma integrity_check").fetchone())
    assert result == "ok"


async def put(blobs: BlobStore, data: bytes) -> str:
    async def body() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 100_000):
            yield data[start : start + 100_000]

    async with blobs.spooled(body(), max_bytes=10 * TMPFS_BYTES) as path:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        await blobs.commit(path, digest)
    return digest


async def test_a_full_disk_leaves_no_half_blob(small_disk: Path) -> None:
    """A blob that does not fit is refused as storage_full, its spool file is gone, and a smaller one fits."""
    blobs = BlobStore(small_disk)
    with pytest.raises(Temporary) as full:
        await put(blobs, os.urandom(2 * TMPFS_BYTES))
    assert full.value.code is ErrorCode.STORAGE_FULL
    assert [path for path in small_disk.rglob("*") if path.is_file()] == []
    assert blobs.exists(await put(blobs, b"small"))


@contextmanager
def files_bounded(size_bytes: int) -> Iterator[None]:
    """Make every write of this process past `size_bytes` of a file fail (EFBIG, which SQLite calls an I/O error)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_an_io_error_stops_the_store(database: Path, vault: Vault, clock: SimulatedClock) -> None:
    """After a failed write no request is carried out any more, `failed` says why, and what was accepted is there."""
    async with SqliteStore.open(database, vault=vault, clock=clock) as store:
        accepted = [await enqueue(store) for _ in range(5)]
        wal_bytes = (await store.stats()).wal_bytes
        with files_bounded(wal_bytes), pytest.raises(Permanent, match="failed"):
            await enqueue(store, spec={"padding": "x" * 100_000})
        assert "IOERR" in await asyncio.wait_for(store.failed, 5)
        for request in (enqueue(store), claim_up_to(store, 1), store.probe()):
            with pytest.raises(Permanent, match="takes no more work"):
                await request
    async with SqliteStore.open(database, vault=vault, clock=clock) as store:
        await assert_kept(store, accepted)
        assert (await store.stats()).queued == {"build": 5}


async def test_corruption_stops_the_store(database: Path, vault: Vault, clock: SimulatedClock) -> None:
    """Pages that turn to noise under a running store end it; it does not go on with a part of the truth."""
    async with SqliteStore.open(database, vault=vault, clock=clock) as store:
        await enqueue(store)
        await store._writer.run(_checkpoint_and_forget, None)
        with database.open("r+b") as file:
            file.seek(4096)
            file.write(os.urandom(database.stat().st_size - 4096))
        with pytest.raises(Permanent, match="failed"):
            await enqueue(store)
        assert "CORRUPT" in await asyncio.wait_for(store.failed, 5)


@pytest.mark.parametrize("lost", ["removed", "replaced", "moved away", "folder gone", "log removed"])
async def test_a_lost_file_takes_no_commits(tmp_path: Path, vault: Vault, clock: SimulatedClock, lost: str) -> None:
    """What is committed to a file that nobody can find is lost: not one request is acknowledged after that."""
    folder = tmp_path / "state"
    folder.mkdir()
    database = folder / "imagejobd.db"
    async with SqliteStore.open(database, vault=vault, clock=clock) as store:
        await enqueue(store)
        await store.probe()
        if lost == "removed":
            database.unlink()
        elif lost == "replaced":
            shutil.copy(database, folder / "copy")
            (folder / "copy").rename(database)
        elif lost == "moved away":
            database.rename(folder / "moved")
        elif lost == "folder gone":
            shutil.rmtree(folder)
        else:
            (folder / "imagejobd.db-wal").unlink()
        with pytest.raises(StoreFailed, match="while the daemon ran"):
            await (store.probe() if lost == "log removed" else enqueue(store))
        assert "while the daemon ran" in await asyncio.wait_for(store.failed, 5)
        with pytest.raises(StoreFailed, match="takes no more work"):
            await enqueue(store)


async def test_a_probe_changes_the_file(database: Path, store: SqliteStore, clock: SimulatedClock) -> None:
    """It is a commit like any other, at an unchanged time too: the write-ahead log grows by it."""
    before = (await store.stats()).wal_bytes
    for number in range(1, 4):
        await store.probe()
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as reader:
            assert reader.execute("select at_ms, commits from probe").fetchone() == (clock.now_ms, number)
        assert before < (before := (await store.stats()).wal_bytes)


def _checkpoint_and_forget(tx: Any, requests: Any) -> list[None]:
    tx.db.execute("commit")
    tx.db.execute("pragma wal_checkpoint(truncate)").fetchall()
    tx.db.execute("pragma cache_size = 0")
    tx.db.execute("pragma shrink_memory")
    tx.db.execute("begin immediate")
    tx.db.execute("savepoint run")
    return [None]


class FailingCommits(sqlite3.Connection):
    """A connection whose next commit fails as it does when the disk does not sync."""

    armed = False

    def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
        if FailingCommits.armed and sql == "commit":
            super().execute("rollback")
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
            error.sqlite_errorname = "SQLITE_IOERR_FSYNC"
            raise error
        return super().execute(sql, parameters)


async def test_a_failed_commit_is_never_retried(
    database: Path, vault: Vault, clock: SimulatedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After one failed fsync every later request is refused, although the disk would take it."""
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **kwargs: connect(*args, **kwargs, factory=FailingCommits))
    async with SqliteStore.open(database, vault=vault, clock=clock) as store:
        monkeypatch.undo()
        kept = await enqueue(store)
        monkeypatch.setattr(FailingCommits, "armed", True)
        answers = await asyncio.gather(*(enqueue(store) for _ in range(5)), return_exceptions=True)
        assert all(isinstance(answer, Permanent) for answer in answers)
        monkeypatch.setattr(FailingCommits, "armed", False)
        with pytest.raises(Permanent, match="SQLITE_IOERR_FSYNC at COMMIT"):
            await enqueue(store)
        assert "check the disk" in await store.failed
    async with SqliteStore.open(database, vault=vault, clock=clock) as store:
        assert await store.live() == {kept.uuid}


async def test_a_shell_that_holds_the_lock_is_waited_out(
    database: Path, vault: Vault, clock: SimulatedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another program writes, callers are told to close it; the store stays sound and goes on afterwards."""
    monkeypatch.setattr(database_module, "BUSY_TIMEOUT_S", 0.05)
    async with SqliteStore.open(database, vault=vault, clock=clock) as store:
        intruder = sqlite3.connect(database, isolation_level=None)
        intruder.execute("begin immediate")
        with pytest.raises(Temporary, match="write lock"):
            await enqueue(store)
        intruder.execute("rollback")
        intruder.close()
        await enqueue(store)
        assert not store.failed.done()


@pytest.mark.parametrize(
    ("code", "fault", "words"),
    [
        (sqlite3.SQLITE_BUSY, Temporary, "write lock"),
        (sqlite3.SQLITE_FULL, Temporary, "full"),
        (sqlite3.SQLITE_IOERR_READ, Permanent, "refused a read"),
        (sqlite3.SQLITE_CORRUPT, Permanent, "refused a read"),
    ],
)
async def test_a_read_that_fails_is_a_fault(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch, code: int, fault: type[Fault], words: str
) -> None:
    """Readers fail in the same vocabulary as the writer, and the next read has its connection again."""

    async def failing(*_: Any) -> Any:
        error = sqlite3.OperationalError("no")
        error.sqlite_errorcode = code
        raise error

    monkeypatch.setattr("aiosqlite.Connection.execute_fetchall", failing)
    for _ in range(READERS_MAX + 1):
        with pytest.raises(fault, match=words):
            await store.stats()
    monkeypatch.undo()
    await store.stats()
