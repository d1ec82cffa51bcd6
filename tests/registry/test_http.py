"""Exchanges with peers that redirect bodies, set cookies, or hang up without a word."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from fake_registry import NO_PROXIES, FakeRegistry
from moved_clock import MovedClock
from raw_peer import head_of, raw_peer

from imagejobd.model.egress import Egress, EgressSettings
from imagejobd.model.errors import ErrorCode, Permanent
from imagejobd.model.secrets import Credentials, Secret
from imagejobd.registry.client import RegistryClient
from imagejobd.registry.connection import COOKIES_MAX, Connection
from imagejobd.registry.hosts import RegistryTarget
from imagejobd.registry.http import REDIRECTS_MAX

BUILDER = Credentials("builder", Secret("correct-horse"))
SCOPES = ("repository:team/app:pull,push",)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


def moved(location: str, status: int = 307) -> web.Response:
    return web.Response(status=status, headers={"Location": location})


@pytest.mark.parametrize("status", [307, 308])
@pytest.mark.parametrize(("method", "content"), [("POST", b""), ("PUT", b"{}" * 1000), ("DELETE", b"")])
async def test_a_redirected_write_keeps_method_and_body(
    fake: FakeRegistry, connection: Connection, status: int, method: str, content: bytes
) -> None:
    """`POST uploads/` and PUT of a manifest go where a registry leads them."""
    taken: list[tuple[str, bytes, str]] = []

    async def serve(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if request.path == "/v2/x":
            return moved("/elsewhere", status)
        taken.append((request.method, body, request.headers.get("Content-Type", "")))
        return web.Response(status=201)

    fake.on_manifest = serve
    headers = {"Content-Type": "application/x"}
    answer = await connection.ask(method, "/v2/x", scopes=SCOPES, headers=headers, content=content)
    assert (answer.status, answer.url.path) == (201, "/elsewhere")
    assert taken == [(method, content, "application/x")]


@pytest.mark.parametrize("status", [301, 302, 303])
async def test_a_redirect_that_drops_the_method_is_the_answer(
    fake: FakeRegistry, connection: Connection, status: int
) -> None:
    """A write is not turned into a read."""
    fake.on_manifest = lambda _: moved("ftp://elsewhere/", status)
    assert (await connection.ask("PUT", "/v2/x", scopes=SCOPES, content=b"{}")).status == status
    assert [request.path for request in fake.seen] == ["/v2/x"]


async def test_a_redirected_write_takes_no_login_along(fake: FakeRegistry, client: RegistryClient) -> None:
    """Neither login nor cookie leave the origin that they are meant for."""

    def serve(request: web.Request) -> web.StreamResponse:
        if "Authorization" not in request.headers:
            headers = {"WWW-Authenticate": "Basic realm=x", "Set-Cookie": "sid=hidden-session"}
            return web.Response(status=401, headers=headers)
        return moved(f"{elsewhere.url}/elsewhere")

    fake.on_manifest = serve
    async with FakeRegistry() as elsewhere:
        elsewhere.on_manifest = lambda _: web.Response(status=201)
        connection = client.connect(RegistryTarget(host=fake.host, scheme="http", login=BUILDER))
        assert (await connection.ask("PUT", "/v2/x", scopes=SCOPES, content=b"{}")).status == 201
        assert not {"Authorization", "Cookie"} & elsewhere.seen[0].headers.keys()
    assert {"Authorization", "Cookie"} <= fake.seen[-1].headers.keys()


async def test_redirected_writes_end(fake: FakeRegistry, connection: Connection) -> None:
    """After five redirects it is a circle."""
    fake.on_manifest = lambda _: moved("/v2/x")
    with pytest.raises(Permanent, match="more than 5 redirects"):
        await connection.ask("POST", "/v2/x", scopes=SCOPES)
    assert len(fake.seen) == REDIRECTS_MAX + 1


async def test_a_redirected_write_stays_within_limits(fake: FakeRegistry, tls_fake: FakeRegistry) -> None:
    """Not from TLS to plain HTTP, and not to where `[egress]` lets nobody."""
    fake.on_manifest = lambda _: moved(fake.url.replace("127.0.0.1", "127.0.0.2") + "/elsewhere")
    tls_fake.on_manifest = lambda _: moved(f"{fake.url}/elsewhere")
    egress = Egress(EgressSettings(deny=("127.0.0.2/32",)))
    async with RegistryClient({}, egress, proxies=NO_PROXIES) as client:
        with pytest.raises(Permanent) as denied:
            await client.connect(RegistryTarget(host=fake.host, scheme="http")).ask("POST", "/v2/x", scopes=SCOPES)
        assert denied.value.code is ErrorCode.EGRESS
        with pytest.raises(Permanent, match="from TLS to plain HTTP"):
            await client.connect(RegistryTarget(host=tls_fake.host)).ask("POST", "/v2/x", scopes=SCOPES)


async def test_cookies_are_kept_for_their_connection(fake: FakeRegistry, client: RegistryClient) -> None:
    """What a registry sets is sent back by every kind of request of this connection, renewed, ended, and shown to
    no other connection."""
    fake.on_manifest = lambda request: web.Response(
        headers={"Set-Cookie": "a=1; Path=/; HttpOnly"} if request.path == "/v2/" else {}
    )

    async def body() -> AsyncIterator[bytes]:
        yield b"x"

    connection = client.connect(RegistryTarget(host=fake.host, scheme="http"))
    await connection.ask("GET", "/v2/", scopes=())
    await connection.ask("GET", "/v2/x", scopes=SCOPES)
    async with connection.stream("/v2/x", scopes=SCOPES):
        pass
    await connection.send("PUT", "/v2/x", body(), size_bytes=1, scopes=SCOPES)
    await client.connect(RegistryTarget(host=fake.host, scheme="http")).ask("GET", "/v2/x", scopes=SCOPES)
    assert [r.headers.get("Cookie") for r in fake.seen] == [None, "a=1", "a=1", "a=1", None]
    fake.on_manifest = lambda _: web.Response(headers=[("Set-Cookie", "a="), ("Set-Cookie", "b=2")])
    for _ in range(2):
        await connection.ask("GET", "/v2/x", scopes=SCOPES)
    assert fake.seen[-1].headers.get("Cookie") == "b=2"


@pytest.mark.parametrize("cookie", ["a", "=1", "a=1,b", "a=b c", 'a="q"', "a b=1", "a=" + "x" * 9000, "; a=1"])
async def test_cookies_that_are_none(fake: FakeRegistry, connection: Connection, cookie: str) -> None:
    """What cannot be sent back as it came is left out."""
    fake.on_manifest = lambda _: web.Response(headers={"Set-Cookie": cookie})
    for _ in range(2):
        await connection.ask("GET", "/v2/x", scopes=SCOPES)
    assert "Cookie" not in fake.seen[-1].headers


async def test_cookies_are_bounded_and_secret(fake: FakeRegistry, connection: Connection) -> None:
    """A registry cannot fill the memory with cookies, and an error that repeats one does not show it."""
    fake.on_manifest = lambda _: web.json_response(
        {"errors": [{"code": "DENIED", "message": "your session hidden-session ended"}]},
        status=400,
        headers=[("Set-Cookie", f"sid{n}=hidden-session") for n in range(100)],
    )
    for _ in range(2):
        answer = await connection.ask("GET", "/v2/x", scopes=SCOPES)
    assert len(fake.seen[-1].headers["Cookie"].split("; ")) == COOKIES_MAX
    assert "hidden" not in connection.refusal(answer, what="manifest").message
    assert "hidden" not in repr(vars(connection))


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_server_that_hangs_up_without_saying_so(method: str) -> None:
    """A connection that was to be used again is lost twice; from then on each request has its own, and none fails."""
    requests: list[int] = []

    async def conduct(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(0)
        await head_of(reader)
        requests[-1] += 1
        writer.write(OK)
        await writer.drain()
        await head_of(reader)  # the next request is read, and not answered
        requests[-1] += 1

    async with raw_peer(conduct) as host, RegistryClient({}, Egress(), timing=MovedClock().timing) as client:
        connection = client.connect(RegistryTarget(host=host, scheme="http"))
        for _ in range(8):
            assert (await connection.ask(method, "/v2/x", scopes=SCOPES)).status == 200
    assert requests.count(2) == 2


async def test_a_server_that_hangs_up_now_and_then_is_not_that(client: RegistryClient) -> None:
    """Connections that are used again go on being so after a single one was lost."""
    connections = 0

    async def conduct(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        for _ in range(3):
            await head_of(reader)
            writer.write(OK)
            await writer.drain()
        await head_of(reader)

    async with raw_peer(conduct) as host:
        connection = client.connect(RegistryTarget(host=host, scheme="http"))
        for _ in range(12):
            assert (await connection.ask("GET", "/v2/x", scopes=SCOPES)).status == 200
    assert connections == 4


async def test_what_comes_on_an_idle_connection_is_no_answer(client: RegistryClient) -> None:
    """Whoever makes a server say more than it was asked does not answer the next tenant's request."""
    said = asyncio.Event()
    connections = 0

    async def conduct(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await head_of(reader)
        writer.write(OK)
        await writer.drain()
        await asyncio.sleep(0.2)  # the connection is idle by then, wherever it lies
        writer.write(b"HTTP/1.1 418 X\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.2)
        said.set()
        await reader.read()

    async with raw_peer(conduct) as host:
        for _ in range(2):
            said.clear()
            connection = client.connect(RegistryTarget(host=host, scheme="http"))
            assert (await connection.ask("HEAD", "/v2/x", scopes=SCOPES)).status == 200
            await said.wait()
    assert connections == 2


async def test_the_opening_of_a_large_read_is_one_try(fake: FakeRegistry, client: RegistryClient) -> None:
    """Who reads a blob counts its tries; here they would multiply."""
    fake.on_manifest = lambda _: web.Response(status=500)
    async with client.connect(RegistryTarget(host=fake.host, scheme="http")).stream("/v2/x", scopes=SCOPES) as stream:
        assert stream.status == 500
    assert len(fake.seen) == 1
