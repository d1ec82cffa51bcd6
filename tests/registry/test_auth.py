"""Logins: tokens from the server that a registry names or that a request names, kept, renewed, and kept at home."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from fake_registry import NO_PROXIES, FakeRegistry
from moved_clock import MovedClock

from imagejobd.model.egress import Egress, EgressSettings
from imagejobd.model.errors import ErrorCode, Fault, Permanent, Temporary
from imagejobd.model.secrets import Credentials, Secret
from imagejobd.registry.auth import LIFETIME_MAX_S, TokenAnswer, renew_at
from imagejobd.registry.client import RegistryClient
from imagejobd.registry.connection import Connection
from imagejobd.registry.hosts import ReadyToken, RegistryTarget, TokenRequest
from imagejobd.registry.limits import BULK_START, SMALL_MAX

BUILDER = Credentials("builder", Secret("correct-horse"))
PULL = ("repository:team/app:pull",)
PUSH = ("repository:team/app:pull,push",)


class TokenRegistry:
    """Makes `fake` a registry that lets in whoever holds a token of its server that was not revoked."""

    def __init__(self, fake: FakeRegistry) -> None:
        self.fake = fake
        self.valid: set[str] = set()
        self.answer: Callable[[str], dict[str, object]] = lambda token: {"token": token, "expires_in": 300}
        self.token_type = "Bearer"
        fake.on_manifest = self._serve
        fake.on_token = self._issue

    @property
    def issued(self) -> int:
        return len(self.fake.tokens_asked)

    @property
    def challenged(self) -> int:
        """How many requests came without any login."""
        return sum(r.path != "/token" and "Authorization" not in r.headers for r in self.fake.seen)

    def _serve(self, request: web.Request) -> web.StreamResponse:
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        if kind == self.token_type and token in self.valid:
            return web.Response(body=b"{}")
        return web.Response(status=401, headers={"WWW-Authenticate": self.fake.challenge})

    async def _issue(self, request: web.Request) -> web.StreamResponse:
        token = f"token-{self.issued}"
        await asyncio.sleep(0)
        self.valid.add(token)
        return web.json_response(self.answer(token))


@pytest.fixture
def tokens(fake: FakeRegistry) -> TokenRegistry:
    return TokenRegistry(fake)


async def ask(connection: Connection, scopes: tuple[str, ...] = PULL) -> int:
    return (await connection.ask("GET", "/v2/x", scopes=scopes)).status


async def test_a_token_is_used_until_it_is_old(tokens: TokenRegistry, connection: Connection, time: MovedClock) -> None:
    """One token serves many requests, and is renewed a little before its end, without a challenge."""
    for _ in range(3):
        assert await ask(connection) == 200
    time.advance(289)
    assert await ask(connection) == 200
    assert tokens.issued == 1
    time.advance(2)
    tokens.valid.clear()
    assert await ask(connection) == 200
    assert (tokens.issued, tokens.challenged) == (2, 1)


async def test_a_short_life_is_taken_for_a_minute(
    tokens: TokenRegistry, connection: Connection, time: MovedClock
) -> None:
    """`expires_in` below 60 s is a server's mistake, not a request for a token each."""
    tokens.answer = lambda token: {"token": token, "expires_in": 1}
    assert await ask(connection) == 200
    time.advance(50)
    assert await ask(connection) == 200
    assert tokens.issued == 1
    time.advance(5)
    assert await ask(connection) == 200
    assert tokens.issued == 2


async def test_one_refresh_for_all(tokens: TokenRegistry, connection: Connection, time: MovedClock) -> None:
    """Twenty requests at once, first without a token and then with an old one, fetch one token each time."""
    assert await asyncio.gather(*(ask(connection) for _ in range(20))) == [200] * 20
    assert tokens.issued == 1
    time.advance(400)
    assert await asyncio.gather(*(ask(connection) for _ in range(20))) == [200] * 20
    assert tokens.issued == 2


async def test_one_refusal_for_all(tokens: TokenRegistry, connection: Connection) -> None:
    """Twenty requests with a wrong password are not twenty logins, which lock accounts."""
    tokens.fake.on_token = lambda _: web.Response(status=401)
    results = await asyncio.gather(*(ask(connection) for _ in range(8)), return_exceptions=True)
    assert all(isinstance(result, Permanent) and result.code is ErrorCode.DENIED for result in results)
    assert tokens.issued < 8


async def test_a_revoked_token_is_replaced(tokens: TokenRegistry, connection: Connection) -> None:
    """A 401 on a token in hand means a new token, on a new one another; on that it is the answer."""
    assert await ask(connection) == 200
    tokens.valid.clear()
    assert await ask(connection) == 200
    assert tokens.issued == 2
    tokens.fake.on_manifest = lambda _: web.Response(status=401, headers={"WWW-Authenticate": tokens.fake.challenge})
    assert await ask(connection) == 401
    assert tokens.issued == 4


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_token_that_is_over_when_it_arrives(
    tokens: TokenRegistry, connection: Connection, is_stream: bool
) -> None:
    """A fresh token is no proof of a refusal: one that lives for a moment is replaced once, by the same request."""
    guarded = tokens.fake.on_manifest

    def hasty(request: web.Request) -> web.StreamResponse:
        tokens.valid.discard("token-1")
        return guarded(request)

    tokens.fake.on_manifest = hasty
    if is_stream:
        async with connection.stream("/v2/x", scopes=PULL) as stream:
            assert stream.status == 200
    else:
        assert await ask(connection) == 200
    assert tokens.issued == 2


async def test_a_fresh_token_that_is_refused_spends_one_body(tokens: TokenRegistry, connection: Connection) -> None:
    """An upload's 401 to a token fetched for it is the answer: it would be the next one's too."""

    async def body() -> AsyncIterator[bytes]:
        yield b"x"

    assert await ask(connection, PULL) == 200
    tokens.fake.on_manifest = lambda _: web.Response(status=401, headers={"WWW-Authenticate": tokens.fake.challenge})
    answer = await connection.send("PUT", "/v2/x", body(), size_bytes=1, scopes=PUSH)
    assert (answer.status, tokens.issued) == (401, 2)


async def test_a_stream_gets_a_new_token_too(tokens: TokenRegistry, connection: Connection) -> None:
    """A large read begins again with the new token, before anything was read."""
    for _ in range(2):
        async with connection.stream("/v2/x", scopes=PULL) as stream:
            assert (stream.status, [chunk async for chunk in stream.chunks()]) == (200, [b"{}"])
        tokens.valid.clear()
    assert tokens.issued == 2


async def test_an_upload_whose_token_was_revoked_is_worth_another_try(
    tokens: TokenRegistry, connection: Connection
) -> None:
    """A body cannot be played twice, but the next attempt has a new token."""

    async def body() -> AsyncIterator[bytes]:
        yield b"x"

    assert await ask(connection, PUSH) == 200
    tokens.valid.clear()
    with pytest.raises(Temporary, match="new login"):
        await connection.send("PUT", "/v2/x", body(), size_bytes=1, scopes=PUSH)
    answer = await connection.send("PUT", "/v2/x", body(), size_bytes=1, scopes=PUSH)
    assert (answer.status, tokens.issued) == (200, 2)


async def test_scopes_are_repeated_in_their_order(tokens: TokenRegistry, connection: Connection) -> None:
    """Each scope is a parameter of its own, the most important first; each set has its own token."""
    other = "repository:other/app:pull"
    assert await ask(connection, (*PUSH, other)) == 200
    assert tokens.fake.tokens_asked[0].query.getall("scope") == [*PUSH, other]
    assert await ask(connection, PULL) == 200
    assert tokens.issued == 2
    assert await ask(connection, (other, *PUSH)) == 200
    assert tokens.issued == 2


async def test_the_challenge_of_the_ping_counts_where_there_is_no_other(
    tokens: TokenRegistry, connection: Connection
) -> None:
    """Some registries forget the challenge on all addresses but one."""
    guarded = tokens.fake.on_manifest

    async def forgetful(request: web.Request) -> web.StreamResponse:
        answer = guarded(request)
        assert isinstance(answer, web.Response)
        if request.path != "/v2/":
            answer.headers.popall("WWW-Authenticate", None)
        return answer

    tokens.fake.on_manifest = forgetful
    assert await ask(connection) == 200
    assert [r.path for r in tokens.fake.seen] == ["/v2/x", "/v2/", "/token", "/v2/x"]


async def test_a_token_server_on_another_host(fake: FakeRegistry, client: RegistryClient) -> None:
    """The Hub's is one: it gets the password, the registry only the token."""
    async with FakeRegistry() as server:
        realm = f'Bearer realm="{server.url.replace("127.0.0.1", "localhost")}/token",service="s"'
        fake.on_manifest = lambda request: (
            web.Response()
            if request.headers.get("Authorization") == "Bearer the-token"
            else web.Response(status=401, headers={"WWW-Authenticate": realm})
        )
        assert await ask(client.connect(RegistryTarget(host=fake.host, login=BUILDER))) == 200
        assert server.seen[0].headers["Authorization"].startswith("Basic ")
        assert not any(r.headers.get("Authorization", "").startswith("Basic ") for r in fake.seen)


async def test_a_token_server_that_redirects_elsewhere_takes_no_password_along(
    fake: FakeRegistry, client: RegistryClient
) -> None:
    """The password is for the realm's origin, not for where that points."""
    async with FakeRegistry() as elsewhere:
        elsewhere.on_manifest = lambda _: web.json_response({"token": "the-token"})
        fake.on_token = lambda _: web.Response(status=307, headers={"Location": f"{elsewhere.url}/elsewhere"})
        assert await ask(client.connect(RegistryTarget(host=fake.host, login=BUILDER))) == 200
        assert ["Authorization" in request.headers for request in elsewhere.seen] == [False]


async def test_an_overloaded_token_server_is_waited_for(
    tokens: TokenRegistry, connection: Connection, time: MovedClock
) -> None:
    """Its Retry-After counts as the registry's."""
    issue = tokens.fake.on_token
    busy = [web.Response(status=429, headers={"Retry-After": "20"})]
    tokens.fake.on_token = lambda request: busy.pop() if busy else issue(request)
    assert await ask(connection) == 200
    assert time.slept == [20]


@pytest.mark.parametrize("extra", [{}, {"expires_in": None}, {"expires_in": "60"}, {"expires_in": 1e999}])
async def test_odd_lifetimes(tokens: TokenRegistry, connection: Connection, extra: dict[str, object]) -> None:
    """A lifetime that is missing or cannot be one is the shortest, or bounded; the token is used."""
    tokens.answer = lambda token: {"access_token": token, "token": None, "issued_at": 7, **extra}
    if extra.get("expires_in") == 1e999:
        tokens.fake.on_token = lambda _: web.Response(body=b'{"token":"token-1","expires_in":1e300}')
        tokens.valid.add("token-1")
    assert await ask(connection) == 200
    assert await ask(connection) == 200
    assert tokens.issued == 1


def requested(fake: FakeRegistry, **more: object) -> TokenRequest:
    return TokenRequest(
        url=Secret(f"{fake.url}/token?account=hidden-account"),
        headers={"X-Api-Key": Secret("hidden-key")},
        body=Secret('{"grant":"hidden-grant"}'),
        **more,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("token_type", ["Bearer", "JWT"])
async def test_a_requests_own_token_server(
    tokens: TokenRegistry, client: RegistryClient, time: MovedClock, token_type: str
) -> None:
    """GET with the request's headers and JSON body; the token is sent with its type, from the first request on, and
    renewed when it is old or refused."""
    bodies = []
    issue = tokens._issue

    async def on_token(request: web.Request) -> web.StreamResponse:
        bodies.append((request.method, await request.json(), request.headers["X-Api-Key"], request.content_type))
        return await issue(request)

    tokens.fake.on_token = on_token
    tokens.token_type = token_type
    connection = client.connect(
        RegistryTarget(host=tokens.fake.host, login=requested(tokens.fake, token_type=token_type))
    )
    assert [await ask(connection, scopes) for scopes in (PULL, PUSH)] == [200, 200]
    assert (tokens.issued, tokens.challenged) == (1, 0)
    assert bodies == [("GET", {"grant": "hidden-grant"}, "hidden-key", "application/json")]
    tokens.valid.clear()
    assert await ask(connection) == 200
    time.advance(300)
    assert await ask(connection) == 200
    assert tokens.issued == 3


async def test_a_token_requests_connection_is_its_own(tokens: TokenRegistry, client: RegistryClient) -> None:
    """A server that knows no body of a GET would answer it to whoever uses the connection next: nobody does."""
    ports = []
    issue = tokens._issue

    async def on_token(request: web.Request) -> web.StreamResponse:
        ports.append((request.transport.get_extra_info("peername")[1], request.keep_alive))  # type: ignore[union-attr]
        return await issue(request)

    tokens.fake.on_token = on_token
    for _ in range(2):
        login = requested(tokens.fake)
        assert await ask(client.connect(RegistryTarget(host=tokens.fake.host, scheme="http", login=login))) == 200
    assert len({port for port, _ in ports}) == 2
    assert not any(keep_alive for _, keep_alive in ports)


async def test_a_slow_token_server_holds_no_slot(tokens: TokenRegistry, client: RegistryClient) -> None:
    """However many requests wait for a token server of their own, the registry's slots are for the others."""
    issue, asked, go_on = tokens._issue, 0, asyncio.Event()

    async def on_token(request: web.Request) -> web.StreamResponse:
        nonlocal asked
        asked += 1
        await go_on.wait()
        return await issue(request)

    def connect(login: TokenRequest | ReadyToken) -> Connection:
        return client.connect(RegistryTarget(host=tokens.fake.host, scheme="http", login=login))

    tokens.fake.on_token = on_token
    tokens.valid.add("ready-made")
    waiting = [asyncio.create_task(ask(connect(requested(tokens.fake)))) for _ in range(SMALL_MAX)]
    async with asyncio.timeout(20):
        while asked < len(waiting):
            await asyncio.sleep(0)
        assert await ask(connect(ReadyToken(token=Secret("ready-made")))) == 200
        go_on.set()
        assert set(await asyncio.gather(*waiting)) == {200}


async def test_a_token_that_ages_in_the_queue_is_renewed(
    tokens: TokenRegistry, client: RegistryClient, time: MovedClock
) -> None:
    """An upload that waits for its slot for longer than its token lives begins with a new one."""
    serve, arrivals, go_on = tokens.fake.on_manifest, 0, asyncio.Event()

    async def hold(request: web.Request) -> web.StreamResponse:
        nonlocal arrivals
        if request.path != "/v2/held":
            answer = serve(request)
            return await answer if isinstance(answer, Awaitable) else answer
        arrivals += 1
        await go_on.wait()
        return web.Response(status=201)

    async def put(login: TokenRequest | None, path: str) -> int:
        async def body() -> AsyncIterator[bytes]:
            yield b"x"

        connection = client.connect(RegistryTarget(host=tokens.fake.host, scheme="http", login=login))
        return (await connection.send("PUT", path, body(), size_bytes=1, scopes=PUSH)).status

    tokens.fake.on_manifest = hold
    tokens.valid.add("ready-made")
    ready = RegistryTarget(host=tokens.fake.host, scheme="http", login=ReadyToken(token=Secret("ready-made")))
    async with asyncio.timeout(20):
        others = [asyncio.create_task(put(None, "/v2/held")) for _ in range(BULK_START)]
        while arrivals < BULK_START:
            await asyncio.sleep(0)
        late = asyncio.create_task(put(requested(tokens.fake), "/v2/x"))
        while "token-1" not in tokens.valid:
            await asyncio.sleep(0)
        for _ in range(3):  # by then the token is there, too
            assert await ask(client.connect(ready)) == 200
        tokens.valid.discard("token-1")
        time.advance(300)
        go_on.set()
        assert await late == 200
        assert set(await asyncio.gather(*others)) == {201}
    assert tokens.issued == 2


async def test_a_ready_token(tokens: TokenRegistry, client: RegistryClient) -> None:
    """It is sent with its type from the first request on; a refusal of it is the answer, and nothing is fetched."""
    tokens.token_type = "JWT"
    tokens.valid.add("ready-made")
    login = ReadyToken(token=Secret("ready-made"), token_type="JWT")
    connection = client.connect(RegistryTarget(host=tokens.fake.host, login=login))
    assert await ask(connection) == 200
    tokens.valid.clear()
    assert await ask(connection) == 401
    assert [request.path for request in tokens.fake.seen] == ["/v2/x", "/v2/x"]
    tokens.fake.on_manifest = lambda _: web.json_response({"errors": [{"message": "no: ready-made"}]}, status=403)
    answer = await connection.ask("GET", "/v2/x", scopes=PULL)
    assert "ready-made" not in connection.refusal(answer, what="x").message


@pytest.mark.parametrize("status", [401, 403])
async def test_who_has_no_login_hears_where_to_give_it(fake: FakeRegistry, client: RegistryClient, status: int) -> None:
    """A refusal has the site's own hint where the request had no login, and none where it had one."""
    fake.on_manifest = lambda _: web.Response(status=status, headers={"WWW-Authenticate": 'Basic realm="r"'})
    fields = {"host": fake.host, "login_hint": "give the login in source.auth"}

    async def refusal(**login: Any) -> str:
        connection = client.connect(RegistryTarget(**fields, **login))
        try:
            return connection.refusal(await connection.ask("GET", "/v2/x", scopes=PULL), what="x").message
        except Permanent as fault:
            return fault.message

    assert "give the login in source.auth, or set username and password_file" in await refusal()
    assert "give the login" not in await refusal(login=BUILDER)


@pytest.mark.parametrize("status", [401, 400, 404])
async def test_a_refusing_token_server_reveals_nothing(
    tokens: TokenRegistry, client: RegistryClient, status: int
) -> None:
    """What it echoes of the request's secrets is masked, and its address is not shown beyond the host."""

    async def echo(request: web.Request) -> web.StreamResponse:
        told = f"{request.headers['X-Api-Key']} {await request.text()}"
        return web.json_response({"errors": [{"code": "NO", "message": told}]}, status=status)

    tokens.fake.on_token = echo
    with pytest.raises(Fault) as refused:
        await ask(client.connect(RegistryTarget(host=tokens.fake.host, login=requested(tokens.fake))))
    assert str(status) in refused.value.message
    assert "hidden" not in refused.value.message


async def test_a_requests_secrets_stay_with_its_token_server(tokens: TokenRegistry, client: RegistryClient) -> None:
    """A redirect within the origin is followed, one to another origin is refused."""
    async with FakeRegistry() as elsewhere:
        tokens.fake.on_token = lambda _: web.Response(
            status=307, headers={"Location": f"{elsewhere.url}/elsewhere?x=1"}
        )
        with pytest.raises(Permanent, match="redirects to"):
            await ask(client.connect(RegistryTarget(host=tokens.fake.host, login=requested(tokens.fake))))
        assert elsewhere.seen == []


@pytest.mark.parametrize(
    ("login", "part"),
    [
        (TokenRequest(url=Secret("ftp://hidden/token")), "no http"),
        (TokenRequest(url=Secret("hidden")), "no http"),
        (TokenRequest(url=Secret("http://127.0.0.1:9/"), token_type="hidden\r\nX: y"), "type"),
        (TokenRequest(url=Secret("http://127.0.0.1:9/"), headers={"X": Secret("hidden\r\nY: z")}), "header"),
        (TokenRequest(url=Secret("http://127.0.0.1:9/"), headers={"X: y": Secret("hidden")}), "header"),
    ],
)
async def test_token_requests_that_cannot_be_sent(
    fake: FakeRegistry, client: RegistryClient, login: TokenRequest, part: str
) -> None:
    """Nothing that would change the request's form is sent; the refusal shows no part of it."""
    with pytest.raises(Permanent, match=part) as refused:
        await ask(client.connect(RegistryTarget(host=fake.host, login=login)))
    assert refused.value.code is ErrorCode.INVALID
    assert "hidden" not in refused.value.message
    assert fake.seen == []


async def test_headers_that_frame_the_request_are_ours(tokens: TokenRegistry, client: RegistryClient) -> None:
    """A request cannot set the length or the host of the request that is made for it."""
    login = TokenRequest(
        url=Secret(f"{tokens.fake.url}/token".replace("//", "//user:pass@")),
        headers={name: Secret("5") for name in ("Content-Length", "Host", "transfer-encoding")},
        body=Secret(json.dumps({"long": "x" * 100})),
    )
    assert await ask(client.connect(RegistryTarget(host=tokens.fake.host, login=login))) == 200
    asked = tokens.fake.tokens_asked[0]
    assert asked.headers["Host"] == tokens.fake.host
    assert asked.headers["Authorization"] == "Basic dXNlcjpwYXNz"


async def test_egress_holds_for_a_requests_token_server(fake: FakeRegistry) -> None:
    """The address of the token server is a user's word: it is checked as all are."""
    async with RegistryClient({}, Egress(EgressSettings(deny=("127.0.0.2/32",))), proxies=NO_PROXIES) as client:
        url = f"{fake.url}/token".replace("127.0.0.1", "127.0.0.2")
        with pytest.raises(Permanent) as denied:
            await ask(client.connect(RegistryTarget(host=fake.host, login=TokenRequest(url=Secret(url)))))
    assert denied.value.code is ErrorCode.EGRESS
    assert fake.seen == []


@pytest.mark.parametrize("is_known", [False, True])
async def test_a_redirects_target_teaches_nothing(
    tokens: TokenRegistry, client: RegistryClient, is_known: bool
) -> None:
    """Whom the registry's redirects lead to may not name a token server: the password would go there. Its 401 is an
    answer, and says nothing of the token in hand."""
    connection = client.connect(RegistryTarget(host=tokens.fake.host, login=BUILDER))
    if is_known:
        assert await ask(connection) == 200
    async with FakeRegistry() as storage:
        storage.on_manifest = lambda _: web.Response(status=401, headers={"WWW-Authenticate": storage.challenge})
        registry = tokens.fake.on_manifest
        tokens.fake.on_manifest = lambda _: web.Response(status=307, headers={"Location": f"{storage.url}/elsewhere"})
        assert await ask(connection) == 401
        async with connection.stream("/v2/x", scopes=PULL) as stream:
            assert (stream.status, stream.url.port) == (401, int(storage.host.partition(":")[2]))
        assert storage.tokens_asked == []
        assert not any("Authorization" in request.headers for request in storage.seen)
        tokens.fake.on_manifest = registry
        assert await ask(connection) == 200
    assert tokens.issued == 1


async def test_a_ping_that_leads_elsewhere_teaches_nothing(fake: FakeRegistry, client: RegistryClient) -> None:
    """Where a 401 comes without a challenge, only the registry's own ping is asked for one."""
    async with FakeRegistry() as storage:
        storage.on_manifest = lambda _: web.Response(status=401, headers={"WWW-Authenticate": storage.challenge})
        fake.on_manifest = lambda request: (
            web.Response(status=307, headers={"Location": f"{storage.url}/elsewhere"})
            if request.path == "/v2/"
            else web.Response(status=401)
        )
        assert await ask(client.connect(RegistryTarget(host=fake.host, login=BUILDER))) == 401
        assert storage.tokens_asked == []
        assert not any("Authorization" in request.headers for request in storage.seen)
        with pytest.raises(Permanent, match="in no way known here"):
            await ask(client.connect(RegistryTarget(host=fake.host)))


@pytest.mark.parametrize("status", [400, 404, 405])
async def test_a_token_server_without_a_token_denies(fake: FakeRegistry, client: RegistryClient, status: int) -> None:
    """Its 404 is no missing image: there is no login, and the words say where."""
    fake.on_token = lambda _: web.Response(status=status)
    for login in (None, BUILDER):
        with pytest.raises(Permanent, match=rf"token server {fake.host}: it gives no token.*{status}") as denied:
            await ask(client.connect(RegistryTarget(host=fake.host, login=login)))
        assert denied.value.code is ErrorCode.DENIED


async def test_the_password_where_no_token_server_is_named(fake: FakeRegistry, client: RegistryClient) -> None:
    """A Bearer challenge without a usable realm is passed over for Basic, and for a Bearer one that has it."""
    offers = [("WWW-Authenticate", 'Bearer service="x"'), ("WWW-Authenticate", 'Basic realm="x"')]
    fake.on_manifest = lambda request: (
        web.Response() if "Authorization" in request.headers else web.Response(status=401, headers=offers)
    )
    assert await ask(client.connect(RegistryTarget(host=fake.host, login=BUILDER))) == 200
    assert fake.seen[-1].headers["Authorization"].startswith("Basic ")
    offers.append(("WWW-Authenticate", fake.challenge))
    assert await ask(client.connect(RegistryTarget(host=fake.host, login=BUILDER))) == 200
    assert fake.seen[-1].headers["Authorization"] == "Bearer the-token"


async def test_a_token_in_hand_does_not_wait_for_another(tokens: TokenRegistry, connection: Connection) -> None:
    """While the server thinks about one scope, requests with a good token go on, and other scopes are asked for."""
    assert await ask(connection, PULL) == 200
    issue, thinking = tokens.fake.on_token, asyncio.Event()

    async def think(request: web.Request) -> web.StreamResponse:
        if "slow" in request.query["scope"]:
            await thinking.wait()
        answer = issue(request)
        return await answer if not isinstance(answer, web.StreamResponse) else answer

    tokens.fake.on_token = think
    slow = asyncio.create_task(ask(connection, ("repository:slow:pull",)))
    async with asyncio.timeout(5):
        while tokens.issued < 2:
            await asyncio.sleep(0)
        assert await ask(connection, PULL) == 200
        assert await ask(connection, PUSH) == 200
        assert not slow.done()
        thinking.set()
        assert await slow == 200


@pytest.mark.parametrize(
    ("expires_in", "issued_at", "rest_s"),
    [
        (300, None, 290),
        (50, None, 54),
        (-5, None, 54),
        (60, "2030-01-01T00:00:00Z", 54),
        (300, "2029-12-31T23:59:00Z", 230),
        (300, "2029-12-31T23:59:00.123456789Z", 230),
        (300, "2030-01-01T01:00:00Z", 290),  # from the future: its clock is wrong
        (300, "2029-12-31T20:00:00Z", 290),  # long ago: then it would never be good
        (300, "yesterday", 290),
        (10**9, None, LIFETIME_MAX_S - 10),
    ],
)
def test_when_a_token_is_renewed(expires_in: float, issued_at: str | None, rest_s: float) -> None:
    """A tenth of its life, at most ten seconds, before its end."""
    time = MovedClock()
    answer = TokenAnswer(token="x", expires_in=expires_in, issued_at=issued_at)
    assert renew_at(answer, time.timing) - time.time_s == pytest.approx(rest_s, abs=0.2)


async def test_a_cancelled_fetch_is_taken_over(tokens: TokenRegistry, connection: Connection) -> None:
    """Who waited behind a fetch that was given up fetches itself."""
    issue, begun = tokens._issue, asyncio.Event()

    async def hang_once(request: web.Request) -> web.StreamResponse:
        if tokens.issued == 1:
            begun.set()
            await asyncio.sleep(60)
        return await issue(request)

    tokens.fake.on_token = hang_once
    first = asyncio.create_task(ask(connection))
    async with asyncio.timeout(10):
        await begun.wait()
        second = asyncio.create_task(ask(connection))
        await asyncio.sleep(0.1)
        first.cancel()
        assert await second == 200
    assert tokens.issued == 2


async def test_each_scope_has_its_own_refusal(tokens: TokenRegistry, connection: Connection) -> None:
    """A refusal for one repository says nothing of another, nor of the next request."""
    issue = tokens._issue

    async def choose(request: web.Request) -> web.StreamResponse:
        return web.Response(status=403) if "no/app" in request.query["scope"] else await issue(request)

    tokens.fake.on_token = choose
    refused, status = await asyncio.gather(
        ask(connection, ("repository:no/app:pull",)), ask(connection), return_exceptions=True
    )
    assert isinstance(refused, Permanent)
    assert status == 200
    tokens.fake.on_token = issue
    assert await ask(connection, ("repository:no/app:pull",)) == 200


async def test_a_late_refusal_of_an_old_token_keeps_the_new_one(tokens: TokenRegistry, connection: Connection) -> None:
    """Two requests whose old token is refused renew it once, in whatever order they hear of it."""
    assert await ask(connection) == 200
    tokens.valid.clear()
    guarded, late = tokens.fake.on_manifest, asyncio.Event()

    async def serve(request: web.Request) -> web.StreamResponse:
        if request.headers.get("X-Late") and not late.is_set():
            await late.wait()
        answer = guarded(request)
        assert isinstance(answer, web.Response)
        return answer

    tokens.fake.on_manifest = serve
    async with asyncio.timeout(10):
        second = asyncio.create_task(connection.ask("GET", "/v2/y", scopes=PULL, headers={"X-Late": "1"}))
        while len(tokens.fake.seen) < 4:
            await asyncio.sleep(0.01)
        assert await ask(connection) == 200
        late.set()
        assert (await second).status == 200
    assert tokens.issued == 2
