"""Which login a registry is given for whose job, and that no log shows it."""

from pathlib import Path
from typing import Any, cast

import pytest

from imagejobd.jobs.shared.access import EngineEgress, RegistryAccess
from imagejobd.model.egress import Egress
from imagejobd.model.errors import ErrorCode, Fault, Permanent, Temporary
from imagejobd.model.job import NOBODY, OPERATOR, Principal
from imagejobd.model.kind import JobContext
from imagejobd.model.secrets import Credentials, Secret
from imagejobd.registry.client import RegistryClient
from imagejobd.registry.http.resolver import Resolver
from imagejobd.registry.settings import RegistryHost

HOST = "registry.example"
OWN = Credentials("own", Secret("own-password"))


class Listener:
    """The part of a job's work that logins concern."""

    def __init__(self) -> None:
        self.secrets: list[Secret] = []

    def add_secret(self, secret: Secret) -> None:
        self.secrets.append(secret)


@pytest.fixture
async def client(tmp_path: Path) -> RegistryClient:
    (tmp_path / "password").write_text("configured-password")
    login = RegistryHost(username="builder", password_file=str(tmp_path / "password"), tenants=("1",))
    return RegistryClient({HOST: login}, Egress(), admin_subjects=["root"])


def access(client: RegistryClient, ctx: Listener, principal: Principal, **own: Any) -> RegistryAccess:
    return RegistryAccess(client, EngineEgress(Egress(), Resolver()), cast(JobContext, ctx), principal, **own)


@pytest.mark.parametrize("principal", [Principal("1"), Principal("2", "root"), OPERATOR])
async def test_configured_logins_are_redacted(client: RegistryClient, principal: Principal) -> None:
    """A password of the configuration is hidden from the job's log before anybody sends it."""
    ctx = Listener()
    found = access(client, ctx, principal)
    assert found.credentials("other.example") is None
    assert ctx.secrets == []
    credentials = found.credentials(HOST)
    assert credentials is not None
    assert ctx.secrets == [credentials.password]
    assert credentials.password.reveal() == "configured-password"


@pytest.mark.parametrize("principal", [Principal("2"), Principal("local"), Principal("2", "somebody"), NOBODY])
async def test_withheld_logins_are_not_known(client: RegistryClient, principal: Principal) -> None:
    """Who may not use a login has none, and nothing of it is hidden: that would tell who guesses the password."""
    ctx = Listener()
    assert access(client, ctx, principal).credentials_at([HOST, "other.example"]) == {}
    assert ctx.secrets == []


async def test_the_requests_own_login_is_for_its_host(client: RegistryClient) -> None:
    """It wins over the configured one, and goes nowhere else."""
    found = access(client, Listener(), Principal("1"), own_host=HOST, own=OWN)
    assert found.credentials(HOST) is OWN
    found = access(client, Listener(), Principal("1"), own_host="other.example", own=OWN)
    assert found.credentials_at([HOST, "other.example", "third.example"]).keys() == {HOST, "other.example"}


@pytest.mark.parametrize(
    ("principal", "host", "own", "code", "is_told"),
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
    client: RegistryClient, principal: Principal, host: str, own: Credentials | None, code: ErrorCode, is_told: bool
) -> None:
    """Where a registry refuses somebody whom its login is withheld from, the error says so; nowhere else."""
    found = access(client, Listener(), principal, own_host=HOST, own=own)
    with pytest.raises(Permanent) as raised:
        async with found.contact(host):
            raise Permanent(code, "it refuses")
    assert raised.value.code is code
    assert raised.value.message.startswith("it refuses")
    assert ("no login is configured for you" in raised.value.message) is is_told


async def test_other_faults_pass(client: RegistryClient) -> None:
    """A registry that is down is told as it was."""
    fault: Fault = Temporary(ErrorCode.REGISTRY_UNAVAILABLE, "it is down")
    with pytest.raises(Temporary) as raised:
        async with access(client, Listener(), Principal("2")).contact(HOST):
            raise fault
    assert raised.value is fault
