"""One job's connection: endpoints, retries, redirects, warnings, and what it never says."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from fake_registry import NO_PROXIES, FakeRegistry
from moved_clock import MovedClock
from raw_peer import head_of, raw_peer
from yarl import URL

from harness.registry import PASSWORD, USERNAME, Registry
from imagejobd.model.egress import Egress, EgressSettings
from imagejobd.model.errors import ErrorCode, Permanent, Temporary
from imagejobd.model.job import Principal
from imagejobd.model.secrets import Credentials, Secret
from imagejobd.registry.client import RegistryClient
from imagejobd.registry.connection import Connection
from imagejobd.registry.hosts import RegistryTarget
from imagejobd.registry.limits import TRIES_MAX

BUILDER = Credentials(USERNAME, Secret(PASSWORD))
SCOPES = ("repository:team/app:pull",)
BLOB = b"0123456789" * 100_000


async def read(connection: Connection, target: str | URL, **headers: str) -> tuple[int, bytes]:
    async with connection.stream(target, scopes=SCOPES, headers=headers) as stream:
        return stream.status, b"".join([chunk async for chunk in stream.chunks()])


def put_blob(registry: Registry) -> str:
    """A small blob of a real image; its path."""
    digest = registry.put_image("connection/app", "1")
    return f"/v2/connection/app/manifests/{digest}"


@pytest.mark.parametrize("is_private", [False, True])
async def test_real_registries_are_asked_and_read(
    registry: Registry, private_registry: Registry, client: RegistryClient, is_private: bool
) -> None:
    """Asking and streaming give the same bytes, with and without a login, over whatever loopback speaks."""
    peer = private_registry if is_private else registry
    path = put_blob(peer)
    connection = client.connect(RegistryTarget(host=peer.host, login=BUILDER if is_private else None))
    accept = {"Accept": "application/vnd.docker.distribution.manifest.v2+json"}
    status, body = await read(connection, path, **accept)  # the first request is a stream: it finds the endpoint
    assert status == 200
    answer = await connection.ask("GET", path, scopes=SCOPES, headers=accept)
    assert (answer.status, answer.body) == (200, body)


async def test_a_known_login_is_sent_at_once(private_registry: Registry, fake: FakeRegistry) -> None:
    """After the first challenge no request is wasted on another one."""
    refusals = []

    def on_manifest(request: web.Request) -> web.StreamResponse:
        if "Authorization" not in request.headers:
            refusals.append(request)
            return web.Response(status=401, headers={"WWW-Authenticate": "Basic realm=x"})
        return web.Response(body=b"{}")

    fake.on_manifest = on_manifest
    async with RegistryClient({}, Egress(), proxies=NO_PROXIES) as client:
        connection = client.connect(RegistryTarget(host=fake.host, login=BUILDER))
        for _ in range(3):
            assert (await connection.ask("GET", "/v2/x", scopes=SCOPES)).status == 200
        assert (await read(connection, "/v2/y"))[0] == 200
    assert len(refusals) == 1


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503])
async def test_what_stays_busy_is_returned_after_the_tries(
    fake: FakeRegistry, connection: Connection, time: MovedClock, status: int
) -> None:
    """A request is tried a few times with growing waits; then its last answer is the caller's."""
    fake.on_manifest = lambda _: web.Response(status=status, text="last")
    answer = await connection.ask("GET", "/v2/x", scopes=SCOPES)
    assert (answer.status, answer.body) == (status, b"last")
    assert len(fake.seen) == TRIES_MAX
    assert len(time.slept) == TRIES_MAX - 1
    assert time.slept == sorted(time.slept)


@pytest.mark.parametrize("code", ["MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN"])
async def test_missing_content_in_a_500_is_no_moment(fake: FakeRegistry, connection: Connection, code: str) -> None:
    """docker-registry's 500 for a layer that is not there is an answer, not a failure to outlive."""
    fake.on_manifest = lambda _: web.json_response({"errors": [{"code": code}]}, status=500)
    answer = await connection.ask("PUT", "/v2/x", scopes=SCOPES, content=b"{}")
    assert answer.status == 500
    assert len(fake.seen) == 1


@pytest.mark.parametrize("status", [400, 404, 501])
async def test_what_time_does_not_help_is_not_retried(fake: FakeRegistry, connection: Connection, status: int) -> None:
    """A refusal is returned at once."""
    fake.on_manifest = lambda _: web.Response(status=status)
    assert (await connection.ask("GET", "/v2/x", scopes=SCOPES)).status == status
    assert len(fake.seen) == 1


async def test_network_faults_are_retried(client: RegistryClient) -> None:
    """A connection that breaks is tried again, with the same content."""
    heard = []

    async def conduct(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await head_of(reader) + await reader.readexactly(4))
        if len(heard) == 3:
            writer.write(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()

    async with raw_peer(conduct) as host:
        connection = client.connect(RegistryTarget(host=host, scheme="http"))
        answer = await connection.ask("PUT", "/v2/x", scopes=SCOPES, content=b"body")
    assert answer.status == 201
    assert [request[-4:] for request in heard] == [b"body"] * 3


async def test_a_cut_stream_is_temporary(client: RegistryClient) -> None:
    """A body that ends too early is not the end of the body."""

    async def conduct(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345")
        await writer.drain()
        writer.close()

    async with raw_peer(conduct) as host:
        with pytest.raises(Temporary, match=host) as cut:
            await read(client.connect(RegistryTarget(host=host, scheme="http")), "/v2/x")
    assert cut.value.code is ErrorCode.REGISTRY_UNAVAILABLE


async def test_a_stalled_stream_is_temporary() -> None:
    """A body that stands still is given up after the idle time-out."""

    async def conduct(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345")
        await asyncio.Event().wait()

    async with raw_peer(conduct) as host, RegistryClient({}, Egress(), idle_timeout_s=1) as client:
        async with asyncio.timeout(20):
            with pytest.raises(Temporary, match="no answer in time"):
                await read(client.connect(RegistryTarget(host=host, scheme="http")), "/v2/x")


@pytest.mark.parametrize("is_known", [False, True])
async def test_informational_answers_end(is_known: bool) -> None:
    """A peer that says "wait" for ever gets no more than a few of them, at once or one by one."""
    said = 0

    async def conduct(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal said
        await head_of(reader)
        while True:
            writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n" * (1000 if is_known else 1))
            said += 1
            await writer.drain()
            await asyncio.sleep(0)

    clock = MovedClock()
    async with raw_peer(conduct) as host, RegistryClient({}, Egress(), timing=clock.timing) as client:
        async with asyncio.timeout(10):
            with pytest.raises(Temporary, match="not HTTP as it should be"):
                await client.connect(RegistryTarget(host=host, scheme="http")).ask("GET", "/v2/x", scopes=SCOPES)


@pytest.mark.parametrize("drip", [b"HTTP/1.1 103 Early Hints\r\n\r\n", b"X"])
async def test_a_header_has_a_time_limit(drip: bytes) -> None:
    """Neither informational answers nor single bytes prolong the time in which the answer's header is to come."""

    async def conduct(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        if drip == b"X":
            writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(drip)
            await writer.drain()
            await asyncio.sleep(0.1)

    clock = MovedClock()
    async with (
        raw_peer(conduct) as host,
        RegistryClient({}, Egress(), timing=clock.timing, idle_timeout_s=1) as client,
    ):
        async with asyncio.timeout(40):
            with pytest.raises(Temporary, match="no answer in time"):
                await client.connect(RegistryTarget(host=host, scheme="http")).ask("GET", "/v2/x", scopes=SCOPES)


@pytest.mark.parametrize("content", [b"", b"{}"])
@pytest.mark.parametrize("drop", [b"", b"x"])
async def test_a_small_body_has_a_time_limit(monkeypatch: pytest.MonkeyPatch, content: bytes, drop: bytes) -> None:
    """An answer that stalls behind its header, or comes drop by drop, is given up, whatever the request was."""
    monkeypatch.setattr("imagejobd.registry.http.ANSWER_IDLE_TIMEOUTS_MAX", 2)

    async def conduct(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 201 Created\r\nContent-Length: 1000\r\n\r\n")
        while True:
            writer.write(drop)
            await writer.drain()
            await asyncio.sleep(0.1)

    async with raw_peer(conduct) as host, RegistryClient({}, Egress(), idle_timeout_s=1) as client:
        connection = client.connect(RegistryTarget(host=host, scheme="http"))
        async with asyncio.timeout(40):
            with pytest.raises(Temporary, match="no answer in time"):
                await connection.ask("PUT", "/v2/x", scopes=SCOPES, content=content, is_retried=False)


async def test_a_few_informational_answers_are_passed_over(client: RegistryClient) -> None:
    """They are no answer, and do no harm; after the header the idle time-out begins anew."""

    async def conduct(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + b"HTTP/1.1 102 Processing\r\nX: y\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.5)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n")
        for letter in b"body":
            await writer.drain()
            await asyncio.sleep(0.5)
            writer.write(bytes([letter]))
        await writer.drain()

    async with raw_peer(conduct) as host, RegistryClient({}, Egress(), idle_timeout_s=2) as hasty:
        assert await read(hasty.connect(RegistryTarget(host=host, scheme="http")), "/v2/x") == (200, b"body")


async def test_what_comes_unasked_is_no_answer(client: RegistryClient) -> None:
    """A second answer to one request is not kept for the next one, nor is the connection."""
    connections = 0

    async def conduct(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}HTTP/1.1 418 X\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        await reader.read()

    async with raw_peer(conduct) as host:
        connection = client.connect(RegistryTarget(host=host, scheme="http"))
        for _ in range(3):
            assert (await connection.ask("GET", "/v2/x", scopes=SCOPES)).status == 200
    assert connections == 3


async def test_a_redirects_body_is_not_waited_for(fake: FakeRegistry) -> None:
    """Where to go is in the header: a registry that forgets the body it announced costs no time."""
    fake.on_manifest = lambda _: web.Response(body=b"there")

    async def conduct(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        location = f"{fake.url}/elsewhere".encode()
        writer.write(b"HTTP/1.1 307 X\r\nContent-Length: 10\r\nLocation: " + location + b"\r\n\r\n")
        await writer.drain()
        await reader.read()

    async with raw_peer(conduct) as host, RegistryClient({}, Egress(), idle_timeout_s=60) as client:
        async with asyncio.timeout(5):
            assert await read(client.connect(RegistryTarget(host=host, scheme="http")), "/v2/x") == (200, b"there")


async def test_a_slow_reader_is_no_stalled_registry(fake: FakeRegistry) -> None:
    """The idle time-out is about the peer: who reads slowly loses nothing."""
    fake.on_manifest = lambda _: web.Response(body=BLOB * 4)
    async with RegistryClient({}, Egress(), idle_timeout_s=1) as client:
        connection = client.connect(RegistryTarget(host=fake.host, scheme="http"))
        async with connection.stream("/v2/x", scopes=SCOPES) as stream:
            sizes: list[int] = []
            async for chunk in stream.chunks():
                if len(sizes) < 2:
                    await asyncio.sleep(1.3)
                sizes.append(len(chunk))
    assert sum(sizes) == len(BLOB) * 4


async def test_what_the_reader_raises_is_its_own(fake: FakeRegistry, connection: Connection) -> None:
    """An error of the disk that a body is written to is no error of the registry."""
    fake.on_manifest = lambda _: web.Response(body=BLOB)
    with pytest.raises(OSError, match="disk full"):
        async with connection.stream("/v2/x", scopes=SCOPES):
            raise OSError("disk full")


async def test_ranges_go_through_redirects_unchanged(fake: FakeRegistry, connection: Connection) -> None:
    """Storage that a registry redirects to gets the range, the letters of its signed address, and no login."""
    location = "/elsewhere?sig=a%2Bb%7e%2F&x=%41"

    def on_manifest(request: web.Request) -> web.StreamResponse:
        if request.path == "/elsewhere":
            return web.Response(status=206, body=b"part")
        return web.Response(status=307, headers={"Location": location})

    fake.on_manifest = on_manifest
    assert await read(connection, "/v2/x", Range="bytes=5-") == (206, b"part")
    assert fake.seen[-1].headers["Range"] == "bytes=5-"
    assert fake.seen[-1].raw_path == location


@pytest.mark.parametrize("location", ["http://user:secret@{}/elsewhere", "//user:secret@{}/elsewhere"])
async def test_a_login_in_a_redirect_is_not_used(fake: FakeRegistry, connection: Connection, location: str) -> None:
    """What a registry writes before the @ is not sent as anybody's login."""
    fake.on_manifest = lambda request: (
        web.Response(body=b"x")
        if request.path == "/elsewhere"
        else web.Response(status=302, headers={"Location": location.format(fake.host)})
    )
    assert (await read(connection, "/v2/x"))[0] == 200
    assert "Authorization" not in fake.seen[-1].headers


async def test_a_foreign_address_gets_no_login(
    private_registry: Registry, fake: FakeRegistry, client: RegistryClient
) -> None:
    """An upload's location on another host is followed without the registry's login."""
    connection = client.connect(RegistryTarget(host=private_registry.host, login=BUILDER))
    assert (await connection.ask("GET", "/v2/", scopes=())).status == 200
    fake.on_manifest = lambda _: web.Response(status=401, headers={"WWW-Authenticate": "Basic realm=x"})
    answer = await connection.ask("GET", URL(f"{fake.url}/v2/x"), scopes=SCOPES)
    assert answer.status == 401
    assert ["Authorization" in request.headers for request in fake.seen] == [False]


async def test_egress_holds_for_a_foreign_address(fake: FakeRegistry) -> None:
    """A location is an address that a peer chose: it is checked as all are."""
    async with RegistryClient({}, Egress(EgressSettings(deny=("127.0.0.2/32",))), proxies=NO_PROXIES) as client:
        connection = client.connect(RegistryTarget(host=fake.host, scheme="http"))
        foreign = URL(fake.url.replace("127.0.0.1", "127.0.0.2"))

        async def body() -> AsyncIterator[bytes]:
            yield b"x"

        with pytest.raises(Permanent) as denied:
            await connection.send("PUT", foreign / "v2/x", body(), size_bytes=1, scopes=SCOPES)
    assert denied.value.code is ErrorCode.EGRESS
    assert fake.seen == []


async def test_a_location_without_tls_behind_a_tls_proxy(tls_fake: FakeRegistry, client: RegistryClient) -> None:
    """A registry that does not know of the TLS before it is reached with TLS all the same; another host is not."""
    connection = client.connect(RegistryTarget(host=tls_fake.host, scheme="https"))
    tls_fake.on_manifest = lambda _: web.Response(status=202)
    location = URL(f"http://{tls_fake.host}/v2/x?_state=a%3Db", encoded=True)
    assert (await connection.ask("GET", location, scopes=SCOPES)).status == 202
    assert tls_fake.seen[0].raw_path == "/v2/x?_state=a%3Db"
    with pytest.raises(Permanent, match="from TLS to plain HTTP"):
        await connection.ask("GET", URL("http://localhost:1/v2/x"), scopes=SCOPES)


@pytest.mark.parametrize("target", ["ftp://host/x", "http://", "no/slash", "http://[::1/"])
async def test_addresses_that_are_none(connection: Connection, fake: FakeRegistry, target: str) -> None:
    """What a registry names is an http(s) URL or a path, or is refused."""
    with pytest.raises(Permanent, match="no http"):
        await connection.ask("GET", target, scopes=SCOPES)
    assert fake.seen == []


async def test_warnings_are_told_once(fake: FakeRegistry, client: RegistryClient) -> None:
    """Each text that a registry has for people reaches them once; other warnings are none of their business."""
    told: list[str] = []
    connection = client.connect(RegistryTarget(host=fake.host), warn=told.append)
    fake.on_manifest = lambda _: web.Response(
        headers=[("Warning", '299 - "going \\"away\\""'), ("Warning", '110 - "stale"'), ("Warning", '299 - "later"')]
    )
    for _ in range(2):
        await connection.ask("GET", "/v2/x", scopes=SCOPES)
    assert told == ['going "away"', "later"]


async def test_warnings_show_no_secret_and_steer_no_terminal(fake: FakeRegistry, client: RegistryClient) -> None:
    """An echoed login is masked before the text is cut, and what cannot be printed is replaced."""
    told: list[str] = []

    def on_manifest(request: web.Request) -> web.StreamResponse:
        if "Authorization" not in request.headers:
            return web.Response(status=401, headers={"WWW-Authenticate": "Basic realm=x"})
        return web.Response(headers={"Warning": f'299 - "{"y" * 246}{PASSWORD}"'})

    fake.on_manifest = on_manifest
    await client.connect(RegistryTarget(host=fake.host, login=BUILDER), warn=told.append).ask(
        "GET", "/v2/x", scopes=SCOPES
    )
    assert len(told) == 1
    assert PASSWORD[:5] not in told[0]

    async def conduct(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 0\r\nWarning: 299 - "bad \xff\x80 text"\r\n\r\n')
        await writer.drain()

    async with raw_peer(conduct) as host:
        await client.connect(RegistryTarget(host=host, scheme="http"), warn=told.append).ask(
            "GET", "/v2/x", scopes=SCOPES
        )
    assert len(told) == 2
    assert told[1].isprintable()


async def test_a_flood_of_warnings_is_bounded(fake: FakeRegistry, client: RegistryClient) -> None:
    """A hostile registry cannot fill a log with warnings."""
    told: list[str] = []
    connection = client.connect(RegistryTarget(host=fake.host), warn=told.append)
    fake.on_manifest = lambda _: web.Response(headers={"Warning": f'299 - "{len(fake.seen)}{"x" * 500}"'})
    for _ in range(30):
        await connection.ask("GET", "/v2/x", scopes=SCOPES)
    assert len(told) == 20
    assert max(map(len, told)) <= 256


async def test_echoed_secrets_are_masked(fake: FakeRegistry, client: RegistryClient) -> None:
    """A registry that repeats the login in its error does not get it into a message."""

    def on_manifest(request: web.Request) -> web.StreamResponse:
        login = request.headers.get("Authorization")
        if login is None:
            return web.Response(status=401, headers={"WWW-Authenticate": "Basic realm=x"})
        return web.json_response({"errors": [{"code": "DENIED", "message": f"{login} {PASSWORD}"}]}, status=403)

    fake.on_manifest = on_manifest
    connection = client.connect(RegistryTarget(host=fake.host, login=BUILDER))
    answer = await connection.ask("GET", "/v2/x", scopes=SCOPES)
    fault = connection.refusal(answer, what="manifest of app:1")
    assert fault.code is ErrorCode.DENIED
    assert PASSWORD not in fault.message
    assert fake.seen[-1].headers["Authorization"].removeprefix("Basic ") not in fault.message
    assert repr(connection) == f"Connection({fake.host!r})"


def test_a_registry_is_one_within_a_tenant(client: RegistryClient) -> None:
    """Whatever the way there and the login, it is the same registry; of another tenant it is not."""

    def identity(host: str = "r.example", tenant: str = "1", **site: object) -> object:
        target = RegistryTarget(host=host, principal=Principal(tenant), **site)  # type: ignore[arg-type]
        return client.connect(target).identity

    assert identity() == identity(login=BUILDER) == identity(scheme="http", verify_tls=False)
    assert len({identity(), identity("other.example"), identity(tenant="2")}) == 3
