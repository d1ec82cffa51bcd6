"""Uploads: what a peer takes, when it says no early or stands still, and what a source may do."""

import asyncio
import hashlib
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from fake_registry import NO_PROXIES, FakeRegistry
from raw_peer import head_of, raw_peer
from yarl import URL

from harness.registry import PASSWORD, USERNAME, Registry
from imagejobd.model.egress import Egress
from imagejobd.model.errors import ErrorCode, Permanent, Temporary
from imagejobd.model.secrets import Credentials, Secret
from imagejobd.registry.client import RegistryClient
from imagejobd.registry.connection import Connection
from imagejobd.registry.hosts import RegistryTarget
from imagejobd.registry.http import redirect_target

BUILDER = Credentials(USERNAME, Secret(PASSWORD))
SCOPES = ("repository:team/app:pull,push",)
CHUNK = bytes(256 * 1024)
# More than the sockets of both sides hold between them.
LARGE = 256
# No shorter: a busy machine lets a peer wait for its turn, too.
IDLE_TIMEOUT_S = 1.0
LONGER_S = 1.3
TEST_MAX_S = 30


class Source:
    """A body of `count` chunks that says how far it was read and whether it was closed."""

    def __init__(self, count: int, *, pause_s: float = 0.0, error_at: int | None = None) -> None:
        self.size_bytes = count * len(CHUNK)
        self.read = 0
        self.is_closed = False
        self._count = count
        self._pause_s = pause_s
        self._error_at = error_at

    async def body(self) -> AsyncIterator[bytes]:
        try:
            for number in range(self._count):
                if number == self._error_at:
                    raise OSError("the spool is gone")
                await asyncio.sleep(self._pause_s)
                self.read += 1
                yield CHUNK
        finally:
            self.is_closed = True


async def send(
    connection: Connection, source: Source, target: str | URL = "/v2/x", size_bytes: int | None = None
) -> int:
    answer = await connection.send(
        "PUT", target, source.body(), size_bytes=size_bytes or source.size_bytes, scopes=SCOPES
    )
    return answer.status


async def upload_to(registry: Registry, connection: Connection, source: Source) -> tuple[int, str]:
    digest = f"sha256:{hashlib.sha256(bytes(source.size_bytes)).hexdigest()}"
    begun = await connection.ask("POST", "/v2/team/app/blobs/uploads/", scopes=SCOPES)
    target = URL(f"{begun.headers['Location']}&digest={digest}", encoded=True)
    return await send(connection, source, target), digest


@pytest.mark.parametrize("is_private", [False, True])
async def test_a_real_registry_takes_an_upload(
    registry: Registry, private_registry: Registry, client: RegistryClient, is_private: bool
) -> None:
    """What was sent can be read back, byte for byte."""
    peer = private_registry if is_private else registry
    connection = client.connect(RegistryTarget(host=peer.host, login=BUILDER if is_private else None))
    source = Source(20)
    status, digest = await upload_to(peer, connection, source)
    assert status == 201
    assert source.is_closed
    async with connection.stream(f"/v2/team/app/blobs/{digest}", scopes=SCOPES) as stream:
        assert sum([len(chunk) async for chunk in stream.chunks()]) == source.size_bytes


async def test_a_source_that_fails_commits_nothing(registry: Registry, client: RegistryClient) -> None:
    """The source's own error comes through unchanged, and the registry never has a whole upload."""
    connection = client.connect(RegistryTarget(host=registry.host))
    source = Source(9, error_at=8)
    with pytest.raises(OSError, match="the spool is gone"):
        await upload_to(registry, connection, source)
    digest = f"sha256:{hashlib.sha256(bytes(source.size_bytes)).hexdigest()}"
    assert (await connection.ask("HEAD", f"/v2/team/app/blobs/{digest}", scopes=SCOPES)).status == 404


async def test_length_and_type_are_always_said(fake: FakeRegistry, client: RegistryClient) -> None:
    """An upload is an octet stream of known length, whatever the caller writes."""
    sizes = []

    async def take(request: web.Request) -> web.Response:
        sizes.append(len(await request.read()))
        return web.Response(status=201)

    fake.on_manifest = take
    connection = client.connect(RegistryTarget(host=fake.host, scheme="http"))
    for count in (0, 3):
        source = Source(count)
        answer = await connection.send(
            "PATCH",
            "/v2/x",
            source.body(),
            size_bytes=source.size_bytes,
            scopes=SCOPES,
            headers={"content-type": "application/x-www-form-urlencoded", "Content-Range": "0-9"},
        )
        assert answer.status == 201
    assert sizes == [0, 3 * len(CHUNK)]
    for request, size in zip(fake.seen, sizes, strict=True):
        assert request.headers.getall("Content-Type") == ["application/octet-stream"]
        assert request.headers["Content-Length"] == str(size)
        assert "Transfer-Encoding" not in request.headers
        assert request.headers["Content-Range"] == "0-9"


async def test_an_early_refusal_ends_the_upload(client: RegistryClient) -> None:
    """A peer that says no at once is heard at once, and the source is not read on."""

    async def conduct(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
        await writer.drain()
        await asyncio.Event().wait()

    source = Source(LARGE * 10)
    async with raw_peer(conduct) as host, asyncio.timeout(TEST_MAX_S):
        assert await send(client.connect(RegistryTarget(host=host, scheme="http")), source) == 413
    assert source.read < LARGE
    assert source.is_closed


async def test_an_early_success_is_none(client: RegistryClient) -> None:
    """A peer that has not got all bytes cannot have stored them."""

    async def conduct(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        await asyncio.Event().wait()

    async with raw_peer(conduct) as host, asyncio.timeout(TEST_MAX_S):
        with pytest.raises(Temporary, match="before it had the whole upload"):
            await send(client.connect(RegistryTarget(host=host, scheme="http")), Source(LARGE))


async def test_a_peer_that_takes_nothing_is_given_up() -> None:
    """A registry that stops reading is temporary after the idle time-out."""

    async def conduct(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        await asyncio.Event().wait()

    source = Source(LARGE)
    async with raw_peer(conduct) as host, RegistryClient({}, Egress(), idle_timeout_s=IDLE_TIMEOUT_S) as client:
        async with asyncio.timeout(TEST_MAX_S):
            with pytest.raises(Temporary, match="takes no byte"):
                await send(client.connect(RegistryTarget(host=host, scheme="http")), source)
    assert source.is_closed


async def test_a_peer_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Having got everything, a registry has several idle time-outs to verify it, and no more."""
    monkeypatch.setattr("imagejobd.registry.body.ANSWER_PATIENCE", 2)

    async def conduct(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        await reader.readexactly(len(CHUNK))
        await asyncio.Event().wait()

    async with raw_peer(conduct) as host, RegistryClient({}, Egress(), idle_timeout_s=IDLE_TIMEOUT_S) as client:
        async with asyncio.timeout(TEST_MAX_S):
            with pytest.raises(Temporary, match=r"no answer in time \([2-9]"):
                await send(client.connect(RegistryTarget(host=host, scheme="http")), Source(1))


async def test_a_peer_that_verifies_for_long_is_waited_for(fake: FakeRegistry) -> None:
    """The answer may take longer than the idle time-out, because the blob is hashed first."""

    async def take(request: web.Request) -> web.Response:
        await request.read()
        await asyncio.sleep(LONGER_S)
        return web.Response(status=201)

    fake.on_manifest = take
    async with RegistryClient({}, Egress(), proxies=NO_PROXIES, idle_timeout_s=IDLE_TIMEOUT_S) as client:
        assert await send(client.connect(RegistryTarget(host=fake.host, scheme="http")), Source(1)) == 201


async def test_waiting_for_the_source_does_not_count(fake: FakeRegistry) -> None:
    """A slow source is not the target's fault."""

    async def take(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(status=201)

    fake.on_manifest = take
    async with RegistryClient({}, Egress(), proxies=NO_PROXIES, idle_timeout_s=IDLE_TIMEOUT_S) as client:
        connection = client.connect(RegistryTarget(host=fake.host, scheme="http"))
        assert await send(connection, Source(2, pause_s=LONGER_S)) == 201


async def test_a_slow_peer_is_not_a_stalled_one() -> None:
    """Whoever takes a few bytes now and then is waited for, however large the chunks are that it is given."""

    whole = bytes(LARGE * len(CHUNK))

    async def conduct(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        rest = pause = len(whole)
        while rest:
            rest -= len(await reader.read(len(CHUNK)))
            if rest < pause:
                pause -= len(whole) // 40
                await asyncio.sleep(LONGER_S / 40)
        writer.write(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()

    async def body() -> AsyncIterator[bytes]:
        yield whole

    async with raw_peer(conduct) as host, RegistryClient({}, Egress(), idle_timeout_s=IDLE_TIMEOUT_S) as client:
        connection = client.connect(RegistryTarget(host=host, scheme="http"))
        answer = await connection.send("PUT", "/v2/x", body(), size_bytes=len(whole), scopes=SCOPES)
    assert answer.status == 201


@pytest.mark.parametrize("difference", [-1, 1])
async def test_a_body_of_another_length_is_refused(fake: FakeRegistry, client: RegistryClient, difference: int) -> None:
    """A source that gives less, or more in its last chunk, is an error here and no upload there."""
    whole = []

    async def take(request: web.Request) -> web.Response:
        whole.append(await request.read())
        return web.Response(status=201)

    fake.on_manifest = take
    source = Source(3)
    with pytest.raises(Permanent, match="another length"):
        await send(
            client.connect(RegistryTarget(host=fake.host, scheme="http")),
            source,
            size_bytes=source.size_bytes + difference,
        )
    assert whole == []


@pytest.mark.parametrize("status", [307, 308])
async def test_a_redirected_upload_is_the_callers(fake: FakeRegistry, client: RegistryClient, status: int) -> None:
    """A body cannot be played twice: who can has the answer, and where to go."""
    fake.on_manifest = lambda _: web.Response(status=status, headers={"Location": "/elsewhere"})
    source = Source(1)
    connection = client.connect(RegistryTarget(host=fake.host, scheme="http"))
    answer = await connection.send("PUT", "/v2/x", source.body(), size_bytes=source.size_bytes, scopes=SCOPES)
    assert answer.status == status
    assert redirect_target(answer.url, answer.status, answer.headers) == URL(f"{fake.url}/elsewhere")
    assert [request.path for request in fake.seen] == ["/v2/x"]


@pytest.mark.parametrize("status", [301, 302, 303])
async def test_an_upload_is_not_turned_into_a_read(fake: FakeRegistry, client: RegistryClient, status: int) -> None:
    """Redirects that drop method and body are no way for an upload."""
    fake.on_manifest = lambda _: web.Response(status=status, headers={"Location": "/elsewhere"})
    with pytest.raises(Permanent, match="redirects an upload") as refused:
        await send(client.connect(RegistryTarget(host=fake.host, scheme="http")), Source(1))
    assert refused.value.code is ErrorCode.REGISTRY_UNAVAILABLE


async def test_a_foreign_location_gets_no_login(
    private_registry: Registry, fake: FakeRegistry, client: RegistryClient
) -> None:
    """An upload to storage of another origin carries no login of the registry's."""
    connection = client.connect(RegistryTarget(host=private_registry.host, login=BUILDER))
    assert (await connection.ask("GET", "/v2/", scopes=())).status == 200
    fake.on_manifest = lambda _: web.Response(status=201)
    source = Source(0)
    assert await send(connection, source, URL(f"{fake.url}/v2/x?signature=1"), size_bytes=0) == 201
    assert "Authorization" not in fake.seen[0].headers


async def test_a_cancelled_upload_closes_its_source(client: RegistryClient) -> None:
    """Cancelling ends the upload and the reading of its source, at once."""
    reading = asyncio.Event()

    async def conduct(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        reading.set()
        await asyncio.Event().wait()

    source = Source(LARGE)
    async with raw_peer(conduct) as host:
        task = asyncio.create_task(send(client.connect(RegistryTarget(host=host, scheme="http")), source))
        await reading.wait()
        task.cancel()
        async with asyncio.timeout(TEST_MAX_S):
            with pytest.raises(asyncio.CancelledError):
                await task
    assert source.is_closed


async def test_a_source_is_closed_where_nothing_was_sent(client: RegistryClient) -> None:
    """A registry that cannot be reached leaves no source open."""
    source = Source(1)
    body = source.body()
    with pytest.raises(Temporary):
        await client.connect(RegistryTarget(host="127.0.0.1:9", scheme="http")).send(
            "PUT", "/v2/x", body, size_bytes=source.size_bytes, scopes=SCOPES
        )
    assert source.read == 0
    with pytest.raises(StopAsyncIteration):
        await anext(body)
