"""The digest of a tag, asked of real registries: open, private, with TLS, down."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.proxy import Answer, CutResponse, FaultProxy, StallResponse
from harness.registry import PASSWORD, USERNAME, Registry
from harness.services import require
from harness.tls import issue
from imagejobd.model.egress import Egress
from imagejobd.model.errors import ErrorCode, Permanent, Temporary
from imagejobd.model.job import OPERATOR
from imagejobd.model.reference import ImageReference
from imagejobd.model.secrets import Credentials, Secret
from imagejobd.registry.client import RegistryClient
from imagejobd.registry.hosts import RegistryHost

BUILDER = Credentials(USERNAME, Secret(PASSWORD))


def at(registry: Registry | FaultProxy, name: str) -> ImageReference:
    return ImageReference.parse(f"{registry.host}/{name}")


@pytest.fixture(scope="module")
def tls_registry() -> Iterator[Registry]:
    require("docker-registry")
    with Registry(use_tls=True) as registry:
        yield registry


async def test_tag_and_digest(registry: Registry, client: RegistryClient) -> None:
    """A tag and its digest both lead to the digest, over plain HTTP on loopback without any setting."""
    digest = registry.put_image("head/plain", "1")
    assert await client.head_manifest(at(registry, "head/plain:1"), None) == digest
    assert await client.head_manifest(at(registry, f"head/plain@{digest}"), None) == digest


@pytest.mark.parametrize("name", ["head/plain:none", "head/nowhere:1", "head/plain@sha256:" + "0" * 64])
async def test_absent(registry: Registry, client: RegistryClient, name: str) -> None:
    """No such tag, repository or digest is None, not an error."""
    registry.put_image("head/plain", "1")
    assert await client.head_manifest(at(registry, name), None) is None


async def test_password(private_registry: Registry, client: RegistryClient) -> None:
    """The right password opens a private registry."""
    digest = private_registry.put_image("head/private", "1")
    assert await client.head_manifest(at(private_registry, "head/private:1"), BUILDER) == digest


@pytest.mark.parametrize(
    ("credentials", "advice"),
    [
        (None, "send username and password"),
        (Credentials(USERNAME, Secret("battery-staple")), "check the user name and password"),
    ],
)
async def test_denied(
    private_registry: Registry, client: RegistryClient, credentials: Credentials | None, advice: str
) -> None:
    """A wrong or missing password is denied for good; the message says what to do and keeps the secret."""
    with pytest.raises(Permanent, match=advice) as denied:
        await client.head_manifest(at(private_registry, "head/private:1"), credentials)
    assert denied.value.code is ErrorCode.DENIED
    assert "battery-staple" not in str(denied.value)


async def test_configured_login(private_registry: Registry, tmp_path: Path) -> None:
    """A host's configured login is what its owner hands over as credentials."""
    (tmp_path / "password").write_text(PASSWORD + "\n")
    host = RegistryHost(username=USERNAME, password_file=str(tmp_path / "password"), plain_http=True)
    digest = private_registry.put_image("head/private", "2")
    async with RegistryClient({private_registry.host: host}, Egress()) as client:
        credentials = client.credentials_for(private_registry.host, OPERATOR)
        assert await client.head_manifest(at(private_registry, "head/private:2"), credentials) == digest


async def test_own_authority_is_trusted_with_its_file(tls_registry: Registry) -> None:
    """`ca_file` makes a registry with an authority of its own trusted, and `insecure` one with any."""
    digest = tls_registry.put_image("head/tls", "1")
    for host in (RegistryHost(ca_file=str(tls_registry.ca_file)), RegistryHost(insecure=True)):
        async with RegistryClient({tls_registry.host: host}, Egress()) as client:
            assert await client.head_manifest(at(tls_registry, "head/tls:1"), None) == digest


async def test_own_authority_without_its_file(tls_registry: Registry, client: RegistryClient, tmp_path: Path) -> None:
    """Loopback is trusted, as the Engine does; with a `ca_file` it is verified like any other host."""
    digest = tls_registry.put_image("head/tls", "1")
    assert await client.head_manifest(at(tls_registry, "head/tls:1"), None) == digest
    another = RegistryHost(ca_file=str(issue(tmp_path).ca_file))
    async with RegistryClient({tls_registry.host: another}, Egress()) as verifying:
        with pytest.raises(Permanent, match="set ca_file") as refused:
            await verifying.head_manifest(at(tls_registry, "head/tls:1"), None)
    assert refused.value.code is ErrorCode.REGISTRY_UNAVAILABLE


async def test_plain_registry_where_tls_was_configured(registry: Registry, tmp_path: Path) -> None:
    """Speaking TLS to a plain registry ends with the advice to configure it so."""
    tls = RegistryHost(ca_file=str(issue(tmp_path).ca_file))
    async with RegistryClient({registry.host: tls}, Egress()) as client:
        with pytest.raises(Permanent, match="plain_http = true"):
            await client.head_manifest(at(registry, "head/plain:1"), None)


async def test_registry_down_and_up_again(client: RegistryClient) -> None:
    """A registry that is down is worth another try, and the same client succeeds when it is back."""
    require("docker-registry")
    with Registry() as registry:
        digest = registry.put_image("head/outage", "1")
        reference = at(registry, "head/outage:1")
        assert await client.head_manifest(reference, None) == digest
        registry.stop()
        with pytest.raises(Temporary, match="refused") as down:
            await client.head_manifest(reference, None)
        assert down.value.code is ErrorCode.REGISTRY_UNAVAILABLE
        assert down.value.peer == registry.host
        registry.start()
        client.circuits.answered(registry.host)
        assert await client.head_manifest(reference, None) == digest


@pytest.mark.parametrize("status", [429, 503])
async def test_peer_asks_to_wait(proxy: FaultProxy, client: RegistryClient, status: int) -> None:
    """Overload is temporary and carries the registry's own wish."""
    proxy.add("HEAD", "/v2/.*", Answer(status, {"Retry-After": "100"}))
    with pytest.raises(Temporary) as busy:
        await client.head_manifest(at(proxy, "head/plain:1"), None)
    assert busy.value.retry_after_s == 100


async def test_cut_connection(proxy: FaultProxy, client: RegistryClient) -> None:
    """A connection that breaks before the answer is temporary."""
    proxy.add("HEAD", "/v2/.*", CutResponse(), times=None)
    with pytest.raises(Temporary) as cut:
        await client.head_manifest(at(proxy, "head/plain:1"), None)
    assert cut.value.code is ErrorCode.REGISTRY_UNAVAILABLE


async def test_silent_registry(proxy: FaultProxy) -> None:
    """A registry that goes silent is given up after the idle time-out."""
    proxy.add("HEAD", "/v2/.*", StallResponse(), times=None)
    async with RegistryClient({proxy.host: RegistryHost(plain_http=True)}, Egress(), idle_timeout_s=1) as client:
        async with asyncio.timeout(40):
            with pytest.raises(Temporary, match="no answer in time"):
                await client.head_manifest(at(proxy, "head/plain:1"), None)
