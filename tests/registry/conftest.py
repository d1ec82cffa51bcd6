"""Clients, and a registry with its token server that say what a real one cannot be made to."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fake_registry import NO_PROXIES, FakeRegistry
from moved_clock import MovedClock

from harness import tls
from imagejobd.model.egress import Egress
from imagejobd.registry.client import RegistryClient
from imagejobd.registry.connection import Connection
from imagejobd.registry.hosts import RegistryTarget


@pytest.fixture
def time() -> MovedClock:
    """The time of `client`."""
    return MovedClock()


@pytest.fixture
async def client(time: MovedClock) -> AsyncIterator[RegistryClient]:
    """A client of an operator who has configured nothing; its waits cost no time."""
    async with RegistryClient({}, Egress(), proxies=NO_PROXIES, timing=time.timing) as client:
        yield client


@pytest.fixture
async def fake() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry() as fake:
        yield fake


@pytest.fixture
def connection(client: RegistryClient, fake: FakeRegistry) -> Connection:
    """A connection to `fake` by somebody without a login."""
    return client.connect(RegistryTarget(host=fake.host))


@pytest.fixture
async def tls_fake(tmp_path: Path) -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry(tls.issue(tmp_path)) as fake:
        yield fake
