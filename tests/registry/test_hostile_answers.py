"""Whatever a peer answers, what leaves a connection is an answer or a fault whose words can be printed."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fake_registry import NO_PROXIES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moved_clock import MovedClock
from raw_peer import head_of, raw_peer

from imagejobd.model.egress import Egress
from imagejobd.model.errors import Fault
from imagejobd.model.resolver import Address, Resolver
from imagejobd.model.secrets import Credentials, Secret
from imagejobd.registry.client import RegistryClient
from imagejobd.registry.connection import Connection
from imagejobd.registry.hosts import RegistryHost, RegistryTarget, TokenRequest

SCOPES = ("repository:team/app:pull,push",)
BUILDER = Credentials("builder", Secret("correct-horse"))
BODY = b"0123456789"

BAD_URLS = [
    b"http://a..b/",
    b"http://.a/",
    b"http://" + b"a" * 64 + b".test/",
    b"http://" + b"a." * 200 + b"b/",
    b"http://[::1",
    b"http://[v1.a]/",
    b"http://a:99999/",
    b"http://x:0/",
    b"http://xn--a/",
    "http://①②⑦.0.0.1:1/".encode(),
    "http://ａ。b/x".encode(),
    b"http://\xff/",
    b"http://a%00b/",
    b"//",
    b"?",
    b"%",
    b"\x1b[31m",
    b"ftp://a/",
    b"http://{host}/v2/x",
    b"http://user:word@{host}/v2/x",
    b"/v2/\xff\xfe",
    b"/v2/x#\xc3\xa9",
]
CHALLENGES = [
    b"Basic",
    b"Bearer",
    b'Bearer realm="http://{host}/token",service="\xff\xfe"',
    b'Bearer realm="http://{host}/token",service="\x1b[31m"',
    b'Bearer realm="http://{host}/t?\xff"',
    b'Basic realm="x", Bearer realm="http://a..b/"',
    b"Negotiate \xff",
    *(b'Bearer realm="' + url + b'"' for url in BAD_URLS),
]
DEEP = b"[" * 5000 + b"]" * 5000
BODIES = [
    b"",
    b'{"token":"abc"}',
    b'{"token":"\\ud800"}',
    b'{"token":"a","issued_at":' + DEEP + b"}",
    b'{"token":"a","expires_in":1e400,"issued_at":"0001-01-01T00:00:00+23:59"}',
    b'{"errors":' + DEEP + b"}",
    b'{"errors":[{"code":"\\u001b[31m","message":"\\u0000\\u202e"}]}',
    b"\xff\xfe",
]
DATES = [b"1e9", b"-1", b"9" * 400, b"Mon, 99 Foo 99999 99:99:99 -9999", b"Sun, 06 Nov 1994 08:49:37 -0000", b"\xff"]
WARNINGS = [b'299 - "\xff\x1b[31m"', b'299 - "' + b'\\"' * 600 + b'"', b'299 - "\\']

junk = st.binary(max_size=40).map(lambda value: value.replace(b"\r", b"").replace(b"\n", b""))
headers = st.one_of(
    st.tuples(st.just(b"Location"), st.sampled_from(BAD_URLS) | junk),
    st.tuples(st.just(b"WWW-Authenticate"), st.sampled_from(CHALLENGES) | junk),
    st.tuples(st.just(b"Retry-After"), st.sampled_from(DATES) | junk),
    st.tuples(st.just(b"Warning"), st.sampled_from(WARNINGS) | junk),
    st.tuples(st.just(b"Content-Type"), junk),
    st.tuples(st.just(b"Set-Cookie"), junk),
    st.tuples(st.just(b"Content-Encoding"), st.sampled_from([b"gzip", b"br", b"x"])),
    st.tuples(junk, junk),
)
statuses = st.sampled_from([b"200", b"201", b"307", b"401", b"404", b"429", b"500", b"503"]) | st.sampled_from(
    [
        b"100",
        b"101",
        b"103",
        b"204",
        b"206",
        b"301",
        b"304",
        b"403",
        b"407",
        b"408",
        b"416",
        b"999",
        b"0",
        b"-1",
        b"2e2",
    ]
)
framings = st.sampled_from(
    [b"Content-Length: %d\r\n\r\n"] * 4
    + [b"\r\n", b"Content-Length: 1\r\n\r\n", b"Content-Length: 99\r\n\r\n", b"Content-Length: \xff\r\n\r\n"]
    + [
        b"Transfer-Encoding: chunked\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n5\r\n",
        b"Connection: upgrade\r\n\r\n",
    ]
)


@st.composite
def answers(draw: Any) -> bytes:
    if draw(st.integers(0, 15)) == 0:
        return draw(st.binary(max_size=100))
    lines = b"".join(name + b": " + value + b"\r\n" for name, value in draw(st.lists(headers, max_size=3)))
    body = draw(st.sampled_from(BODIES) | st.binary(max_size=30))
    framing = draw(framings)
    framing = framing % len(body) if b"%d" in framing else framing
    return b"HTTP/1.1 " + draw(statuses) + b" X\r\n" + lines + framing + body


async def once(content: bytes) -> AsyncIterator[bytes]:
    yield content


def no_address(name: str, family: int) -> list[Address]:
    """What a resolver does with names that encode to none, without asking anybody."""
    raise UnicodeError(name)


async def ask(connection: Connection) -> None:
    answer = await connection.ask("GET", "/v2/x", scopes=SCOPES)
    assert connection.refusal(answer, what="manifest of app:1").message.isprintable()


async def put(connection: Connection) -> None:
    await connection.ask("PUT", "/v2/x", scopes=SCOPES, content=BODY)


async def stream(connection: Connection) -> None:
    async with connection.stream("/v2/x", scopes=SCOPES) as response:
        assert response.url.host == "127.0.0.1"
        async for _ in response.chunks():
            pass


async def send(connection: Connection) -> None:
    await connection.send("PUT", "/v2/x", once(BODY), size_bytes=len(BODY), scopes=SCOPES)


async def act_upon(script: list[bytes], action: Any, login: str) -> list[str]:
    """Let a peer answer with `script`, over and over; the words that were told."""
    told: list[str] = []
    asked = 0

    async def conduct(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        await head_of(reader)
        writer.write(script[asked % len(script)].replace(b"{host}", host.encode()))
        asked += 1
        writer.write_eof()
        await writer.drain()
        await reader.read()
        writer.close()

    async with raw_peer(conduct) as host:
        names = Resolver(no_address)
        logins = {"none": None, "basic": BUILDER, "token": TokenRequest(url=Secret(f"http://{host}/token"))}
        timing = MovedClock().timing
        # Who is down is found out in the configured way: this peer would wait for the rest of a TLS hello.
        hosts = {host: RegistryHost(plain_http=True)}
        async with RegistryClient(
            hosts, Egress(), proxies=NO_PROXIES, timing=timing, names=names, idle_timeout_s=5
        ) as client:
            site = RegistryTarget(host=host, scheme="http", login=logins[login])
            try:
                async with asyncio.timeout(20):
                    await action(client.connect(site, warn=told.append))
            except Fault as fault:
                told.append(fault.message)
    return told


@pytest.mark.parametrize("action", [ask, put, stream, send])
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(script=st.lists(answers(), min_size=1, max_size=4), login=st.sampled_from(["none", "basic", "token"]))
def test_only_faults_leave_a_connection(action: Any, script: list[bytes], login: str) -> None:
    """No answer, challenge, location or body makes anything else than an answer or a fault."""
    for told in asyncio.run(act_upon(script, action, login)):
        assert told.isprintable()


REDIRECT = b"HTTP/1.1 307 X\r\nContent-Length: 0\r\nLocation: %s\r\n\r\n"
LOGIN = b"HTTP/1.1 401 X\r\nContent-Length: 0\r\nWWW-Authenticate: %s\r\n\r\n"


@pytest.mark.parametrize("url", BAD_URLS)
@pytest.mark.parametrize("action", [ask, stream])
def test_no_location_escapes(action: Any, url: bytes) -> None:
    """A redirect to what cannot be connected to is a fault."""
    told = asyncio.run(act_upon([REDIRECT.replace(b"%s", url)], action, "basic"))
    assert told
    assert all(text.isprintable() for text in told)


@pytest.mark.parametrize("challenge", CHALLENGES)
@pytest.mark.parametrize("body", BODIES)
def test_no_login_escapes(challenge: bytes, body: bytes) -> None:
    """Neither a challenge nor what its token server answers makes anything but a fault."""
    token = b"HTTP/1.1 200 X\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    told = asyncio.run(act_upon([LOGIN.replace(b"%s", challenge), token], ask, "basic"))
    assert all(text.isprintable() for text in told)
