"""A real store, content store, engine and registry client for each dispatch."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from dispatch_bench import DispatchBench

from harness.engine import PrivateEngine
from imagejobd.engine.client import Engine
from imagejobd.engine.settings import EngineSettings
from imagejobd.model.egress import Egress, EgressSettings
from imagejobd.registry.client import RegistryClient
from imagejobd.store.blobs import BlobStore
from imagejobd.store.sqlite.store import SqliteStore
from imagejobd.store.vault import KEY_BYTES, Vault


@pytest.fixture
async def bench(tmp_path: Path, engine: PrivateEngine) -> AsyncIterator[DispatchBench]:
    async with (
        SqliteStore.open(tmp_path / "imagejobd.db", vault=Vault(b"k" * KEY_BYTES)) as store,
        Engine(EngineSettings(host=engine.host, network="none")) as client,
        RegistryClient({}, Egress(EgressSettings())) as registry,
    ):
        yield DispatchBench(store, BlobStore(tmp_path), client, registry)
