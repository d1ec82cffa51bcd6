"""What a request may change about a configured connection, and what that costs it."""

import ssl
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from fake_registry import NO_PROXIES, FakeRegistry
from yarl import URL

from harness.tls import issue
from imagejobd.model.egress import Egress
from imagejobd.model.job import OPERATOR, Principal
from imagejobd.model.secrets import Credentials, Secret
from imagejobd.registry.client import RegistryClient
from imagejobd.registry.hosts import Origin, RegistryHost, RegistryHosts, RegistryTarget

OWN = Credentials("own", Secret("own-word"))


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> RegistryHosts:
    folder: Path = tmp_path_factory.mktemp("trust")
    (folder / "password").write_text("configured-word")
    certificate = issue(folder)
    login: dict[str, Any] = {"username": "configured", "password_file": str(folder / "password")}
    shown: dict[str, Any] = {"cert_file": str(certificate.certificate_file), "key_file": str(certificate.key_file)}
    return RegistryHosts(
        {
            "tls.example": RegistryHost(**login, **shown),
            "plain.example": RegistryHost(**login, plain_http=True),
            "lax.example": RegistryHost(**login, **shown, insecure=True),
            "localhost:5000": RegistryHost(**login),
            "localhost:5001": RegistryHost(**login, ca_file=str(certificate.ca_file)),
        }
    )


def approach(hosts: RegistryHosts, host: str, **site: Any) -> Origin:
    return Origin.to(RegistryTarget(host=host, principal=OPERATOR, **site), hosts)


@pytest.mark.parametrize(
    ("host", "site", "origins", "is_verified", "has_login"),
    [
        ("tls.example", {}, ["https"], True, True),
        ("tls.example", {"scheme": "https"}, ["https"], True, True),
        ("tls.example", {"verify_tls": True}, ["https"], True, True),
        ("tls.example", {"verify_tls": False}, ["https"], False, False),
        ("tls.example", {"scheme": "http"}, ["http"], True, False),
        ("tls.example", {"scheme": "http", "verify_tls": False}, ["http"], False, False),
        ("plain.example", {}, ["http"], True, True),
        ("plain.example", {"scheme": "https"}, ["https"], True, True),
        ("plain.example", {"scheme": "https", "verify_tls": False}, ["https"], False, True),
        ("plain.example", {"verify_tls": False}, ["http"], False, True),
        ("lax.example", {}, ["https"], False, True),
        ("lax.example", {"verify_tls": False}, ["https"], False, True),
        ("lax.example", {"verify_tls": True}, ["https"], True, True),
        ("lax.example", {"scheme": "http"}, ["http"], False, False),
        ("localhost:5000", {}, ["https", "http"], False, True),
        ("localhost:5000", {"scheme": "http"}, ["http"], False, True),
        ("localhost:5000", {"verify_tls": True}, ["https"], True, True),
        ("localhost:5001", {"scheme": "http"}, ["http"], True, False),
        ("localhost:5001", {"verify_tls": False}, ["https"], False, False),
        ("localhost:5002", {"verify_tls": False}, ["https", "http"], False, False),
        ("r.example", {"verify_tls": False}, ["https"], False, False),
    ],
)
def test_who_weakens_a_connection_does_without_its_login(
    hosts: RegistryHosts, host: str, site: dict[str, Any], origins: list[str], is_verified: bool, has_login: bool
) -> None:
    """A request may ask for less, but not together with what the operator configured for more."""
    found = approach(hosts, host, **site)
    assert [str(url.origin()) for url in found.urls] == [f"{scheme}://{host}" for scheme in origins]
    assert (found.tls.verify_mode is ssl.CERT_REQUIRED) is is_verified
    assert (found.login is not None) is has_login
    assert approach(hosts, host, login=OWN, **site).login is OWN


def test_our_certificate_is_shown_to_the_configured_connection_only(hosts: RegistryHosts) -> None:
    """Neither a weakened connection nor a host that a registry leads to has the context that holds it."""
    shown = hosts.certificates_for("tls.example")
    at = URL("https://tls.example/v2/")
    assert approach(hosts, "tls.example").tls_for(at) is shown.own
    assert approach(hosts, "tls.example").tls_for(URL("https://TLS.example:443/x", encoded=True)) is shown.own
    assert approach(hosts, "tls.example").tls_for(URL("https://tls.example:8443/")) is not shown.own
    assert approach(hosts, "tls.example", verify_tls=False).tls_for(at) is hosts.unverified
    assert approach(hosts, "tls.example", scheme="http").tls_for(at) is shown.foreign
    assert approach(hosts, "r.example").tls_for(at) is shown.foreign
    assert approach(hosts, "r.example").tls_for(URL("https://tls.example:443/")) is shown.foreign
    assert approach(hosts, "r.example", verify_tls=False).tls_for(at) is shown.foreign
    assert approach(hosts, "r.example", verify_tls=False).tls_for(URL("https://s3.example/")) is hosts.unverified
    assert approach(hosts, "docker.io").tls_for(URL("https://registry-1.docker.io/")).verify_mode is ssl.CERT_REQUIRED


async def test_mirrors_have_their_own_settings_and_logins(fake: FakeRegistry, tmp_path: Path) -> None:
    """A mirror is asked with its configured login, never with that of the host it mirrors or of the request."""
    (tmp_path / "password").write_text("mirror-word")
    settings = {
        "r.example": RegistryHost(mirrors=(fake.host, "other.example")),
        fake.host: RegistryHost(username="mirror", password_file=str(tmp_path / "password"), plain_http=True),
    }
    fake.on_manifest = lambda _: web.Response(status=401, headers={"WWW-Authenticate": "Basic realm=x"})
    async with RegistryClient(settings, Egress(), proxies=NO_PROXIES) as client:
        connection = client.connect(RegistryTarget(host="r.example", login=OWN, verify_tls=False, principal=OPERATOR))
        mirrors = connection.mirrors()
        assert [mirror.host for mirror in mirrors] == [fake.host, "other.example"]
        assert connection.mirrors() is mirrors
        assert (await mirrors[0].ask("GET", "/v2/", scopes=())).status == 401
        assert mirrors[0].mirrors() == ()
    assert [r.headers.get("Authorization") for r in fake.seen] == [None, "Basic bWlycm9yOm1pcnJvci13b3Jk"]


async def test_the_endpoint_that_answered_is_remembered(tls_fake: FakeRegistry, fake: FakeRegistry) -> None:
    """On loopback TLS is tried first, plain HTTP next, and what answered is asked from then on."""
    async with RegistryClient({}, Egress(), proxies=NO_PROXIES) as client:
        for peer in (tls_fake, fake):
            peer.on_manifest = lambda _: web.Response()
            connection = client.connect(RegistryTarget(host=peer.host))
            for path in ("/v2/a", "/v2/b"):
                assert (await connection.ask("POST", path, scopes=())).status == 200
            async with connection.stream("/v2/c", scopes=()) as stream:
                assert stream.status == 200
            scheme = "https" if peer is tls_fake else "http"
            assert [(r.path, r.scheme) for r in peer.seen] == [(f"/v2/{name}", scheme) for name in "abc"]


@pytest.mark.parametrize("host", ["lax.example", "plain.example"])
def test_the_operators_login_goes_to_no_unverified_stranger(hosts: RegistryHosts, host: str) -> None:
    """A host that is configured without verification says nothing of its token server, which gets the password; who
    brings a login of his own decides for it."""
    stranger = URL("https://auth.example/token")
    for verify_tls in (None, False):
        found = approach(hosts, host, verify_tls=verify_tls)
        assert found.login is not None
        assert found.tls_for(stranger).verify_mode is ssl.CERT_REQUIRED
    assert approach(hosts, host, verify_tls=False, login=OWN).tls_for(stranger) is hosts.unverified
    assert approach(hosts, "r.example", verify_tls=False).tls_for(stranger) is hosts.unverified


@pytest.mark.parametrize(
    ("configured", "settings", "host", "scheme", "origin", "has_login"),
    [
        ("r.example:443", {}, "r.example", None, "https://r.example:443", True),
        ("r.example:443", {}, "r.example", "https", "https://r.example:443", True),
        ("r.example", {}, "r.example:443", "https", "https://r.example", True),
        ("r.example", {}, "r.example:443", None, "https://r.example", True),
        ("r.example:80", {"plain_http": True}, "r.example", "http", "http://r.example:80", True),
        ("r.example", {"plain_http": True}, "r.example:80", "http", "http://r.example", True),
        ("r.example:80", {"plain_http": True}, "r.example", "https", "https://r.example", False),
        ("r.example", {}, "r.example:80", None, "https://r.example:80", False),
        ("r.example", {}, "r.example:80", "http", "http://r.example", False),
        ("r.example:1443", {}, "r.example", None, "https://r.example", False),
    ],
)
def test_a_default_port_may_be_written_or_not(
    tmp_path: Path,
    configured: str,
    settings: dict[str, Any],
    host: str,
    scheme: str | None,
    origin: str,
    has_login: bool,
) -> None:
    """The operator and the request mean the same host when they mean the same port."""
    (tmp_path / "password").write_text("word")
    login = RegistryHost(username="me", password_file=str(tmp_path / "password"), **settings)
    found = approach(RegistryHosts({configured: login}), host, scheme=scheme)
    assert list(found.urls) == [URL(origin)]
    assert (found.login is not None) is has_login


def test_who_may_use_a_login_or_certificate_sees_another_registry(tmp_path: Path) -> None:
    """What two tenants see is one and the same only where both or neither may use what is configured, at the host and
    at its mirrors; nobody else's connection has the context that holds our certificate."""
    certificate = issue(tmp_path)
    shown: dict[str, Any] = {"cert_file": str(certificate.certificate_file), "key_file": str(certificate.key_file)}
    lent = RegistryHost(tenants=("1", "2"), **shown)
    hosts = RegistryHosts({"lent.example": lent, "r.example": RegistryHost(mirrors=("lent.example",))})

    def seen(host: str, tenant: str) -> Origin:
        return Origin.to(RegistryTarget(host=host, principal=Principal(tenant)), hosts)

    for host in ("lent.example", "r.example"):
        assert seen(host, "1").identity == seen(host, "2").identity
        assert seen(host, "3").identity == seen(host, "4").identity
        assert seen(host, "1").identity != seen(host, "3").identity
    assert seen("other.example", "1").identity == seen("other.example", "3").identity
    at = URL("https://lent.example/v2/")
    assert seen("lent.example", "1").tls_for(at) is seen("lent.example", "2").tls_for(at)
    assert seen("lent.example", "3").tls_for(at) is seen("lent.example", "4").tls_for(at)
    assert seen("lent.example", "1").tls_for(at) is not seen("lent.example", "3").tls_for(at)
