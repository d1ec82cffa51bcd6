"""What is done to the store while it lies there."""

import asyncio
from pathlib import Path

import pytest
from runner_bench import Bench

from imagejobd.runner import retention
from imagejobd.runner.retention import DAY_MS, prune_loop
from imagejobd.runner.settings import Retention
from imagejobd.store.blobs import BlobStore
from imagejobd.store.sqlite import SqliteStore


async def test_the_store_is_optimized_once_a_day(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often the loop comes round, once per day of the clock."""
    monkeypatch.setattr(retention, "PRUNE_EVERY_S", 0.0)
    now_ms, rounds = 0, 0
    optimized: list[int] = []
    optimize, referenced = SqliteStore.optimize, SqliteStore.referenced_blobs

    async def noting(store: SqliteStore) -> None:
        optimized.append(now_ms)
        await optimize(store)

    async def passing_time(store: SqliteStore) -> set[str]:
        nonlocal now_ms, rounds
        now_ms, rounds = now_ms + DAY_MS // 10, rounds + 1
        return await referenced(store)

    monkeypatch.setattr(SqliteStore, "optimize", noting)
    monkeypatch.setattr(SqliteStore, "referenced_blobs", passing_time)
    loop = asyncio.create_task(prune_loop(bench.store, BlobStore(tmp_path), Retention(), lambda: now_ms))
    async with asyncio.timeout(10):
        while rounds < 35:
            await asyncio.sleep(0.001)
    loop.cancel()
    assert optimized[:3] == [DAY_MS, 2 * DAY_MS, 3 * DAY_MS]
