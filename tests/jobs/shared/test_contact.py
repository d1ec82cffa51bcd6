"""What becomes of the engine's word that a registry cannot be reached: it counts where this daemon finds the same."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from harness.registry import PASSWORD, USERNAME, Registry
from imagejobd.jobs.shared.access import EngineEgress, RegistryAccess
from imagejobd.model.circuit import Circuits
from imagejobd.model.egress import Egress
from imagejobd.model.errors import ErrorCode, Permanent, Temporary
from imagejobd.model.job import NOBODY, Principal
from imagejobd.model.kind import JobContext
from imagejobd.model.reference import HUB_HOST, ImageReference
from imagejobd.registry.client import RegistryClient
from imagejobd.registry.http.proxies import Proxies
from imagejobd.registry.http.resolver import Resolver
from imagejobd.registry.settings import RegistryHost

UNREACHED = Temporary(ErrorCode.REGISTRY_UNAVAILABLE, "pushing: dial tcp: connection refused")


class ContactWork:
    """As much of a `JobContext` as is asked for."""

    def add_secret(self, secret: Any) -> None: ...


@pytest.fixture
def clock() -> list[float]:
    """The time of circuits, in seconds."""
    return [0.0]


@pytest.fixture
async def client(clock: list[float]) -> AsyncIterator[RegistryClient]:
    circuits = Circuits(clock=lambda: clock[0])
    async with RegistryClient({}, Egress(), proxies=Proxies({}), circuits=circuits) as client:
        yield client


@pytest.fixture
async def access(client: RegistryClient) -> RegistryAccess:
    return RegistryAccess(client, EngineEgress(Egress(), Resolver()), cast(JobContext, ContactWork()), NOBODY)


@pytest.fixture
async def answering() -> AsyncIterator[str]:
    """A host that answers."""
    async with TestServer(web.Application()) as server:
        yield f"127.0.0.1:{server.port}"


@pytest.fixture
async def silent() -> str:
    """A host that nobody answers at."""
    async with TestServer(web.Application()) as server:
        return f"127.0.0.1:{server.port}"


async def test_a_pull_says_whose_login_it_lacks(private_registry: Registry, tmp_path: Path) -> None:
    """Also where this daemon asks in the engine's place, because the engine would not."""
    (tmp_path / "password").write_text(PASSWORD)
    login = RegistryHost(username=USERNAME, password_file=str(tmp_path / "password"), tenants=("1",))
    digest = private_registry.put_image("contact/app", "1")
    async with RegistryClient({private_registry.host: login}, Egress(), proxies=Proxies({})) as client:
        egress = EngineEgress(Egress(), Resolver())
        access = RegistryAccess(client, egress, cast(JobContext, ContactWork()), Principal("2"))
        with pytest.raises(Permanent, match="no login is configured for you"):
            async with access.pull(ImageReference(private_registry.host, "contact/app", digest=digest)):
                pass


async def contact(access: RegistryAccess, host: str, fault: Temporary | None = None) -> Temporary | None:
    """How a contact ends in which the engine meets `fault`."""
    try:
        async with access.contact(host):
            if fault is not None:
                raise fault
    except Temporary as raised:
        return raised
    return None


async def test_both_find_nobody(client: RegistryClient, access: RegistryAccess, silent: str) -> None:
    """The job waits for that host, and the engine is not sent there again before somebody may try."""
    fault = await contact(access, silent, UNREACHED)
    assert fault is not None
    assert (fault.peer, fault.message) == (silent, UNREACHED.message)
    assert "known from an earlier request" in str(await contact(access, silent))
    client.circuits.answered(silent)
    assert await contact(access, silent) is None


async def test_the_engine_alone_finds_nobody(client: RegistryClient, access: RegistryAccess, answering: str) -> None:
    """A registry whose own words sound like an outage, or that the engine cannot reach, is down for nobody else."""
    assert await contact(access, answering, UNREACHED) is UNREACHED
    assert client.circuits.outages == {}


async def test_the_engine_may_know_another_way_to_the_hub(client: RegistryClient, access: RegistryAccess) -> None:
    """Its mirrors are its own: that the Hub cannot be reached from here stops no pull."""
    client.circuits.failed(HUB_HOST, "nobody is there")
    assert await contact(access, HUB_HOST) is None
    assert client.circuits.outages == {}


async def test_a_pull_by_digest_can_be_the_trial(
    access: RegistryAccess, client: RegistryClient, clock: list[float]
) -> None:
    """Who may try asks the registry before the engine does, and is not held up by having asked."""
    with Registry() as registry:
        digest = registry.put_image("contact/app", "1")
        client.circuits.failed(registry.host, "nobody is there")
        clock[0] = 10.0
        async with access.pull(ImageReference(registry.host, "contact/app", digest=digest)):
            pass
        assert client.circuits.outages == {}
