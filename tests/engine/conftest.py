"""A client of the session's engine, in both builders' company."""

from collections.abc import AsyncIterator

import pytest

from harness.engine import PrivateEngine
from imagejobd.engine.client import Engine
from imagejobd.engine.settings import EngineSettings


@pytest.fixture
async def client(engine: PrivateEngine) -> AsyncIterator[Engine]:
    async with Engine(EngineSettings(host=engine.host)) as client:
        yield client


@pytest.fixture(params=["buildkit", "classic"])
def builder(request: pytest.FixtureRequest) -> str:
    return str(request.param)
