"""A real store for each test of the runner."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from runner_bench import Bench

from imagejobd.store.sqlite.store import SqliteStore
from imagejobd.store.vault import KEY_BYTES, Vault


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with SqliteStore.open(tmp_path / "imagejobd.db", vault=Vault(b"k" * KEY_BYTES)) as store:
        yield Bench(store)
