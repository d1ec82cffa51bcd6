"""Registry settings are checked, and their files read, when the daemon starts."""

import ssl
from pathlib import Path

import pytest

from harness.tls import issue
from imagejobd.model.errors import ErrorCode, Permanent
from imagejobd.model.job import NOBODY, OPERATOR, Principal
from imagejobd.registry.hosts import CHUNK_MIN_BYTES, RegistryHost, RegistryHosts


def origins(hosts: RegistryHosts, host: str) -> list[str]:
    return hosts.origins(host)


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
    assert not hosts.is_configured(asked, "http") or ":" not in name
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
    assert origins(hosts, "docker.io") == ["https://registry-1.docker.io"]


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
    assert origins(hosts, "r.example:5000") == ["https://r.example:5000"]
    assert origins(hosts, "localhost:5000") == ["https://localhost:5000", "http://localhost:5000"]
    assert origins(hosts, "plain.example") == ["http://plain.example"]
    assert origins(hosts, "127.0.0.1:5001") == ["https://127.0.0.1:5001", "http://127.0.0.1:5001"]
    assert origins(hosts, "127.0.0.1:5002") == ["https://127.0.0.1:5002"]


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
    assert len(origins(RegistryHosts({}), host)) == (2 if expected else 1)


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
