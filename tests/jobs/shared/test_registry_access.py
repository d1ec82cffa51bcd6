"""What one job may do at registries: as whom it logs in, what no log shows, and who counts as down."""

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
from imagejobd.model.job import NOBODY, OPERATOR, Principal
from imagejobd.model.kind import JobContext
from imagejobd.model.reference import HUB_HOST, ImageReference
from imagejobd.model.resolver import Resolver
from imagejobd.model.secrets import Credentials, Secret
from imagejobd.registry.client import RegistryClient
from imagejobd.registry.hosts import RegistryHost
from imagejobd.registry.proxies import Proxies

HOST = "registry.example"
OWN = Credentials("own", Secret("own-password"))
UNREACHED = Temporary(ErrorCode.REGISTRY_UNAVAILABLE, "pushing: dial tcp: connection refused")


class RecordingContext:
    """As much of a `JobContext` as is asked for."""

    def __init__(self) -> None:
        self.secrets: list[Secret] = []

    def add_secret(self, secret: Secret) -> None:
        self.secrets.append(secret)


def access(
    client: RegistryClient, principal: Principal, ctx: RecordingContext | None = None, **own: Any
) -> RegistryAccess:
    egress = EngineEgress(Egress(), Resolver())
    return RegistryAccess(client, egress, cast(JobContext, ctx or RecordingContext()), principal, **own)


@pytest.fixture
async def with_login(tmp_path: Path) -> AsyncIterator[RegistryClient]:
    """A client with a login at `HOST` for tenant 1 and the administrator `root`."""
    (tmp_path / "password").write_text("configured-password")
    login = RegistryHost(username="builder", password_file=str(tmp_path / "password"), tenants=("1",))
    async with RegistryClient({HOST: login}, Egress(), admin_subjects=["root"]) as client:
        yield client


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
async def nobody(client: RegistryClient) -> RegistryAccess:
    return access(client, NOBODY)


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


@pytest.mark.parametrize("principal", [Principal("1"), Principal("2", "root"), OPERATOR])
async def test_configured_logins_are_redacted(with_login: RegistryClient, principal: Principal) -> None:
    """A password of the configuration is hidden from the job's log before anybody sends it."""
    ctx = RecordingContext()
    registries = access(with_login, principal, ctx)
    assert registries.credentials("other.example") is None
    assert ctx.secrets == []
    credentials = registries.credentials(HOST)
    assert credentials is not None
    assert ctx.secrets == [credentials.password]
    assert credentials.password.reveal() == "configured-password"


@pytest.mark.parametrize("principal", [Principal("2"), Principal("local"), Principal("2", "somebody"), NOBODY])
async def test_withheld_logins_are_not_known(with_login: RegistryClient, principal: Principal) -> None:
    """Who may not use a login has none, and nothing of it is hidden: that would tell who guesses the password."""
    ctx = RecordingContext()
    assert access(with_login, principal, ctx).credentials_at([HOST, "other.example"]) == {}
    assert ctx.secrets == []


async def test_the_requests_own_login_is_for_its_host(with_login: RegistryClient) -> None:
    """It wins over the configured one, and goes nowhere else."""
    registries = access(with_login, Principal("1"), login_host=HOST, login=OWN)
    assert registries.credentials(HOST) is OWN
    registries = access(with_login, Principal("1"), login_host="other.example", login=OWN)
    assert registries.credentials_at([HOST, "other.example", "third.example"]).keys() == {HOST, "other.example"}


@pytest.mark.parametrize(
    ("principal", "host", "own", "code", "is_explained"),
    [
        (Principal("2"), HOST, None, ErrorCode.DENIED, True),
        (Principal("2"), HOST, None, ErrorCode.NOT_FOUND, True),
        (Principal("2"), HOST, None, ErrorCode.EGRESS, False),
        (Principal("2"), HOST, OWN, ErrorCode.DENIED, False),
        (Principal("2"), "other.example", None, ErrorCode.DENIED, False),
        (Principal("1"), HOST, None, ErrorCode.DENIED, False),
    ],
)
async def test_a_refusal_tells_of_a_login_for_others(
    with_login: RegistryClient,
    principal: Principal,
    host: str,
    own: Credentials | None,
    code: ErrorCode,
    is_explained: bool,
) -> None:
    """Where a registry refuses somebody whom its login is withheld from, the error says so; nowhere else."""
    registries = access(with_login, principal, login_host=HOST, login=own)
    with pytest.raises(Permanent) as raised:
        async with registries.contact(host):
            raise Permanent(code, "it refuses")
    assert raised.value.code is code
    assert raised.value.message.startswith("it refuses")
    assert ("no login is configured for you" in raised.value.message) is is_explained


async def test_other_faults_pass(with_login: RegistryClient) -> None:
    """A registry that is down is reported as it was."""
    fault = Temporary(ErrorCode.REGISTRY_UNAVAILABLE, "it is down")
    with pytest.raises(Temporary) as raised:
        async with access(with_login, Principal("2")).contact(HOST):
            raise fault
    assert raised.value is fault


async def test_a_pull_says_whose_login_it_lacks(private_registry: Registry, tmp_path: Path) -> None:
    """Also where this daemon asks in the engine's place, because the engine would not."""
    (tmp_path / "password").write_text(PASSWORD)
    login = RegistryHost(username=USERNAME, password_file=str(tmp_path / "password"), tenants=("1",))
    digest = private_registry.put_image("contact/app", "1")
    reference = ImageReference(private_registry.host, "contact/app", digest=digest)
    async with RegistryClient({private_registry.host: login}, Egress(), proxies=Proxies({})) as client:
        with pytest.raises(Permanent, match="no login is configured for you"):
            async with access(client, Principal("2")).pull(reference):
                pass


async def contact(nobody: RegistryAccess, host: str, fault: Temporary | None = None) -> Temporary | None:
    """How a contact ends in which the engine meets `fault`."""
    try:
        async with nobody.contact(host):
            if fault is not None:
                raise fault
    except Temporary as raised:
        return raised
    return None


async def test_both_find_nobody(client: RegistryClient, nobody: RegistryAccess, silent: str) -> None:
    """The job waits for that host, and the engine is not sent there again before somebody may try."""
    fault = await contact(nobody, silent, UNREACHED)
    assert fault is not None
    assert (fault.peer, fault.message) == (silent, UNREACHED.message)
    assert "known from an earlier request" in str(await contact(nobody, silent))
    client.circuits.answered(silent)
    assert await contact(nobody, silent) is None


async def test_the_engine_alone_finds_nobody(client: RegistryClient, nobody: RegistryAccess, answering: str) -> None:
    """A registry whose own words sound like an outage, or that the engine cannot reach, is down for nobody else."""
    assert await contact(nobody, answering, UNREACHED) is UNREACHED
    assert client.circuits.outages == {}


async def test_the_engine_may_know_another_way_to_the_hub(client: RegistryClient, nobody: RegistryAccess) -> None:
    """Its mirrors are its own: that the Hub cannot be reached from here stops no pull."""
    client.circuits.failed(HUB_HOST, "nobody is there")
    assert await contact(nobody, HUB_HOST) is None
    assert client.circuits.outages == {}


async def test_a_pull_by_digest_can_be_the_trial(
    nobody: RegistryAccess, client: RegistryClient, clock: list[float]
) -> None:
    """Who may try asks the registry before the engine does, and is not held up by having asked."""
    with Registry() as registry:
        digest = registry.put_image("contact/app", "1")
        client.circuits.failed(registry.host, "nobody is there")
        clock[0] = 10.0
        async with nobody.pull(ImageReference(registry.host, "contact/app", digest=digest)):
            pass
        assert client.circuits.outages == {}
