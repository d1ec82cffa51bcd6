"""Proxies of the environment: which leads where, real tunnels, and secrets that stay."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from fake_registry import FakeRegistry
from small_proxy import LOGIN, PASSWORD, USERNAME, SmallProxy, small_proxy
from yarl import URL

from imagejobd.model.egress import Egress, EgressSettings
from imagejobd.model.errors import ErrorCode, Fault, Permanent, Temporary
from imagejobd.model.secrets import Credentials, Secret
from imagejobd.registry.client import RegistryClient
from imagejobd.registry.hosts import RegistryHost, RegistryTarget
from imagejobd.registry.proxies import Proxies

NAME = "registry.invalid:5000"  # resolves nowhere (RFC 2606): only the proxy can lead there
BUILDER = Credentials("builder", Secret("correct-horse"))
DENY = Egress(EgressSettings(deny=("10.0.0.0/8",)))
PROXY = "http://proxy.example:3128"


def client_of(proxy: SmallProxy, egress: Egress | None = None, *, login: str = "") -> RegistryClient:
    url = f"http://{login}{proxy.host}"
    hosts = {NAME: RegistryHost(insecure=True)}
    return RegistryClient(hosts, egress or Egress(), proxies=Proxies({"http_proxy": url, "HTTPS_PROXY": url}))


async def status_of(client: RegistryClient, **site: object) -> int:
    connection = client.connect(RegistryTarget(host=NAME, **site))  # type: ignore[arg-type]
    return (await connection.ask("GET", "/v2/?x=1", scopes=())).status


@pytest.mark.parametrize("needs_login", [False, True])
async def test_tls_goes_through_a_tunnel(tls_fake: FakeRegistry, needs_login: bool) -> None:
    """CONNECT, then TLS with the registry itself: the proxy sees the host and its own login, nothing else."""
    tls_fake.on_manifest = lambda _: web.Response()
    login = f"{USERNAME}:{PASSWORD}@" if needs_login else ""
    async with small_proxy(tls_fake.host, needs_login=needs_login) as proxy, client_of(proxy, login=login) as client:
        assert await status_of(client, login=BUILDER) == 200
    assert [head.split("\r\n")[0] for head in proxy.heads] == [f"CONNECT {NAME} HTTP/1.1"]
    assert ("Proxy-Authorization" in proxy.heads[0]) is needs_login
    assert "Proxy-Authorization" not in tls_fake.seen[0].headers
    assert tls_fake.seen[0].host == NAME


async def test_a_tunnel_is_used_again(tls_fake: FakeRegistry) -> None:
    """Many requests, one after the other, are one CONNECT."""
    tls_fake.on_manifest = lambda _: web.Response()
    async with small_proxy(tls_fake.host) as proxy, client_of(proxy) as client:
        assert [await status_of(client) for _ in range(4)] == [200] * 4
    assert len(proxy.heads) == 1


@pytest.mark.parametrize("needs_login", [False, True])
async def test_plain_http_is_asked_of_the_proxy(fake: FakeRegistry, needs_login: bool) -> None:
    """The whole address is the proxy's to follow, and its login is in the same request."""
    fake.on_manifest = lambda _: web.Response()
    login = f"{USERNAME}:{PASSWORD}@" if needs_login else ""
    async with small_proxy(fake.host, needs_login=needs_login) as proxy, client_of(proxy, login=login) as client:
        assert await status_of(client, scheme="http") == 200
    assert proxy.heads[0].startswith(f"GET http://{NAME}/v2/?x=1 HTTP/1.1\r\n")
    assert (LOGIN in proxy.heads[0]) is needs_login


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_large_bodies_go_through(fake: FakeRegistry, tls_fake: FakeRegistry, scheme: str) -> None:
    """Uploads and downloads do not notice the proxy."""
    peer = tls_fake if scheme == "https" else fake

    async def echo(request: web.Request) -> web.Response:
        return web.Response(body=await request.read() or bytes(3_000_000))

    async def body() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield bytes(100_000)

    peer.on_manifest = echo
    async with small_proxy(peer.host) as proxy, client_of(proxy) as client:
        connection = client.connect(RegistryTarget(host=NAME, scheme=scheme))  # type: ignore[arg-type]
        answer = await connection.send("PUT", "/v2/x", body(), size_bytes=1_000_000, scopes=())
        assert len(answer.body) == 1_000_000
        async with connection.stream("/v2/x", scopes=()) as stream:
            assert sum([len(chunk) async for chunk in stream.chunks()]) == 3_000_000


async def test_loopback_is_reached_directly(fake: FakeRegistry, tls_fake: FakeRegistry) -> None:
    """No proxy can lead to this machine's own registries."""
    fake.on_manifest = lambda _: web.Response()
    async with small_proxy(tls_fake.host) as proxy, client_of(proxy) as client:
        connection = client.connect(RegistryTarget(host=fake.host))
        assert (await connection.ask("GET", "/v2/", scopes=())).status == 200
    assert proxy.heads == []


@pytest.mark.parametrize("host", ["10.1.2.3", "[::ffff:10.1.2.3]:5000", "10.1.2.3:5000"])
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_proxy_leads_to_no_denied_address(fake: FakeRegistry, host: str, scheme: str) -> None:
    """What may not be connected to may not be asked of a proxy either."""
    async with small_proxy(fake.host) as proxy, client_of(proxy, DENY) as client:
        with pytest.raises(Permanent) as denied:
            await client.connect(RegistryTarget(host=host, scheme=scheme)).ask(  # type: ignore[arg-type]
                "GET", "/v2/", scopes=()
            )
    assert denied.value.code is ErrorCode.EGRESS
    assert proxy.heads == []


async def test_numbers_in_disguise_are_addresses(fake: FakeRegistry) -> None:
    """A redirect to a number that resolvers take for an address does not get past the rule as a name."""
    fake.on_manifest = lambda _: web.Response(status=307, headers={"Location": "http://0x0a010203/x"})
    async with small_proxy(fake.host) as proxy, client_of(proxy, DENY) as client:
        with pytest.raises(Permanent) as denied:
            await status_of(client, scheme="http")
    assert denied.value.code is ErrorCode.EGRESS
    assert len(proxy.heads) == 1


@pytest.mark.parametrize("settings", [{"deny": ("127.0.0.0/8",)}, {"allow_private": False}])
async def test_the_operators_proxy_may_be_anywhere(fake: FakeRegistry, settings: dict[str, Any]) -> None:
    """Egress is about what users and peers name. The proxy's address is not open to them all the same."""
    fake.on_manifest = lambda _: web.Response()
    egress = Egress(EgressSettings(**settings))
    async with small_proxy(fake.host) as proxy, client_of(proxy, egress) as client:
        assert await status_of(client, scheme="http") == 200
        with pytest.raises(Permanent) as denied:
            await client.connect(RegistryTarget(host=proxy.host, scheme="http")).ask("GET", "/v2/", scopes=())
    assert denied.value.code is ErrorCode.EGRESS
    assert len(proxy.heads) == 1


@pytest.mark.parametrize(("status", "kind"), [(403, Permanent), (407, Permanent), (502, Temporary)])
async def test_a_proxy_that_refuses(tls_fake: FakeRegistry, status: int, kind: type[Fault]) -> None:
    """Its refusal names the registry and the status, and keeps the login."""
    async with small_proxy(tls_fake.host) as proxy:
        proxy.status = status
        async with client_of(proxy, login=f"{USERNAME}:{PASSWORD}@") as client:
            with pytest.raises(Fault, match=str(status)) as refused:
                await status_of(client)
    assert type(refused.value) is kind
    assert NAME in refused.value.message
    assert PASSWORD not in refused.value.message


async def test_a_proxy_that_is_down() -> None:
    """It is the proxy that cannot be reached, not the registry."""
    proxies = Proxies({"https_proxy": f"http://{USERNAME}:{PASSWORD}@127.0.0.1:9"})
    async with RegistryClient({}, Egress(), proxies=proxies) as client:
        with pytest.raises(Temporary, match="proxy cannot be reached") as down:
            await status_of(client)
    assert PASSWORD not in down.value.message


@pytest.mark.parametrize(
    ("environ", "url", "expected"),
    [
        ({}, "https://r.example/", None),
        ({"HTTPS_PROXY": PROXY}, "https://r.example/", PROXY),
        ({"https_proxy": PROXY}, "https://r.example/", PROXY),
        ({"https_proxy": "", "HTTPS_PROXY": PROXY}, "https://r.example/", PROXY),
        ({"https_proxy": PROXY, "HTTPS_PROXY": "http://other.example"}, "https://r.example/", PROXY),
        ({"HTTP_PROXY": PROXY}, "https://r.example/", None),
        ({"HTTP_PROXY": "proxy.example:3128"}, "http://r.example/", PROXY),
        ({"HTTP_PROXY": PROXY}, "http://localhost:5000/", None),
        ({"HTTP_PROXY": PROXY}, "http://127.9.9.9/", None),
        ({"HTTP_PROXY": PROXY}, "http://127.1/", None),
        ({"HTTP_PROXY": PROXY}, "http://[::1]:5000/", None),
        ({"HTTP_PROXY": PROXY, "NO_PROXY": "*"}, "http://r.example/", None),
        ({"HTTP_PROXY": PROXY, "NO_PROXY": "a.example, r.example"}, "http://r.example/", None),
        ({"HTTP_PROXY": PROXY, "no_proxy": ".example"}, "http://r.example/", None),
        ({"HTTP_PROXY": PROXY, "NO_PROXY": "*.example"}, "http://R.Example./", None),
        ({"HTTP_PROXY": PROXY, "NO_PROXY": "example"}, "http://r.example/", None),
        ({"HTTP_PROXY": PROXY, "NO_PROXY": "ample"}, "http://r.example/", PROXY),
        ({"HTTP_PROXY": PROXY, "NO_PROXY": "r.example:5000"}, "http://r.example:5000/", None),
        ({"HTTP_PROXY": PROXY, "NO_PROXY": "r.example:5000"}, "http://r.example/", PROXY),
        ({"HTTP_PROXY": PROXY, "NO_PROXY": "10.0.0.0/8"}, "http://10.1.2.3/", None),
        ({"HTTP_PROXY": PROXY, "NO_PROXY": "10.1.2.3"}, "http://10.1.2.3:5000/", None),
        ({"HTTP_PROXY": PROXY, "NO_PROXY": "10.1.2"}, "http://10.1.2.3/", PROXY),
        ({"HTTP_PROXY": PROXY, "NO_PROXY": "fd00::/8,[fd01::1]:5000"}, "http://[fd00::5]/", None),
        ({"HTTP_PROXY": PROXY, "NO_PROXY": "[2001:db8::1]:5000"}, "http://[2001:db8::1]:5000/", None),
        ({"HTTP_PROXY": PROXY, "NO_PROXY": " , "}, "http://r.example/", PROXY),
    ],
)
def test_which_proxy_leads_where(environ: dict[str, str], url: str, expected: str | None) -> None:
    """The variables mean what they mean to curl; loopback is reached directly whatever they say."""
    found = Proxies(environ).find(URL(url))
    assert (str(found.url).rstrip("/") if found else None) == expected


@pytest.mark.parametrize("value", ["socks5://proxy:1080", "http://", "http://[::1", "http://user:hidden@:80"])
def test_what_is_no_http_proxy_is_refused_at_start(value: str) -> None:
    """The refusal names the variable and shows nothing of its value."""
    with pytest.raises(Permanent, match="HTTPS_PROXY") as refused:
        Proxies({"HTTPS_PROXY": value})
    assert refused.value.code is ErrorCode.INVALID
    assert "hidden" not in refused.value.message


def test_a_proxys_login_does_not_show() -> None:
    """Neither the proxy nor its address shows user name and password."""
    found = Proxies({"http_proxy": "http://user:hid%64en@proxy.example:3128"}).find(URL("http://r.example/"))
    assert found is not None
    assert found.credentials is not None
    assert found.credentials.password.reveal() == "hidden"
    assert "hid" not in repr(found)
