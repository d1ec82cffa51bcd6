"""`Expect: 100-continue`: a body is asked for once somebody wants to read it, and never before its sender is known."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from bare_app import MINIMAL, BareApp, bare_app
from calls import raw_request
from signing import bearer, by_secret, token

EXPECT = {"Expect": "100-continue", "Content-Type": "application/json"}
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
OWNER = bearer(token())
PATHS = ["/api/v1/build", "/api/v1/job", "/api/distribute/image", "/api/v2/jobs", "/run"]
JOB = json.dumps(MINIMAL).encode()
FORM = b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nFROM scratch\n\r\n--b--\r\n'


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[BareApp]:
    async with bare_app(tmp_path, auth=by_secret(tmp_path, required=True)) as app:
        yield app


async def first_line(app: BareApp, request: bytes) -> bytes:
    """How the answer begins to a client that has sent `request` and waits."""
    reader, writer = await asyncio.open_connection("127.0.0.1", app.port)
    try:
        writer.write(request)
        return await asyncio.wait_for(reader.readline(), 5)
    finally:
        writer.close()


async def conversation(app: BareApp, head: bytes, body: bytes) -> tuple[bytes, bytes]:
    """What a client is told after its head, and after its body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", app.port)
    try:
        writer.write(head)
        told = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        writer.write(body)
        return told, await asyncio.wait_for(reader.readline(), 5)
    finally:
        writer.close()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        (bearer("x.y.z"), 401),
        (OWNER | {"Origin": "https://evil.example"}, 403),
        (OWNER | {"Host": "evil.example"}, 403),
    ],
    ids=["no token", "bad token", "page", "rebound name"],
)
async def test_strangers_are_not_asked_for_a_body(
    app: BareApp, path: str, headers: dict[str, str], status: int
) -> None:
    """Who is refused for who they are is told so at once, whatever they expect."""
    for expectation in ("100-continue", "100-Continue", "the impossible"):
        sent = EXPECT | {"Expect": expectation} | headers
        assert (await first_line(app, raw_request(path, sent, length=1000))).startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.parametrize("expectation", ["100-continue", "the impossible", "\x80"])
@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/no/such/path", 404),
        ("POST", "/", 405),
        ("PUT", "/api/v2/jobs", 405),
        ("POST", "/images/1", 405),
        ("OPTIONS", "*", 404),
        ("GET", "/api/v2/jobs", 200),
    ],
)
async def test_nowhere_a_body_is_asked_for(app: BareApp, method: str, path: str, status: int, expectation: str) -> None:
    """Where no body is read none is asked for, and an expectation changes nothing about the answer."""
    head = raw_request(path, OWNER | {"Expect": expectation}, method=method, length=0 if method == "GET" else 1000)
    assert (await first_line(app, head)).startswith(b"HTTP/1.1 %d " % status)
    stranger = raw_request(path, {"Expect": expectation}, method=method, length=1000)
    assert (await first_line(app, stranger)).startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize("path", [path for path in PATHS if path != "/run"])
async def test_what_is_too_large_is_not_asked_for(app: BareApp, path: str) -> None:
    """413 for a Content-Length beyond the bound."""
    assert (await first_line(app, raw_request(path, EXPECT | OWNER, length=10**10))).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    ("path", "content_type", "body", "status"),
    [
        ("/api/v2/jobs", "application/json", JOB, 201),
        ("/run", "multipart/form-data; boundary=b", FORM, 200),
        ("/run", "multipart/form-data; boundary=a; boundary=b", FORM, 200),
        ("/api/v1/job", "application/json", b"{}", 400),
    ],
)
async def test_a_body_is_asked_for(app: BareApp, path: str, content_type: str, body: bytes, status: int) -> None:
    """Who may send is told to go on, once, and then answered; a body that came unasked is taken."""
    head = raw_request(path, OWNER | EXPECT | {"Content-Type": content_type}, length=len(body))
    told, answer = await conversation(app, head, body)
    assert told == CONTINUE
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    *_, last = [line async for line in answered(app, head + body)]
    assert last.startswith(b"HTTP/1.1 %d " % status)


async def answered(app: BareApp, request: bytes) -> AsyncIterator[bytes]:
    """The status lines that come, to the final one."""
    reader, writer = await asyncio.open_connection("127.0.0.1", app.port)
    writer.write(request)
    async with asyncio.timeout(5):
        while (line := await reader.readline()).startswith(b"HTTP/1.1 100 "):
            yield line
            await reader.readline()
    writer.close()
    yield line


async def test_who_knows_no_such_answer_gets_none(app: BareApp) -> None:
    """To HTTP/1.0, and to expectations that nobody has heard of, there is but one answer."""
    for version, expectation in ((b"HTTP/1.0", "100-continue"), (b"HTTP/1.1", "the impossible"), (b"HTTP/1.1", "")):
        head = raw_request("/api/v2/jobs", OWNER | EXPECT | {"Expect": expectation}, length=len(JOB))
        reader, writer = await asyncio.open_connection("127.0.0.1", app.port)
        writer.write(head.replace(b"HTTP/1.1", version, 1))
        await asyncio.sleep(0.1)
        writer.write(JOB)
        assert b" 201 Created" in await asyncio.wait_for(reader.readline(), 5)
        writer.close()
