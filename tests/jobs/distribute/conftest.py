"""A real store for each distribution."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from distribution_bench import DistributionBench

from imagejobd.store.sqlite.store import SqliteStore
from imagejobd.store.vault import KEY_BYTES, Vault


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[DistributionBench]:
    async with SqliteStore.open(tmp_path / "imagejobd.db", vault=Vault(b"k" * KEY_BYTES)) as store:
        yield DistributionBench(store, monkeypatch)
