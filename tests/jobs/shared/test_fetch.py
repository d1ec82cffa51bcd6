"""Promises of fetching: what is followed, what is refused, what is worth another attempt, and what a message shows."""

import asyncio
import base64
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from harness.tls import issue
from imagejobd.jobs.shared.context import bare_url, fetch, parse_url
from imagejobd.model.circuit import Circuits
from imagejobd.model.egress import Egress, EgressSettings
from imagejobd.model.errors import RETRY_AFTER_MAX_S, ErrorCode, Fault, Permanent, Temporary
from imagejobd.model.resolver import Address, Resolver

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Serve = Callable[..., Awaitable[TestServer]]

ANYWHERE = Egress(EgressSettings(deny=()))
NO_LOOPBACK = Egress(EgressSettings(deny=("127.0.0.0/8", "::1/128")))
SECRET = "?token=hush"
BOUNDS: dict[str, Any] = {"max_bytes": 1 << 30, "idle_s": 5.0, "redirects_max": 5}


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Starts HTTP servers on loopback from handlers by path."""
    servers: list[TestServer] = []

    async def start(**handlers: Handler) -> TestServer:
        app = web.Application()
        for name, handler in handlers.items():
            app.router.add_get(f"/{name}", handler)
        servers.append(TestServer(app))
        await servers[-1].start_server()
        return servers[-1]

    yield start
    for server in servers:
        await server.close()


@pytest.fixture
async def tls(tmp_path: Path) -> AsyncIterator[tuple[int, Path]]:
    """Port of an HTTPS server that redirects /down to plain HTTP, and the authority that vouches for it."""
    files = issue(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files.certificate_file, files.key_file)
    app = web.Application()
    app.router.add_get("/down", answers(302, Location="http://127.0.0.1/x"))
    server = TestServer(app)
    await server.start_server(ssl=context)
    yield server.port or 0, files.ca_file
    await server.close()


async def collect(url: object, *, egress: Egress = ANYWHERE, names: Resolver | None = None, **bounds: Any) -> bytes:
    names = names or Resolver()
    pieces = fetch(str(url), egress=egress, names=names, circuits=Circuits(), **BOUNDS | bounds)
    return b"".join([piece async for piece in pieces])


async def fault_of(url: object, **more: Any) -> Fault:
    with pytest.raises(Fault) as caught:
        await collect(url, **more)
    assert "hush" not in str(caught.value)
    return caught.value


def answers(status: int, **headers: str) -> Handler:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(status=status, headers={name.replace("_", "-"): value for name, value in headers.items()})

    return handler


async def tar(_: web.Request) -> web.Response:
    return web.Response(body=b"tar" * 100_000)


async def test_body_arrives_whole_and_progress_is_counted(serve: Serve):
    """Every byte comes, and progress counts them against Content-Length."""
    server = await serve(tar=tar)
    heard: list[tuple[int, int | None]] = []
    body = await collect(server.make_url("/tar"), progress=lambda n, of: heard.append((n, of)))
    assert body == b"tar" * 100_000
    assert heard[-1] == (300_000, 300_000)


async def test_scheme_may_be_left_out(serve: Serve):
    """A URL without a scheme means http."""
    server = await serve(tar=tar)
    assert len(await collect(f"127.0.0.1:{server.port}/tar")) == 300_000


async def test_encoded_bodies_stay_as_they_are(serve: Serve):
    """Content-Encoding is not undone: a bomb stays folded, and the context reader knows gzip itself."""

    async def encoded(_: web.Request) -> web.Response:
        return web.Response(body=b"\x1f\x8bnot really", headers={"Content-Encoding": "gzip"})

    server = await serve(tar=encoded)
    assert await collect(server.make_url("/tar")) == b"\x1f\x8bnot really"


async def test_redirects_are_followed_up_to_the_bound(serve: Serve):
    """Relative and absolute redirects are followed, one too many is not."""
    server = await serve(a=answers(302, Location="b"), b=answers(307, Location="/tar"), tar=tar)
    assert len(await collect(server.make_url("/a"), redirects_max=2)) == 300_000
    fault = await fault_of(server.make_url("/a" + SECRET), redirects_max=1)
    assert isinstance(fault, Permanent)
    assert fault.message.endswith("redirects more than once")


@pytest.mark.parametrize(
    "location", ["", "ftp://example.org/x", "http://u:hush@127.0.0.1/x", "http://[bad/x", "file:///x"]
)
async def test_redirects_elsewhere_are_refused(serve: Serve, location: str):
    """A redirect to no URL, another scheme or one with a password is an end."""
    server = await serve(a=answers(302, Location=location))
    assert isinstance(await fault_of(server.make_url("/a")), Permanent)


async def test_credentials_go_to_their_own_host_only(serve: Serve):
    """User and password of a URL are sent to its origin, not to where it redirects, and never shown."""
    seen: list[str | None] = []

    async def target(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        return web.Response(body=b"x")

    other = await serve(tar=target)
    location = str(other.make_url("/tar"))

    async def first(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        return web.Response(status=302, headers={"Location": location})

    server = await serve(a=first)
    await collect(f"http://joe:hush@127.0.0.1:{server.port}/a")
    assert seen == ["Basic " + base64.b64encode(b"joe:hush").decode(), None]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 204, 206, 304])
async def test_refusals_are_final(serve: Serve, status: int):
    """What a server refuses, or answers without a whole body, is not asked for again."""
    server = await serve(tar=answers(status))
    fault = await fault_of(server.make_url("/tar" + SECRET))
    assert isinstance(fault, Permanent)
    assert str(status) in fault.message


@pytest.mark.parametrize(
    ("status", "header", "wish"), [(503, "7", 7.0), (429, "", None), (500, "soon", None), (408, "9e9", None)]
)
async def test_busy_servers_are_asked_again(serve: Serve, status: int, header: str, wish: float | None):
    """5xx, 408 and 429 are temporary, with the server's own wish where it can be read."""
    server = await serve(tar=answers(status, Retry_After=header))
    fault = await fault_of(server.make_url("/tar"))
    assert isinstance(fault, Temporary)
    assert fault.retry_after_s == wish


async def test_retry_after_as_a_date(serve: Serve):
    """A date in Retry-After counts from now; one long past means at once, one far ahead is bounded."""
    server = await serve(
        past=answers(503, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"),
        far=answers(503, Retry_After="Wed, 21 Oct 2115 07:28:00 GMT"),
    )
    waits = [await fault_of(server.make_url(path)) for path in ("/past", "/far")]
    assert [fault.retry_after_s for fault in waits if isinstance(fault, Temporary)] == [0.0, RETRY_AFTER_MAX_S]


async def test_announced_size_over_the_bound_is_refused_at_once(serve: Serve):
    """Content-Length beyond the bound ends it before a byte of the body is handed out."""
    server = await serve(tar=tar)
    fault = await fault_of(server.make_url("/tar"), max_bytes=299_999)
    assert fault.code == ErrorCode.TOO_LARGE


async def test_unannounced_size_is_bounded_too(serve: Serve):
    """A chunked body is cut off at the bound."""

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(bytes(65536))

    server = await serve(tar=endless)
    fault = await fault_of(server.make_url("/tar"), max_bytes=1_000_000)
    assert fault.code == ErrorCode.TOO_LARGE


@asynccontextmanager
async def raw_server(answer: bytes, *, then_wait: bool) -> AsyncIterator[int]:
    """A port that answers a request with these bytes, then hangs up or waits for the client to do so."""
    finished = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        if then_wait:
            await reader.read()
        writer.close()
        await writer.wait_closed()
        finished.set()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
        await finished.wait()


@pytest.mark.parametrize(
    ("answer", "then_wait", "words"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", False, "ended before"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", False, "ended before"),
        (b"", False, "broke off"),
        (b"SSH-2.0-OpenSSH_9\r\n", True, "broke off"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", True, "nothing for too long"),
        (b"", True, "nothing for too long"),
    ],
)
async def test_broken_and_silent_servers_are_temporary(answer: bytes, then_wait: bool, words: str):
    """An answer that ends early, stalls or is no HTTP may be better the next time."""
    async with raw_server(answer, then_wait=then_wait) as port:
        fault = await fault_of(f"http://127.0.0.1:{port}/tar{SECRET}", idle_s=1.0)
    assert isinstance(fault, Temporary)
    assert words in fault.message


async def test_nobody_listening_is_temporary(unused_tcp_port: int):
    """A refused connection may be a server that is just starting."""
    fault = await fault_of(f"http://127.0.0.1:{unused_tcp_port}/tar")
    assert isinstance(fault, Temporary)
    assert "no connection" in fault.message


@pytest.mark.parametrize(("code", "kind"), [(socket.EAI_NONAME, Permanent), (socket.EAI_AGAIN, Temporary)])
async def test_dns_that_says_no_is_final_and_dns_that_says_nothing_is_not(code: int, kind: type[Fault]):
    """A name that does not exist is the caller's to mend; a resolver without an answer may have one later."""

    def lookup(*_: object, **__: object) -> None:
        raise socket.gaierror(code, "as the C library words it")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", lookup)
        fault = await fault_of(f"http://nowhere.invalid/tar{SECRET}")
    assert isinstance(fault, kind)
    assert "nowhere.invalid" in fault.message


async def test_certificates_are_checked(tls: tuple[int, Path]):
    """A certificate that nobody vouches for ends it; repeating would not help."""
    fault = await fault_of(f"https://127.0.0.1:{tls[0]}/down{SECRET}")
    assert isinstance(fault, Permanent)
    assert "certificate" in fault.message


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0x7f.1", "127.1", "2130706433", "0177.0.0.1"]
)
async def test_egress_holds_for_every_way_to_write_an_address(serve: Serve, host: str):
    """Names, mapped addresses and numbers in old forms never reach an address that is denied."""
    server = await serve(tar=tar)
    fault = await fault_of(f"http://{host}:{server.port}/tar{SECRET}", egress=NO_LOOPBACK)
    assert isinstance(fault, Permanent)
    assert fault.code in (ErrorCode.EGRESS, ErrorCode.INVALID)


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]"])
async def test_the_unspecified_address_is_never_reached(serve: Serve, host: str):
    """0.0.0.0 reaches loopback on Linux, so it is denied whatever the rules say."""
    server = await serve(tar=tar)
    assert (await fault_of(f"http://{host}:{server.port}/tar")).code == ErrorCode.EGRESS


async def test_egress_holds_after_a_redirect(serve: Serve):
    """A redirect into a denied network is not followed there."""
    inner = await serve(tar=tar)
    target = f"http://127.0.0.2:{inner.port}/tar"
    server = await serve(a=answers(302, Location=target))
    fault = await fault_of(server.make_url("/a"), egress=Egress(EgressSettings(deny=("127.0.0.2/32",))))
    assert fault.code == ErrorCode.EGRESS
    assert "127.0.0.2" in fault.message


async def test_egress_is_judged_on_the_address_that_is_connected_to(serve: Serve):
    """DNS that answers differently each time gains nothing: the socket's own address is what counts."""
    lookups: list[str] = []

    def rebinding(host: str, family: int) -> list[Address]:
        lookups.append(host)
        return [(socket.AF_INET, 0, "192.0.2.1" if len(lookups) > 1 else "127.0.0.1")]

    server = await serve(tar=tar)
    fault = await fault_of(f"http://friendly.example:{server.port}/tar", egress=NO_LOOPBACK, names=Resolver(rebinding))
    assert fault.code == ErrorCode.EGRESS


async def test_proxies_and_cookies_are_not_used(serve: Serve, monkeypatch: pytest.MonkeyPatch):
    """A proxy in the environment is not asked, and a cookie does not travel to the next hop."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    cookies: list[str | None] = []

    async def target(request: web.Request) -> web.Response:
        cookies.append(request.headers.get("Cookie"))
        return web.Response(body=b"x")

    server = await serve(a=answers(302, Location="tar", Set_Cookie="a=b"), tar=target)
    assert await collect(server.make_url("/a")) == b"x"
    assert cookies == [None]


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://",
        "ftp://example.org/x",
        "file:///etc/passwd",
        "http://example.org:99999/",
        "http://[::1",
        "x" * 9000,
        "http://ho st/x",
        "http://ho\x01st/x",
        "ho st/x",
        "ftp://example.org/x?u=http://y",
    ],
)
def test_urls_that_cannot_be_fetched_are_refused(url: str):
    """Other schemes, no host and impossible ports are invalid input."""
    with pytest.raises(Permanent) as caught:
        parse_url(url)
    assert caught.value.code == ErrorCode.INVALID


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("host/x?u=http://y", "http://host/x?u=http://y"),
        ("host:81/http://y", "http://host:81/http://y"),
        ("HTTPS://host/x", "https://host/x"),
        (" [::1]:81/x y ", "http://[::1]:81/x%20y"),
        ("http://ex_ample.org/x", "http://ex_ample.org/x"),
        ("http://bücher.example/", "http://bücher.example/"),
    ],
)
def test_only_a_scheme_in_front_is_one(text: str, url: str):
    """`://` in a path or a query is no scheme; without one the URL is http."""
    assert parse_url(text).human_repr() == url.replace("%20", " ")


def test_bare_urls_have_no_secrets():
    """User, query and fragment are never shown."""
    assert bare_url(parse_url("example.org:81/a/b.tar?sig=hush#hush")) == "http://example.org:81/a/b.tar"
    assert bare_url(parse_url("https://u:hush@example.org/a")) == "https://example.org/a"


async def test_https_is_not_left_for_http(monkeypatch: pytest.MonkeyPatch, tls: tuple[int, Path]):
    """A redirect from https to http is refused, so that nobody on the way can swap the body."""
    port, authority = tls
    trusting = ssl.create_default_context(cafile=str(authority))
    monkeypatch.setattr("aiohttp.connector._SSL_CONTEXT_VERIFIED", trusting)
    fault = await fault_of(f"https://127.0.0.1:{port}/down")
    assert isinstance(fault, Permanent)
    assert "from https to http" in fault.message
