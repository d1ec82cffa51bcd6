"""Clients, and a registry with its token server that say what a real one cannot be made to."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fake_registry import FakeRegistry

from harness import tls
from imagejobd.model.egress import Egress
from imagejobd.registry.client import RegistryClient


@pytest.fixture
async def client() -> AsyncIterator[RegistryClient]:
    """A client of an operator who has configured nothing."""
    async with RegistryClient({}, Egress()) as client:
        yield client


@pytest.fixture
async def fake() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry() as fake:
        yield fake


@pytest.fixture
async def tls_fake(tmp_path: Path) -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry(tls.issue(tmp_path)) as fake:
        yield fake
