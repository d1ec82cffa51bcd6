"""`/metrics` over a real store: where its counters begin, what it costs, and what it says of a store that is ill."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from harness.metrics import Scrape
from imagejobd.api import metrics as api_metrics
from imagejobd.api.metrics import Metrics
from imagejobd.model.circuit import Circuits
from imagejobd.model.errors import ErrorCode, Temporary
from imagejobd.model.job import JobError, NewJob, State
from imagejobd.model.traffic import Traffic
from imagejobd.store.protocol import Capacity, Ending
from imagejobd.store.sqlite.store import SqliteStore
from imagejobd.store.vault import KEY_BYTES, Vault


class EngineAway:
    is_open = False

    def downtime_s(self) -> float:
        return 12.5


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    async with SqliteStore.open(tmp_path / "imagejobd.db", vault=Vault(bytes(KEY_BYTES))) as store:
        yield store


async def metrics_of(store: SqliteStore, folder: Path, circuits: Circuits | None = None) -> Metrics:
    return Metrics(
        store,
        store.commits,
        since_event=await store.last_event(),
        slots={"build": 2, "run": 1},
        queue_max=10,
        crashes_max=3,
        engine=EngineAway(),
        circuits=circuits or Circuits(),
        traffic=Traffic(),
        state_dir=folder,
    )


async def scraped(metrics: Metrics) -> Scrape:
    return Scrape((await metrics.scrape()).decode())


async def finish_one(store: SqliteStore, ending: Ending) -> None:
    await store.enqueue(NewJob(kind="build", spec={}), queue_max=10)
    (claim,) = await store.claim("w", Capacity({"build": 1}, 9))
    await store.finish(claim, ending)


async def test_counters_begin_at_the_start(store: SqliteStore, tmp_path: Path) -> None:
    """What happened before is not counted; what could happen stands at 0, so that the first time shows."""
    ended = Ending(State.FAILED, error=JobError(ErrorCode.INTERNAL, "x"))
    await finish_one(store, ended)
    metrics = await metrics_of(store, tmp_path)
    await finish_one(store, Ending(State.SUCCEEDED))
    scrape = await scraped(metrics)
    finished = "imagejobd_jobs_finished_total"
    assert scrape.value(finished, kind="build", state="succeeded", code="") == 1
    assert scrape.value(finished, kind="build", state="failed", code="internal") == 0
    assert scrape.value("imagejobd_job_duration_seconds_count", kind="build", state="succeeded") == 1


async def test_what_is_away_is_told(store: SqliteStore, tmp_path: Path) -> None:
    """The engine, and hosts that do not answer, by their number."""
    circuits = Circuits()
    circuits.failed("r.example", "no answer")
    scrape = await scraped(await metrics_of(store, tmp_path, circuits))
    assert scrape.value("imagejobd_engine_up") == 0
    assert scrape.value("imagejobd_engine_downtime_seconds_total") == 12.5
    assert scrape.value("imagejobd_open_circuits") == 1
    assert scrape.value("imagejobd_slots", kind="run") == 1


async def test_a_store_that_does_not_answer(
    store: SqliteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said to be down; old numbers of the queue are not shown as if they were new, all others are."""
    monkeypatch.setattr(api_metrics, "ANSWER_MAX_AGE_S", -1.0)
    metrics = await metrics_of(store, tmp_path)
    assert (await scraped(metrics)).value("imagejobd_store_up") == 1

    async def refuse() -> int:
        raise Temporary(ErrorCode.STORAGE_FULL, "disk full")

    with monkeypatch.context() as patch:
        patch.setattr(store, "last_event", refuse)
        scrape = await scraped(metrics)
    assert scrape.value("imagejobd_store_up") == 0
    assert "imagejobd_jobs" not in scrape.families
    assert scrape.value("imagejobd_engine_up") == 0
    assert scrape.value("imagejobd_jobs_submitted_total", kind="build") == 0
    assert (await scraped(metrics)).value("imagejobd_jobs", kind="build", state="queued") == 0


async def test_many_who_ask_cost_one_answer(
    store: SqliteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody may ask, and within a moment gets what the one before got."""
    monkeypatch.setattr(api_metrics, "ANSWER_MAX_AGE_S", 3600.0)
    metrics = await metrics_of(store, tmp_path)
    first = await metrics.scrape()
    await store.enqueue(NewJob(kind="build", spec={}), queue_max=10)
    assert await metrics.scrape() == first


async def test_a_folder_that_is_gone_is_left_out(store: SqliteStore, tmp_path: Path) -> None:
    """The disk cannot be told then, and everything else can."""
    scrape = await scraped(await metrics_of(store, tmp_path / "gone"))
    assert "imagejobd_disk_free_bytes" not in scrape.families
    assert scrape.value("imagejobd_store_up") == 1
