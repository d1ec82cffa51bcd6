"""Certificates that we show: to the configured host, reached as configured, and to nobody else."""

from pathlib import Path

import pytest
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from fake_registry import NO_PROXIES, FakeRegistry

from harness.registry import Registry
from harness.services import require
from harness.tls import Certificate, issue
from imagejobd.model.egress import Egress
from imagejobd.model.errors import ErrorCode, Permanent, Temporary
from imagejobd.model.job import OPERATOR
from imagejobd.registry.client import RegistryClient
from imagejobd.registry.hosts import RegistryHost, RegistryHosts, RegistryTarget


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    return issue(tmp_path)


def configured(certificate: Certificate, **more: object) -> RegistryHost:
    return RegistryHost(
        ca_file=str(certificate.ca_file),
        cert_file=str(certificate.certificate_file),
        key_file=str(certificate.key_file),
        **more,  # type: ignore[arg-type]
    )


async def status_of(host: str, settings: dict[str, RegistryHost], **site: object) -> int:
    async with RegistryClient(settings, Egress(), proxies=NO_PROXIES) as client:
        connection = client.connect(RegistryTarget(host=host, **{"principal": OPERATOR} | site))  # type: ignore[arg-type]
        return (await connection.ask("GET", "/v2/", scopes=())).status


async def test_a_host_that_asks_is_shown_the_certificate(certificate: Certificate) -> None:
    """With cert_file and key_file a host with mutual TLS lets us in."""
    async with FakeRegistry(certificate, client_ca_file=certificate.ca_file) as fake:
        fake.on_manifest = lambda _: web.Response()
        assert await status_of(fake.host, {fake.host: configured(certificate)}) == 200
        assert await status_of(fake.host, {fake.host: configured(certificate)}, verify_tls=True) == 200


@pytest.mark.parametrize("site", [{"verify_tls": False}, {"scheme": "https", "verify_tls": False}])
async def test_a_weakened_connection_does_not_show_it(certificate: Certificate, site: dict[str, object]) -> None:
    """Who asks for any certificate to be accepted does so without ours."""
    async with FakeRegistry(certificate, client_ca_file=certificate.ca_file) as fake:
        fake.on_manifest = lambda _: web.Response()
        with pytest.raises(Temporary):
            await status_of(fake.host, {fake.host: configured(certificate)}, **site)
    assert fake.seen == []


async def test_a_redirect_does_not_show_it(certificate: Certificate, tls_fake: FakeRegistry) -> None:
    """A registry cannot send us to another host to be let in there with our certificate."""
    async with FakeRegistry(certificate, client_ca_file=certificate.ca_file) as inner:
        tls_fake.on_manifest = lambda _: web.Response(status=307, headers={"Location": f"{inner.url}/elsewhere"})
        with pytest.raises(Temporary):
            await status_of(tls_fake.host, {inner.host: configured(certificate)})
    assert inner.seen == []


async def test_a_real_registry_with_its_own_authority(tmp_path: Path) -> None:
    """A configured authority is enough for docker-registry; a request's wish to verify needs one."""
    require("docker-registry")
    with Registry(use_tls=True) as registry:
        settings = {registry.host: RegistryHost(ca_file=str(registry.ca_file))}
        assert await status_of(registry.host, settings) == 200
        assert await status_of(registry.host, settings, verify_tls=False) == 200
        assert await status_of(registry.host, {}) == 200
        with pytest.raises(Permanent, match="set ca_file"):
            await status_of(registry.host, {}, verify_tls=True)


async def test_a_configured_login_stays_on_the_configured_connection(certificate: Certificate, tmp_path: Path) -> None:
    """The operator's password is not sent where a request switched verification off."""
    (tmp_path / "password").write_text("correct-horse")
    settings = configured(certificate, username="builder", password_file=str(tmp_path / "password"))
    async with FakeRegistry(certificate) as fake:
        fake.on_manifest = lambda request: web.Response(
            status=200 if "Authorization" in request.headers else 401, headers={"WWW-Authenticate": "Basic realm=x"}
        )
        assert await status_of(fake.host, {fake.host: settings}) == 200
        with pytest.raises(Permanent, match="configured login is not sent") as denied:
            await status_of(fake.host, {fake.host: settings}, verify_tls=False)
        assert denied.value.code is ErrorCode.DENIED
    assert sum("Authorization" in request.headers for request in fake.seen) == 1


async def test_a_configured_login_is_not_sent_without_tls(certificate: Certificate, tmp_path: Path) -> None:
    """Nor where a request asked for plain HTTP at a host whose TLS is configured."""
    (tmp_path / "password").write_text("correct-horse")
    settings = configured(certificate, username="builder", password_file=str(tmp_path / "password"))
    async with FakeRegistry() as fake:
        fake.on_manifest = lambda _: web.Response(status=401, headers={"WWW-Authenticate": "Basic realm=x"})
        with pytest.raises(Permanent):
            await status_of(fake.host, {fake.host: settings}, scheme="http")
    assert not any("Authorization" in request.headers for request in fake.seen)


def encrypted_key(certificate: Certificate) -> str:
    key = serialization.load_pem_private_key(certificate.key_file.read_bytes(), None)
    file = certificate.key_file.with_name("encrypted.key")
    form, kind = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    file.write_bytes(key.private_bytes(form, kind, serialization.BestAvailableEncryption(b"secret")))
    return str(file)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"key_file": None}, "go together"),
        ({"cert_file": None}, "go together"),
        ({"key_file": "/nowhere/key.pem"}, "No such file"),
        ({"cert_file": "/dev/null"}, "cert_file"),
        ({"plain_http": True}, "plain_http"),
        ({"key_file": "encrypted"}, "encrypted"),
    ],
)
def test_files_that_cannot_work_are_refused_at_start(
    certificate: Certificate, change: dict[str, object], part: str
) -> None:
    """The refusal names the host and what is wrong; an encrypted key asks nobody for its password."""
    if change.get("key_file") == "encrypted":
        change = {"key_file": encrypted_key(certificate)}
    files: dict[str, object] = {
        "cert_file": str(certificate.certificate_file),
        "key_file": str(certificate.key_file),
        **change,
    }
    with pytest.raises(Permanent, match=part) as refused:
        RegistryHosts({"r.example": RegistryHost(**files)})  # type: ignore[arg-type]
    assert "r.example" in refused.value.message
