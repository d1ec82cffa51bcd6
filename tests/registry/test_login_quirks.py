"""Registries that hide, mumble or lead nowhere: whoever has a login gets in, and nobody else hears of it."""

import asyncio
from collections.abc import Callable

import pytest
from aiohttp import web
from fake_registry import FakeRegistry
from repositories import reader

from imagejobd.model.egress import Egress, EgressSettings
from imagejobd.model.errors import ErrorCode, Fault, Permanent, Temporary
from imagejobd.model.secrets import Credentials, Secret
from imagejobd.registry.client import RegistryClient
from imagejobd.registry.connection import Connection
from imagejobd.registry.hosts import RegistryTarget

BUILDER = Credentials("builder", Secret("correct-horse"))
PULL = ("repository:team/app:pull",)
BASIC = {"WWW-Authenticate": 'Basic realm="x"'}
Serve = Callable[[web.Request], web.StreamResponse]


def private(otherwise: int, *, ping: int = 200, headers: dict[str, str] | None = None) -> Serve:
    """A registry whose content is for the password; the others are answered `otherwise`, at the ping with `ping`."""

    def serve(request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization", "").startswith("Basic "):
            return web.Response(body=b"{}")
        return web.Response(status=ping if request.path == "/v2/" else otherwise, headers=headers)

    return serve


def paths(fake: FakeRegistry) -> list[str]:
    return [request.path for request in fake.seen]


@pytest.fixture
def builder(client: RegistryClient, fake: FakeRegistry) -> Connection:
    """A connection to `fake` by somebody with a user name and password."""
    return client.connect(RegistryTarget(host=fake.host, scheme="http", login=BUILDER))


async def ask(connection: Connection, method: str = "GET", content: bytes = b"") -> int:
    return (await connection.ask(method, "/v2/x", scopes=PULL, content=content)).status


@pytest.mark.parametrize("hides_as", [403, 404])
async def test_the_ping_says_how_to_log_in_where_content_hides(
    fake: FakeRegistry, builder: Connection, hides_as: int
) -> None:
    """Where `/v2/` asks for a login, it comes with the first request for what hides; from then on one request each."""
    fake.on_manifest = private(hides_as, ping=401, headers=BASIC)
    assert [await ask(builder) for _ in range(3)] == [200, 200, 200]
    assert paths(fake) == ["/v2/", "/v2/x", "/v2/x", "/v2/x"]


@pytest.mark.parametrize("hides_as", [403, 404])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
async def test_a_login_that_nobody_asks_for_is_sent_once(
    fake: FakeRegistry, builder: Connection, hides_as: int, method: str
) -> None:
    """Where the registry asks for nothing and has nothing, who has a login shows it before that is believed."""
    fake.on_manifest = private(hides_as)
    assert [await ask(builder, method) for _ in range(2)] == [200, 200]
    assert paths(fake) == ["/v2/", "/v2/x", "/v2/x", "/v2/x"]


async def test_a_stream_shows_the_login_too(fake: FakeRegistry, builder: Connection) -> None:
    """Blobs hide as manifests do."""
    fake.on_manifest = private(404)
    async with builder.stream("/v2/x", scopes=PULL) as stream:
        assert (stream.status, [chunk async for chunk in stream.chunks()]) == (200, [b"{}"])


async def test_what_is_not_there_costs_one_request_more_in_all(fake: FakeRegistry, builder: Connection) -> None:
    """A hundred tags that are missing are not two hundred requests."""
    fake.on_manifest = lambda request: web.Response(status=200 if request.path == "/v2/" else 404)
    assert {await ask(builder) for _ in range(5)} == {404}
    assert len(fake.seen) == 1 + 5 + 1


async def test_a_wrong_login_that_nobody_asked_for_is_forgotten(fake: FakeRegistry, builder: Connection) -> None:
    """A registry that is open to everybody stays so for who has a login that it does not know."""

    def serve(request: web.Request) -> web.StreamResponse:
        is_refused = "Authorization" in request.headers
        return web.Response(status=401 if is_refused else 200 if request.path == "/v2/" else 404)

    fake.on_manifest = serve
    assert [await ask(builder), await ask(builder)] == [404, 404]
    assert ["Authorization" in request.headers for request in fake.seen] == [False, False, True, False, False]


@pytest.mark.parametrize("is_right", [True, False])
async def test_many_that_hide_at_once(fake: FakeRegistry, builder: Connection, is_right: bool) -> None:
    """Whoever was told that nothing is there, before another showed the login, asks again with it; whoever showed one
    that is wrong hears what everybody hears."""
    serve, together = private(404), asyncio.Barrier(4)

    async def slowly(request: web.Request) -> web.StreamResponse:
        if request.path != "/v2/" and len(fake.seen) <= 5:
            await together.wait()
        if "Authorization" in request.headers and not is_right:
            return web.Response(status=401)
        return serve(request)

    fake.on_manifest = slowly
    async with asyncio.timeout(20):
        assert await asyncio.gather(*(ask(builder) for _ in range(4))) == [200 if is_right else 404] * 4


async def test_who_has_no_login_makes_no_request_more(fake: FakeRegistry, connection: Connection) -> None:
    """Neither a ping, nor another try."""
    fake.on_manifest = lambda _: web.Response(status=404)
    assert [await ask(connection), await ask(connection)] == [404, 404]
    assert paths(fake) == ["/v2/x", "/v2/x"]


async def test_many_at_once_ping_once(fake: FakeRegistry, builder: Connection) -> None:
    """Whoever is first finds out for all."""
    fake.on_manifest = private(401, ping=401, headers=BASIC)
    assert await asyncio.gather(*(ask(builder) for _ in range(8))) == [200] * 8
    assert paths(fake).count("/v2/") == 1


@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_a_403_with_a_challenge_is_a_401(fake: FakeRegistry, builder: Connection, method: str) -> None:
    """Some say no where they mean who are you."""
    fake.on_manifest = private(403, headers=BASIC)
    assert await ask(builder, method, b"{}" if method == "PUT" else b"") == 200


async def test_a_401_without_a_challenge_is_for_the_password(
    fake: FakeRegistry, builder: Connection, connection: Connection
) -> None:
    """Where neither answer nor ping says how to log in, the password goes to the registry itself; who has none is
    told."""
    fake.on_manifest = private(401, ping=401)
    assert await ask(builder) == 200
    with pytest.raises(Permanent, match="asks for a login"):
        await ask(connection)


@pytest.mark.parametrize("realm", ["http://127.0.0.1:9/token", "http://realm.invalid/token", "", "ftp://x/"])
async def test_a_realm_that_leads_nowhere(fake: FakeRegistry, client: RegistryClient, realm: str) -> None:
    """Where nobody gives tokens, the password goes to the registry itself, once for all; without one that is the
    fault."""
    headers = {"WWW-Authenticate": f'Bearer realm="{realm}",service="s"'}
    fake.on_manifest = private(401, ping=401, headers=headers)
    builder = client.connect(RegistryTarget(host=fake.host, scheme="http", login=BUILDER))
    assert [await ask(builder), await ask(builder)] == [200, 200]
    assert paths(fake) == ["/v2/", "/v2/x", "/v2/x"]
    with pytest.raises(Fault, match=r"names no token server|127\.0\.0\.1:9|realm\.invalid"):
        await ask(client.connect(RegistryTarget(host=fake.host, scheme="http")))


async def test_a_dead_realm_and_a_wrong_password(fake: FakeRegistry, builder: Connection) -> None:
    """Where the registry does not take the password either, the token server is what is missing."""
    headers = {"WWW-Authenticate": 'Bearer realm="http://127.0.0.1:9/token"'}
    fake.on_manifest = lambda _: web.Response(status=401, headers=headers)
    with pytest.raises(Temporary, match=r"127\.0\.0\.1:9"):
        await ask(builder)


async def test_a_realm_that_was_away_for_a_moment(fake: FakeRegistry, builder: Connection) -> None:
    """What a registry gives to everybody says nothing of the password: where it is refused, tokens are asked for
    again."""

    def serve(request: web.Request) -> web.StreamResponse:
        login = request.headers.get("Authorization", "")
        if login == "Bearer the-token" or (request.method == "GET" and login.startswith("Basic ")):
            return web.Response()
        return web.Response(status=401, headers={"WWW-Authenticate": fake.challenge})

    def hang_up(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    fake.on_manifest, issue, fake.on_token = serve, fake.on_token, hang_up
    assert await ask(builder) == 200
    fake.on_token = issue
    assert await ask(builder, "PUT", b"{}") == 200
    assert await ask(builder) == 200
    assert fake.seen[-1].headers["Authorization"] == "Bearer the-token"


@pytest.mark.parametrize("status", [401, 403])
async def test_a_realm_that_refuses_has_the_last_word(fake: FakeRegistry, builder: Connection, status: int) -> None:
    """A password that the token server does not know is shown to nobody else."""
    fake.on_manifest = private(401, ping=401, headers={"WWW-Authenticate": fake.challenge})
    fake.on_token = lambda _: web.Response(status=status)
    with pytest.raises(Permanent, match="gives no token") as denied:
        await ask(builder)
    assert denied.value.code is ErrorCode.DENIED
    assert not any("Authorization" in r.headers for r in fake.seen if r.path != "/token")


async def test_a_realm_that_is_off_limits_is_a_refusal(fake: FakeRegistry) -> None:
    """What `[egress]` forbids is no token server that is down."""
    realm = fake.url.replace("127.0.0.1", "127.0.0.2")
    fake.on_manifest = private(401, ping=401, headers={"WWW-Authenticate": f'Bearer realm="{realm}/token"'})
    async with RegistryClient({}, Egress(EgressSettings(deny=("127.0.0.2/32",)))) as client:
        with pytest.raises(Permanent) as denied:
            await ask(client.connect(RegistryTarget(host=fake.host, scheme="http", login=BUILDER)))
    assert denied.value.code is ErrorCode.EGRESS


@pytest.mark.parametrize("login", [None, BUILDER])
async def test_a_realm_may_be_a_path(fake: FakeRegistry, client: RegistryClient, login: Credentials | None) -> None:
    """`/token` is the registry's own."""
    headers = {"WWW-Authenticate": 'Bearer realm="/token",service="s"'}
    fake.on_manifest = lambda request: (
        web.Response(body=b"{}")
        if request.headers.get("Authorization") == "Bearer the-token"
        else web.Response(status=401, headers=headers)
    )
    assert await ask(client.connect(RegistryTarget(host=fake.host, scheme="http", login=login))) == 200
    assert [request.query["service"] for request in fake.tokens_asked] == ["s"]


async def test_a_ping_that_fails_decides_nothing(fake: FakeRegistry, builder: Connection) -> None:
    """A registry in trouble for a moment is not taken for one that wants no login."""
    serve, answers = private(401, ping=401, headers=BASIC), [web.Response(status=503)]
    fake.on_manifest = lambda request: answers.pop() if answers else serve(request)
    assert await ask(builder) == 200


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_ping_that_always_fails_hides_nothing(fake: FakeRegistry, builder: Connection, method: str) -> None:
    """Where nobody says how to log in, the password is shown before a 404 is believed."""
    fake.on_manifest = private(404, ping=503)
    assert await ask(builder, method) == 200


async def test_a_wrong_guess_after_a_ping_that_fails(fake: FakeRegistry, builder: Connection) -> None:
    """Where the password is not what the registry wants, it is asked again what that is."""
    pings = [web.Response(status=503)]

    def serve(request: web.Request) -> web.StreamResponse:
        login = request.headers.get("Authorization", "")
        if login == "Bearer the-token":
            return web.Response()
        if request.path == "/v2/":
            return pings.pop() if pings else web.Response(status=401, headers={"WWW-Authenticate": fake.challenge})
        return web.Response(status=401 if login else 404)

    fake.on_manifest = serve
    assert [await ask(builder), await ask(builder)] == [200, 200]


async def test_head_manifest_finds_what_hides(fake: FakeRegistry, client: RegistryClient) -> None:
    """What jobs ask for goes the same way."""
    digest = "sha256:" + "a" * 64
    hidden = private(404)

    def serve(request: web.Request) -> web.StreamResponse:
        answer = hidden(request)
        answer.headers["Docker-Content-Digest"] = digest
        return answer

    fake.on_manifest = serve
    found = await reader(client, fake.host, "team/app", login=BUILDER).head_manifest("1")
    assert found is not None
    assert found.digest == digest
