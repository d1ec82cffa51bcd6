"""What is done to the store while it lies there."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from runner_bench import Bench

from imagejobd.model.errors import ErrorCode, Temporary
from imagejobd.runner import retention
from imagejobd.runner.retention import DAY_MS, prune_loop
from imagejobd.runner.settings import Retention
from imagejobd.store.blobs import BlobStore
from imagejobd.store.sqlite.store import SqliteStore


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


async def test_blobs_go_though_rows_cannot(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is too full to delete rows is freed of the blobs that nobody needs."""

    async def full(*_: Any, **__: Any) -> Any:
        raise Temporary(ErrorCode.STORAGE_FULL, "full")

    monkeypatch.setattr(SqliteStore, "prune", full)
    blobs = BlobStore(tmp_path)
    old = blobs.path(f"sha256:{'a' * 64}")
    old.parent.mkdir()
    old.write_bytes(b"old")
    os.utime(old, (0, 0))
    loop = asyncio.create_task(prune_loop(bench.store, blobs, Retention()))
    async with asyncio.timeout(10):
        while old.exists():
            await asyncio.sleep(0.01)
    assert not loop.done()
    loop.cancel()
