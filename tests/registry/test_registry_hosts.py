"""What an operator says about hosts is checked at start; what a request may make of it, and what that costs it."""

import ssl
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from fake_registry import NO_PROXIES, FakeRegistry
from yarl import URL

from harness.tls import issue
from imagejobd.model.egress import Egress
from imagejobd.model.errors import ErrorCode, Permanent
from imagejobd.model.job import NOBODY, OPERATOR, Principal
from imagejobd.model.secrets import Credentials, Secret
from imagejobd.registry.client import RegistryClient
from imagejobd.registry.hosts import CHUNK_MIN_BYTES, Origin, RegistryHost, RegistryHosts, RegistryTarget


@pytest.mark.parametrize("name", ["registry.example:5000", "Registry.Example:5000"])
def test_password_is_read_once_and_stripped(tmp_path: Path, name: str) -> None:
    """The file is read at start, and the newline that an editor adds is no part of the password."""
    file = tmp_path / "password"
    file.write_text("correct-horse\n")
    hosts = RegistryHosts({name: RegistryHost(username="builder", password_file=str(file))})
    file.unlink()
    credentials = hosts.credentials_for("registry.example:5000")
    assert credentials is not None
    assert (credentials.username, credentials.password.reveal()) == ("builder", "correct-horse")
    assert hosts.credentials_for("other.example") is None


@pytest.mark.parametrize(("name", "asked"), [("r.example:443", "r.example"), ("r.example", "r.example:443")])
def test_the_port_of_tls_may_be_written_or_not(tmp_path: Path, name: str, asked: str) -> None:
    """Both spellings find all that is configured."""
    (tmp_path / "password").write_text("p")
    host = RegistryHost(
        username="me", password_file=str(tmp_path / "password"), mirrors=("m.example",), chunk_bytes=CHUNK_MIN_BYTES
    )
    hosts = RegistryHosts({name: host})
    assert hosts.credentials_for(asked) is not None
    assert hosts.mirrors_of(asked) == ("m.example",)
    assert hosts.chunk_bytes_for(asked) == CHUNK_MIN_BYTES
    assert hosts.certificates_for(asked) is hosts.certificates_for(name)
    assert hosts.is_configured(asked)
    assert not hosts.is_configured("r.example:444")


@pytest.mark.parametrize(
    "names", [("r.example", "r.example:443"), ("R.example", "r.example"), ("docker.io", "index.docker.io")]
)
def test_a_host_is_configured_once(names: tuple[str, str]) -> None:
    """Two tables for one host would make one of them silently void."""
    with pytest.raises(Permanent, match="too") as refused:
        RegistryHosts({name: RegistryHost() for name in names})
    assert all(name in refused.value.message for name in names)


def test_hub_has_several_names(tmp_path: Path) -> None:
    """A login for index.docker.io is one for docker.io, whose API is at registry-1.docker.io."""
    (tmp_path / "password").write_text("p")
    hosts = RegistryHosts({"index.docker.io": RegistryHost(username="me", password_file=str(tmp_path / "password"))})
    assert hosts.credentials_for("docker.io") is not None
    assert hosts.origins("docker.io") == ["https://registry-1.docker.io"]


@pytest.mark.parametrize(
    ("name", "host", "part"),
    [
        ("r.example", {"username": "me"}, "go together"),
        ("r.example", {"password_file": "/nowhere"}, "go together"),
        ("r.example", {"username": "me", "password_file": "/nowhere/password"}, "No such file"),
        ("r.example", {"username": "me", "password_file": "/dev/null"}, "is empty"),
        ("r.example", {"ca_file": "/nowhere/ca.pem"}, "No such file"),
        ("r.example", {"ca_file": "/dev/null"}, "ca_file"),
        ("https://r.example", {}, "not a registry host"),
        ("r.example/team", {}, "not a registry host"),
        ("registry", {}, "not a registry host"),
    ],
)
def test_what_cannot_work_is_refused_at_start(name: str, host: dict[str, str], part: str) -> None:
    """The refusal names the table and what is wrong with it."""
    with pytest.raises(Permanent, match=part) as refused:
        RegistryHosts({name: RegistryHost(**host)})
    assert refused.value.code is ErrorCode.INVALID
    assert name in refused.value.message


@pytest.fixture
def ca_file(tmp_path: Path) -> str:
    return str(issue(tmp_path).ca_file)


def test_endpoints_follow_docker(ca_file: str) -> None:
    """Elsewhere TLS only; on loopback TLS, then plain; what is configured is taken at its word."""
    hosts = RegistryHosts(
        {
            "plain.example": RegistryHost(plain_http=True),
            "127.0.0.1:5001": RegistryHost(insecure=True),
            "127.0.0.1:5002": RegistryHost(ca_file=ca_file),
        }
    )
    assert hosts.origins("r.example:5000") == ["https://r.example:5000"]
    assert hosts.origins("localhost:5000") == ["https://localhost:5000", "http://localhost:5000"]
    assert hosts.origins("plain.example") == ["http://plain.example"]
    assert hosts.origins("127.0.0.1:5001") == ["https://127.0.0.1:5001", "http://127.0.0.1:5001"]
    assert hosts.origins("127.0.0.1:5002") == ["https://127.0.0.1:5002"]


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("localhost:5000", True),
        ("127.8.9.1:1", True),
        ("[::1]:5000", True),
        ("[::1]", True),
        ("10.0.0.1:5000", False),
        ("localhost.example", False),
        ("127.0.0.1.example:5000", False),
        ("[2001:db8::1]:5000", False),
    ],
)
def test_loopback_hosts(host: str, expected: bool) -> None:
    """A host is on loopback by its name or address, with or without a port, never by how a name begins."""
    assert len(RegistryHosts({}).origins(host)) == (2 if expected else 1)


def test_certificates_are_verified_but_for_loopback_and_insecure(ca_file: str) -> None:
    """Trust without verification is for hosts that are this machine, or that were configured so."""
    hosts = RegistryHosts({"bad.example": RegistryHost(insecure=True), "127.0.0.1:5002": RegistryHost(ca_file=ca_file)})
    modes = {host: hosts.certificates_for(host).own.verify_mode for host in ("r.example", "127.0.0.1:1", "bad.example")}
    assert modes == {
        "r.example": ssl.CERT_REQUIRED,
        "127.0.0.1:1": ssl.CERT_NONE,
        "bad.example": ssl.CERT_NONE,
    }
    assert hosts.certificates_for("127.0.0.1:5002").own.verify_mode is ssl.CERT_REQUIRED


def test_mirrors_are_hosts(tmp_path: Path) -> None:
    """Mirrors are named as hosts are, in order, each once."""
    hosts = RegistryHosts(
        {"docker.io": RegistryHost(mirrors=("Mirror.example:5000", "10.0.0.1", "mirror.example:5000"))}
    )
    assert hosts.mirrors_of("docker.io") == ("mirror.example:5000", "10.0.0.1")
    assert hosts.mirrors_of("r.example") == ()


@pytest.mark.parametrize("mirror", ["r.example", "R.Example", "https://m.example", "m.example/path", "mirror", ""])
def test_mirrors_that_cannot_be_one(mirror: str) -> None:
    """A host is no mirror of itself, and an address is no host."""
    with pytest.raises(Permanent, match="mirrors"):
        RegistryHosts({"r.example": RegistryHost(mirrors=(mirror,))})


def test_chunks_have_a_least_size() -> None:
    """Pieces are as large as object storage wants them; without the key uploads go in one."""
    hosts = RegistryHosts({"r.example": RegistryHost(chunk_bytes=CHUNK_MIN_BYTES)})
    assert hosts.chunk_bytes_for("r.example") == CHUNK_MIN_BYTES
    assert hosts.chunk_bytes_for("other.example") is None
    with pytest.raises(Permanent, match="chunk_bytes"):
        RegistryHosts({"r.example": RegistryHost(chunk_bytes=CHUNK_MIN_BYTES - 1)})


@pytest.mark.parametrize(
    ("tenants", "may"),
    [
        (None, {"local", "admin"}),
        ((), {"admin"}),
        (("1",), {"one", "admin"}),
        (("local", "1"), {"local", "one", "admin"}),
        (("*",), {"local", "one", "two", "admin", "nobody"}),
    ],
)
def test_a_login_is_lent_to_tenants(tmp_path: Path, tenants: tuple[str, ...] | None, may: set[str]) -> None:
    """A login is for callers without a token where nothing is said, else for the tenants named; always for admins, and
    for what the operator himself orders."""
    (tmp_path / "password").write_text("p")
    lent = {} if tenants is None else {"tenants": tenants}
    table = RegistryHost(username="me", password_file=str(tmp_path / "password"), **lent)
    hosts = RegistryHosts({"r.example": table, "open.example": RegistryHost()}, admin_subjects=["root"])
    principals = {
        "local": Principal("local"),
        "one": Principal("1", "somebody"),
        "two": Principal("2", ""),
        "admin": Principal("2", "root"),
        "nobody": NOBODY,
    }
    for name, principal in principals.items():
        seen = hosts.of(principal)
        assert (seen.credentials_for("r.example:443") is not None) is (name in may)
        assert seen.is_withheld("r.example:443") is (name not in may)
        assert not seen.is_withheld("open.example")
    assert hosts.of(OPERATOR).credentials_for("r.example") is not None


@pytest.mark.parametrize("tenant", ["", "acme", "01", "1 ", "Local", "**"])
def test_tenants_that_nobody_is(tenant: str) -> None:
    """A misspelt tenant is found at start, not by its jobs."""
    with pytest.raises(Permanent, match="tenants") as refused:
        RegistryHosts({"r.example": RegistryHost(tenants=(tenant,))})
    assert "r.example" in refused.value.message


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
    """Nobody else's connection has the context that holds our certificate, and shares connections with those that have
    it."""
    certificate = issue(tmp_path)
    shown: dict[str, Any] = {"cert_file": str(certificate.certificate_file), "key_file": str(certificate.key_file)}
    lent = RegistryHost(tenants=("1", "2"), **shown)
    hosts = RegistryHosts({"lent.example": lent})

    def seen(host: str, tenant: str) -> Origin:
        return Origin.to(RegistryTarget(host=host, principal=Principal(tenant)), hosts)

    at = URL("https://lent.example/v2/")
    assert seen("lent.example", "1").tls_for(at) is seen("lent.example", "2").tls_for(at)
    assert seen("lent.example", "3").tls_for(at) is seen("lent.example", "4").tls_for(at)
    assert seen("lent.example", "1").tls_for(at) is not seen("lent.example", "3").tls_for(at)
