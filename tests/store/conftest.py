"""A store on a real file, with a clock that only tests move."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("conformance", "conformance_queue", "conformance_schedules")

from simulated_clock import SimulatedClock  # noqa: E402

from imagejobd.store.sqlite.store import SqliteStore  # noqa: E402
from imagejobd.store.vault import KEY_BYTES, Vault  # noqa: E402


@pytest.fixture
def clock() -> SimulatedClock:
    return SimulatedClock()


@pytest.fixture
def vault() -> Vault:
    return Vault(bytes(KEY_BYTES))


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "imagejobd.db"


@pytest.fixture
async def store(database: Path, vault: Vault, clock: SimulatedClock) -> AsyncIterator[SqliteStore]:
    async with SqliteStore.open(database, vault=vault, clock=clock) as store:
        yield store
