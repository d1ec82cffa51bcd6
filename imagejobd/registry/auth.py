"""The `WWW-Authenticate` header (RFC 9110 §11.6.1), as registries write it.

Several challenges may share a header, parameters may be quoted or not, and commas separate both. What cannot be
understood is left out; nothing here raises, because the header is whatever the peer made of it.

Tokens in hand: one fetch for all who want the same, renewed before they expire.

Fetching tokens: from the server that a registry's challenge names (distribution, "token authentication"), or as a
request itself says.

A password goes to the registry's own origin or to the token server that the registry names, and never from a registry
on TLS to a token server without it. What a request sends to its own token server never goes on to another origin.

Who we are at one registry: the scheme that it asked for, learnt once, and the header for each request.

Unknown at first, because most registries tell by their challenge; then every request carries its header at once.
"""

import asyncio
import copy
import datetime as dt
import re
from collections.abc import Awaitable, Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from yarl import URL

from imagejobd.model.errors import ErrorCode, Fault, Permanent, Temporary, invalid
from imagejobd.model.secrets import Credentials, Redactor, Secret
from imagejobd.registry.address import basic, host_of, http_url, origin_of
from imagejobd.registry.errors import detail, is_busy, login_needed, no_token, refusal, translated
from imagejobd.registry.hosts import Origin, ReadyToken, TokenRequest
from imagejobd.registry.http import REDIRECTS_MAX, Answer, Transport, redirect_target
from imagejobd.registry.limits import Timing

HEADER_MAX_CHARS = 8 * 1024

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 (RFC 9110 §5.6.2, not a password)
_ITEM = re.compile(
    rf"[\s,]*(?:"
    rf'(?P<name>{_TOKEN})\s*=\s*(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<bare>[^\s,"]+))'
    rf"|(?P<scheme>{_TOKEN})(?![^\s,]|\s*=)(?:[ \t]+[A-Za-z0-9._~+/-]+=*(?=\s*(?:,|$)))?"
    rf")",
    re.DOTALL,
)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


class Challenge(msgspec.Struct, frozen=True):
    """One way to authenticate: `scheme` and the names in `parameters` are lower case."""

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """The challenges of all `WWW-Authenticate` headers of one response, in order."""
    return [challenge for header in headers for challenge in _parse(header[:HEADER_MAX_CHARS])]


def _parse(header: str) -> list[Challenge]:
    header = _as_written(header)
    found: list[tuple[str, dict[str, str]]] = []
    position = 0
    while item := _ITEM.match(header, position):
        position = item.end()
        if item["scheme"]:
            found.append((item["scheme"].lower(), {}))
        elif found:
            # The first of two wins: a value must not be replaced by what follows it.
            found[-1][1].setdefault(item["name"].lower(), _value(item))
    return [Challenge(scheme, parameters) for scheme, parameters in found]


def _as_written(header: str) -> str:
    """Bytes that are no UTF-8 reach us as half characters, which nothing can send on; they are Latin-1 (RFC 9110
    §5.5)."""
    try:
        header.encode()
    except UnicodeEncodeError:
        return header.encode(errors="surrogateescape").decode("latin-1")
    return header


def _value(item: re.Match[str]) -> str:
    if item["bare"] is not None:
        return item["bare"]
    return _ESCAPE.sub(r"\1", item["quoted"])


# "A token should never be returned with less than 60 seconds to live" (distribution, "token authentication").
LIFETIME_MIN_S = 60.0
LIFETIME_MAX_S = 24 * 3600.0
RENEW_EARLY_MAX_S = 10.0
RENEW_EARLY_SHARE = 0.1


class TokenAnswer(msgspec.Struct):
    """Servers of Docker's age say `token`, those of OAuth2 `access_token`, some both; times are optional."""

    token: str | None = None
    access_token: str | None = None
    expires_in: Any = None
    issued_at: Any = None


class Token(msgspec.Struct, frozen=True, eq=False):
    """`header` is the whole value of `Authorization`; `renew_at` is a time of `Timing.clock`."""

    header: str
    renew_at: float

    def __repr__(self) -> str:
        return f"Token(renew_at={self.renew_at:.0f})"


class Tokens:
    """The tokens of one connection, by what they were asked for."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._held: dict[Hashable, Token] = {}
        self._locks: dict[Hashable, asyncio.Lock] = {}
        self._failed: dict[Hashable, tuple[int, Fault]] = {}
        self._fetches = 0

    def secrets(self) -> list[Secret]:
        return [Secret(token.header.rpartition(" ")[2]) for token in self._held.values()]

    def forget(self, key: Hashable, token: Token) -> None:
        """`token` was refused where it should have helped."""
        if self._held.get(key) is token:
            del self._held[key]

    async def get(self, key: Hashable, fetch: Callable[[], Awaitable[Token]]) -> tuple[Token, bool]:
        """A token for `key`, and whether it was fetched just now. All who wait share one fetch, and its failure."""
        if held := self._good(key):
            return held, False
        before = self._fetches
        # Who wants something else does not wait for this one's server.
        async with self._locks.setdefault(key, asyncio.Lock()):
            if held := self._good(key):
                return held, False
            number, fault = self._failed.get(key, (0, None))
            if fault is not None and number > before:
                raise copy.copy(fault)
            return await self._fetch(key, fetch), True

    def _good(self, key: Hashable) -> Token | None:
        held = self._held.get(key)
        return held if held is not None and self._timing.clock() < held.renew_at else None

    async def _fetch(self, key: Hashable, fetch: Callable[[], Awaitable[Token]]) -> Token:
        try:
            token = await fetch()
        except Fault as fault:
            self._fetches += 1
            self._failed[key] = (self._fetches, fault)
            raise
        self._fetches += 1
        self._held[key] = token
        return token


def renew_at(answer: TokenAnswer, timing: Timing) -> float:
    """When to fetch another one: a little before the end of a life that is at least `LIFETIME_MIN_S` long."""
    told_s = answer.expires_in if isinstance(answer.expires_in, int | float) else 0.0
    life_s = min(max(told_s, LIFETIME_MIN_S), LIFETIME_MAX_S)
    age_s = _age_s(answer.issued_at, timing)
    # A server whose clock goes wrong would otherwise make every token an expired one.
    rest_s = life_s - age_s if 0 < age_s < life_s else life_s
    return timing.clock() + rest_s - min(RENEW_EARLY_MAX_S, rest_s * RENEW_EARLY_SHARE)


def _age_s(issued_at: Any, timing: Timing) -> float:
    """Seconds since `issued_at` (RFC 3339); 0 where it is missing or cannot be read."""
    try:
        issued = dt.datetime.fromisoformat(issued_at)
        return (timing.now() - (issued if issued.tzinfo else issued.replace(tzinfo=dt.UTC))).total_seconds()
    except (TypeError, ValueError, OverflowError):
        return 0.0


TOKEN_ANSWER_MAX_BYTES = 256 * 1024

_HEADER_SAFE = re.compile(r"[\x21-\x7e]+")
_HEADER_VALUE = re.compile(r"[\x20-\x7e\x80-\xff]*")
_TOKEN_TYPE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# The HTTP library decides these, or they decide where a request ends.
_OWN_HEADERS = frozenset({"host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer"})


class TokenClient:
    """Asks for tokens on behalf of one site."""

    def __init__(self, transport: Transport, approach: Origin, timing: Timing) -> None:
        self._transport = transport
        self._trust = approach.tls_for
        self._timing = timing
        self._host = approach.site.host
        self._advice = approach.advice

    async def by_challenge(
        self, challenge: Challenge, scopes: Sequence[str], credentials: Credentials | None, origin: URL
    ) -> Token:
        """A token for all of `scopes`, in their order.

        Raises `Permanent(denied)` where the token server refuses, `Temporary` where it cannot answer.
        """
        realm = self._realm(challenge, origin)
        query = [("service", challenge.parameters["service"])] if "service" in challenge.parameters else []
        headers = {"Authorization": basic(credentials)} if credentials else {}
        host = host_of(realm)
        with translated(host):
            answer = await self._transport.fetch(
                "GET",
                realm.extend_query([*query, *(("scope", scope) for scope in scopes)]),
                headers,
                trust=self._trust,
                body_max_bytes=TOKEN_ANSWER_MAX_BYTES,
            )
        if answer.status in (401, 403) and credentials is None:
            raise login_needed(self._host, wanted(scopes), self._advice)
        secrets = [credentials.password] if credentials else []
        return self._token("Bearer", answer, host, secrets)

    async def by_request(self, login: TokenRequest) -> Token:
        """The token that a request says how to get."""
        url = http_url(login.url.reveal())
        if url is None:
            raise invalid(f"registry {self._host}: the address of its token server is no http(s) URL")
        if not _TOKEN_TYPE.fullmatch(login.token_type):
            raise invalid(f"registry {self._host}: the type of its token is no name of an authentication scheme")
        headers = _own_headers(login, url, self._host)
        host = host_of(url)
        with translated(host):
            answer = await self._ask(url.with_user(None), headers, login.body)
        return self._token(login.token_type, answer, host, login.secrets)

    async def _ask(self, url: URL, headers: Mapping[str, str], body: Secret | None) -> Answer:
        """GET, with a body where there is one. A redirect is followed within the origin only: headers and body hold
        what nobody else may see."""
        content = body.reveal().encode() if body else b""
        for _ in range(REDIRECTS_MAX + 1):
            answer = await self._transport.once(
                "GET", url, headers, content, trust=self._trust, body_max_bytes=TOKEN_ANSWER_MAX_BYTES
            )
            target = redirect_target(url, answer.status, answer.headers)
            if target is None:
                return answer
            if origin_of(target) != origin_of(url):
                raise Permanent(
                    ErrorCode.DENIED, f"token server {host_of(url)}: it redirects to {host_of(target)}; refused"
                )
            url = target
        raise Permanent(ErrorCode.DENIED, f"token server {host_of(url)}: more than {REDIRECTS_MAX} redirects")

    def _realm(self, challenge: Challenge, origin: URL) -> URL:
        realm = http_url(challenge.parameters.get("realm", ""))
        if realm is None:
            raise Permanent(ErrorCode.DENIED, f"registry {self._host}: its challenge names no token server")
        if origin.scheme == "https" and realm.scheme != "https":
            raise Permanent(
                ErrorCode.DENIED,
                f"registry {self._host}: its token server {host_of(realm)} has no TLS while the registry has; refused",
            )
        return realm.with_user(None).with_fragment(None)

    def _token(self, token_type: str, answer: Answer, host: str, secrets: Sequence[Secret]) -> Token:
        if answer.status != 200:
            raise self._refusal(answer, host, detail(answer.body, Redactor(secrets)))
        try:
            told = msgspec.json.decode(answer.body, type=TokenAnswer)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            told = TokenAnswer()
        token = told.token or told.access_token or ""
        if not _HEADER_SAFE.fullmatch(token):
            raise Temporary(ErrorCode.REGISTRY_UNAVAILABLE, f"token server {host}: its answer holds no usable token")
        return Token(f"{token_type} {token}", renew_at(told, self._timing))

    def _refusal(self, answer: Answer, host: str, told: str) -> Fault:
        if not is_busy(answer.status):
            return no_token(host, self._host, answer.status, told)
        wish = answer.headers.get("Retry-After")
        return refusal(host, answer.status, what=f"token for {self._host}", detail=told, retry_after=wish)


def _own_headers(login: TokenRequest, url: URL, host: str) -> dict[str, str]:
    """The headers of a request's own token server; a login in its URL is one of them, as curl has it."""
    headers = {"Authorization": basic(Credentials(url.user, Secret(url.password or "")))} if url.user else {}
    if login.body:
        headers["Content-Type"] = "application/json"
    for name, value in login.headers.items():
        if not _TOKEN_TYPE.fullmatch(name) or not _HEADER_VALUE.fullmatch(value.reveal()):
            raise invalid(f"registry {host}: a header for its token server cannot be sent as it is")
        if name.lower() not in _OWN_HEADERS:
            headers = {known: text for known, text in headers.items() if known.lower() != name.lower()}
            headers[name] = value.reveal()
    return headers


def wanted(scopes: Sequence[str]) -> str:
    """The repository that the first scope speaks of."""
    return scopes[0].split(":")[1] if scopes and scopes[0].count(":") >= 2 else "what was asked"


class AuthHeader(msgspec.Struct, frozen=True, eq=False):
    """One request's `Authorization`. `is_cached`: it was in hand before the request, and may have got old."""

    header: str
    is_cached: bool = False
    token: Token | None = None


class Authorization:
    """The login of one connection."""

    def __init__(self, approach: Origin, servers: TokenClient, timing: Timing) -> None:
        self._login = approach.login
        self._servers = servers
        self._tokens = Tokens(timing)
        self._host = approach.site.host
        self._advice = approach.advice
        self._scheme: Challenge | None = None

    @property
    def is_known(self) -> bool:
        """Whether it is known what the registry wants."""
        return self._scheme is not None or isinstance(self._login, TokenRequest | ReadyToken)

    def secrets(self) -> Iterator[Secret]:
        """What no message may show."""
        if isinstance(self._login, Credentials):
            yield self._login.password
        elif self._login is not None:
            yield from self._login.secrets
        yield from self._tokens.secrets()

    async def grant(self, scopes: Sequence[str], origin: URL | None) -> AuthHeader | None:
        """What a request for `scopes` carries; None while nothing has been asked for."""
        if isinstance(self._login, TokenRequest):
            return await self._by_request(self._login)
        if isinstance(self._login, ReadyToken):
            return AuthHeader(f"{self._login.token_type} {self._login.token.reveal()}")
        if self._scheme is None or origin is None:
            return None
        if self._scheme.scheme == "bearer":
            return await self._by_challenge(self._scheme, self._login, scopes, origin)
        if self._login is None:
            raise login_needed(self._host, wanted(scopes), self._advice)
        return AuthHeader(basic(self._login))

    def learn(self, challenges: Sequence[Challenge]) -> None:
        """Take the best of what the registry offers: a token, whose server is named, is preferred to the password.

        Raises `Permanent(denied)` where nothing is known here.
        """
        tokens = [challenge for challenge in challenges if challenge.scheme == "bearer"]
        password = next((challenge for challenge in challenges if challenge.scheme == "basic"), None)
        found = next(filter(_names_its_server, tokens), None) or password or next(iter(tokens), None)
        if found is None:
            names = (", ".join(sorted({challenge.scheme for challenge in challenges})) or "none")[:100]
            raise Permanent(
                ErrorCode.DENIED,
                f"registry {self._host} asks for a login in no way known here (offered: {names}; known: Basic, Bearer)",
            )
        self._scheme = found

    def refused(self, grant: AuthHeader, scopes: Sequence[str]) -> bool:
        """Note that the registry refused `grant`; whether another one may help. A token may: even a fresh one can be
        over by the time that it arrives."""
        if grant.token is None:
            return False
        self._tokens.forget(self._key(scopes), grant.token)
        return True

    async def _by_request(self, login: TokenRequest) -> AuthHeader:
        token, is_fresh = await self._tokens.get(self._key(()), lambda: self._servers.by_request(login))
        return AuthHeader(token.header, not is_fresh, token)

    async def _by_challenge(
        self, challenge: Challenge, login: Credentials | None, scopes: Sequence[str], origin: URL
    ) -> AuthHeader:
        token, is_fresh = await self._tokens.get(
            self._key(scopes), lambda: self._servers.by_challenge(challenge, scopes, login, origin)
        )
        return AuthHeader(token.header, not is_fresh, token)

    def _key(self, scopes: Sequence[str]) -> frozenset[str]:
        return frozenset() if isinstance(self._login, TokenRequest) else frozenset(scopes)


def _names_its_server(challenge: Challenge) -> bool:
    return http_url(challenge.parameters.get("realm", "")) is not None
