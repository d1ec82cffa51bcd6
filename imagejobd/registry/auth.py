"""Who we are at one registry: the scheme that it asks for, learnt once, the tokens, and the header for each request.

A password goes to the registry's own origin or to the token server that the registry names, and never from a registry
on TLS to a token server without it. What a request sends to its own token server never goes on to another origin.
"""

import asyncio
import copy
import datetime as dt
import math
import re
from collections.abc import Awaitable, Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from yarl import URL

from imagejobd.model.errors import ErrorCode, Fault, Permanent, Temporary, invalid
from imagejobd.model.secrets import Credentials, Redactor, Secret
from imagejobd.registry.address import basic, exact_url, host_of, http_url
from imagejobd.registry.errors import detail, is_busy, login_needed, no_token, refusal, translated
from imagejobd.registry.hosts import Origin, ReadyToken, TokenRequest
from imagejobd.registry.http import Answer, HttpClient
from imagejobd.registry.limits import Timing

HEADER_MAX_CHARS = 8 * 1024
TOKEN_ANSWER_MAX_BYTES = 256 * 1024
# "A token should never be returned with less than 60 seconds to live" (distribution, "token authentication").
LIFETIME_MIN_S = 60.0
LIFETIME_MAX_S = 24 * 3600.0
RENEW_EARLY_MAX_S = 10.0
RENEW_EARLY_SHARE = 0.1

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 (RFC 9110 §5.6.2, not a password)
_CHALLENGE_ITEM = re.compile(
    rf"[\s,]*(?:"
    rf'(?P<name>{_TOKEN})\s*=\s*(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<bare>[^\s,"]+))'
    rf"|(?P<scheme>{_TOKEN})(?![^\s,]|\s*=)(?:[ \t]+[A-Za-z0-9._~+/-]+=*(?=\s*(?:,|$)))?"
    rf")",
    re.DOTALL,
)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_TOKEN_NAME = re.compile(_TOKEN)
_HEADER_SAFE = re.compile(r"[\x21-\x7e]+")
_HEADER_VALUE = re.compile(r"[\x20-\x7e\x80-\xff]*")
# The HTTP library decides these, or they decide where a request ends.
_OWN_HEADERS = frozenset({"host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer"})


class Challenge(msgspec.Struct, frozen=True):
    """One way to authenticate: `scheme` and the names in `parameters` are lower case."""

    scheme: str
    parameters: Mapping[str, str]


BASIC = Challenge("basic", {})
# The registry has been asked, and wants nothing in general; and then the password is sent all the same.
OPEN = Challenge("", {})
VOLUNTEERED = Challenge("basic", {})


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """The challenges of all `WWW-Authenticate` headers of one response (RFC 9110 §11.6.1), in order.

    Several may share a header, parameters may be quoted or not, and commas separate both. What cannot be understood is
    left out; nothing here raises, because the header is whatever the peer made of it.
    """
    challenges: list[tuple[str, dict[str, str]]] = []
    for header in headers:
        first, position = len(challenges), 0
        header = _encodable(header[:HEADER_MAX_CHARS])
        while item := _CHALLENGE_ITEM.match(header, position):
            position = item.end()
            if item["scheme"]:
                challenges.append((item["scheme"].lower(), {}))
            elif len(challenges) > first:
                value = item["bare"] if item["bare"] is not None else _ESCAPE.sub(r"\1", item["quoted"])
                # The first of two wins: a value must not be replaced by what follows it.
                challenges[-1][1].setdefault(item["name"].lower(), value)
    return [Challenge(scheme, parameters) for scheme, parameters in challenges]


def _encodable(header: str) -> str:
    """Bytes that are no UTF-8 reach us as half characters, which nothing can send on; they are Latin-1 (RFC 9110
    §5.5)."""
    try:
        header.encode()
    except UnicodeEncodeError:
        return header.encode(errors="surrogateescape").decode("latin-1")
    return header


class TokenAnswer(msgspec.Struct):
    """Servers of Docker's age say `token`, those of OAuth2 `access_token`, some both; times are optional."""

    token: str | None = None
    access_token: str | None = None
    expires_in: Any = None
    issued_at: Any = None


def renew_at(answer: TokenAnswer, timing: Timing) -> float:
    """When to fetch another one: a little before the end of a life that is at least `LIFETIME_MIN_S` long."""
    expires_in_s = answer.expires_in if isinstance(answer.expires_in, int | float) else 0.0
    life_s = min(max(expires_in_s, LIFETIME_MIN_S), LIFETIME_MAX_S)
    try:
        issued = dt.datetime.fromisoformat(answer.issued_at)
        age_s = (timing.now() - (issued if issued.tzinfo else issued.replace(tzinfo=dt.UTC))).total_seconds()
    except (TypeError, ValueError, OverflowError):
        age_s = 0.0
    # A server whose clock goes wrong would otherwise make every token an expired one.
    rest_s = life_s - age_s if 0 < age_s < life_s else life_s
    return timing.clock() + rest_s - min(RENEW_EARLY_MAX_S, rest_s * RENEW_EARLY_SHARE)


class AuthHeader(msgspec.Struct, frozen=True, eq=False):
    """A value of `Authorization`; that of a token is renewed at `renew_at`, a time of `Timing.clock`. `is_cached`: it
    was in hand before the request, and may have got old. `fault` is why the password itself is sent where a token was
    asked for."""

    value: Secret
    renew_at: float = math.inf
    is_cached: bool = False
    fault: Fault | None = None


class Authorization:
    """The login of one connection. Methods raise `Permanent(denied)` where there is no way in, `Temporary` where a
    token server cannot answer."""

    def __init__(self, access: Origin, http: HttpClient, timing: Timing) -> None:
        self._access = access
        self._login = access.login
        self._host = access.site.host
        self._http = http
        self._timing = timing
        # By what they were asked for.
        self._tokens: dict[Hashable, AuthHeader] = {}
        self._locks: dict[Hashable, asyncio.Lock] = {}
        self._failures: dict[Hashable, tuple[int, Fault]] = {}
        self._failure_count = 0
        self._scheme: Challenge | None = None
        # Instead of which the password is sent, because its token server gave no answer.
        self._unanswered: Challenge | None = None
        self._has_volunteered = False
        # What the registry was known to want before that: nothing, or (None) not even that.
        self._asked: Challenge | None = None

    @property
    def is_unknown(self) -> bool:
        """Whether it matters what the registry wants, and is not known yet."""
        return self._scheme is None and self.has_password

    @property
    def is_known(self) -> bool:
        """Whether there is a way to log in."""
        return self._scheme is not None and self._scheme is not OPEN

    @property
    def has_password(self) -> bool:
        return isinstance(self._login, Credentials)

    def secrets(self) -> Iterator[Secret]:
        """What no message may show."""
        if isinstance(self._login, Credentials):
            yield self._login.password
        elif self._login is not None:
            yield from self._login.secrets
        yield from (Secret(token.value.reveal().rpartition(" ")[2]) for token in self._tokens.values())

    async def header(self, scopes: Sequence[str], origin: URL | None) -> AuthHeader | None:
        """What a request for `scopes` carries; None while nothing has been asked for."""
        if isinstance(login := self._login, TokenRequest):
            return await self._token((), lambda: self._fetch_requested(login))
        if isinstance(login, ReadyToken):
            return AuthHeader(Secret(f"{login.token_type} {login.token.reveal()}"))
        scheme = self._scheme
        if scheme is None or scheme is OPEN or origin is None:
            return None
        if scheme.scheme == "basic":
            if login is None:
                raise login_needed(self._host, wanted(scopes), self._access.advice)
            return AuthHeader(Secret(basic(login)))
        try:
            return await self._token(frozenset(scopes), lambda: self._fetch_challenged(scheme, scopes, origin))
        except _NoTokenServer as nobody:
            if login is None:
                raise nobody.fault from nobody
            return AuthHeader(Secret(basic(login)), fault=nobody.fault)

    def learn(self, challenges: Sequence[Challenge], origin: URL) -> None:
        """Take the best of what the registry offers: a token, whose server is named, is preferred to the password;
        which is sent where it is refused without a word, too."""
        tokens = [challenge for challenge in challenges if challenge.scheme == "bearer"]
        password = next((challenge for challenge in challenges if challenge.scheme == "basic"), None)
        if not challenges and self.has_password:
            password = BASIC
        usable = (token for token in tokens if realm_of(token, origin) is not None)
        scheme = next(usable, None) or password or next(iter(tokens), None)
        if scheme is None:
            names = (", ".join(sorted({challenge.scheme for challenge in challenges})) or "none")[:100]
            why = f"asks for a login in no way known here (offered: {names}; known: Basic, Bearer)"
            raise Permanent(ErrorCode.DENIED, f"registry {self._host} {why}")
        self._scheme = scheme

    def learn_open(self) -> None:
        """The registry has been asked, and wants no login."""
        self._scheme = OPEN

    def volunteers(self) -> bool:
        """Whether to send a login that nobody asked for from now on, because what hides may be private; once."""
        if self.is_known or self._has_volunteered or not self.has_password:
            return False
        self._has_volunteered = True
        self._scheme, self._asked = VOLUNTEERED, self._scheme
        return True

    def refused(self, sent: AuthHeader) -> bool:
        """Note that the registry refused `sent`; whether to ask again. A token may help: even a fresh one can be over
        by the time that it arrives."""
        if sent.fault is not None:
            raise copy.copy(sent.fault)
        if sent.renew_at < math.inf:  # a token
            self._tokens = {key: token for key, token in self._tokens.items() if token.value != sent.value}
            return True
        if self._unanswered is not None:
            self._scheme, self._unanswered = self._unanswered, None  # the password was enough elsewhere only
        elif self._scheme is VOLUNTEERED:
            self._scheme = self._asked
        # The password counts where it was asked for; elsewhere what is said without it does.
        return self.is_unknown or (self._scheme is not None and self._scheme.scheme != "basic")

    def accepted(self, sent: AuthHeader) -> None:
        """Note that the registry did not refuse `sent`."""
        if sent.fault is not None and self._scheme is not BASIC:
            self._scheme, self._unanswered = BASIC, self._scheme  # who has the password needs no token server

    async def _token(self, key: Hashable, fetch: Callable[[], Awaitable[AuthHeader]]) -> AuthHeader:
        """A token for `key`. All who wait share one fetch, and its failure."""
        before = self._failure_count
        # Who wants something else does not wait for this one's server.
        async with self._locks.setdefault(key, asyncio.Lock()):
            token = self._tokens.get(key)
            if token is not None and self._timing.clock() < token.renew_at:
                return msgspec.structs.replace(token, is_cached=True)
            number, fault = self._failures.get(key, (0, None))
            if fault is not None and number > before:
                raise copy.copy(fault)
            try:
                token = self._tokens[key] = await fetch()
            except Fault as fault:
                self._failure_count += 1
                self._failures[key] = (self._failure_count, fault)
                raise
            return token

    async def _fetch_challenged(self, challenge: Challenge, scopes: Sequence[str], origin: URL) -> AuthHeader:
        """A token for all of `scopes`, in their order, from the server that the registry names."""
        realm = realm_of(challenge, origin)
        login = self._login if isinstance(self._login, Credentials) else None
        if realm is None:
            why = f"registry {self._host}: its challenge names no token server"
            raise _NoTokenServer(Permanent(ErrorCode.DENIED, why))
        if origin.scheme == "https" and realm.scheme != "https":
            why = f"its token server {host_of(realm)} has no TLS while the registry has; refused"
            raise Permanent(ErrorCode.DENIED, f"registry {self._host}: {why}")
        query = [("service", challenge.parameters["service"])] if "service" in challenge.parameters else []
        try:
            answer = await self._ask(
                realm.extend_query([*query, *(("scope", scope) for scope in scopes)]),
                {"Authorization": basic(login)} if login else {},
            )
        except Temporary as silence:
            raise _NoTokenServer(silence) from silence
        if answer.status in (401, 403) and login is None:
            raise login_needed(self._host, wanted(scopes), self._access.advice)
        return self._read_token("Bearer", answer, host_of(realm), [login.password] if login else [])

    async def _fetch_requested(self, login: TokenRequest) -> AuthHeader:
        """The token that a request says how to get. Headers and body hold what nobody else may see."""
        url = http_url(login.url.reveal())
        if url is None:
            raise invalid(f"registry {self._host}: the address of its token server is no http(s) URL")
        if not _TOKEN_NAME.fullmatch(login.token_type):
            raise invalid(f"registry {self._host}: the type of its token is no name of an authentication scheme")
        headers = _headers_of(login, url, self._host)
        content = login.body.reveal().encode() if login.body else b""
        answer = await self._ask(url.with_user(None), headers, content, may_leave_origin=False)
        return self._read_token(login.token_type, answer, host_of(url), login.secrets)

    async def _ask(
        self, url: URL, headers: Mapping[str, str], content: bytes = b"", *, may_leave_origin: bool = True
    ) -> Answer:
        with translated(host_of(url)):
            trust = self._access.tls_for
            async with self._http.open(
                "GET", url, headers, trust=trust, content=content, may_leave_origin=may_leave_origin
            ) as response:
                return await self._http.read(response, TOKEN_ANSWER_MAX_BYTES)

    def _read_token(self, token_type: str, answer: Answer, host: str, secrets: Sequence[Secret]) -> AuthHeader:
        if answer.status != 200:
            reason = detail(answer.body, Redactor(secrets))
            if not is_busy(answer.status):
                raise no_token(host, self._host, answer.status, reason)
            wish = answer.headers.get("Retry-After")
            raise refusal(host, answer.status, what=f"token for {self._host}", detail=reason, retry_after=wish)
        try:
            decoded = msgspec.json.decode(answer.body, type=TokenAnswer)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            decoded = TokenAnswer()
        token = decoded.token or decoded.access_token or ""
        if not _HEADER_SAFE.fullmatch(token):
            raise Temporary(ErrorCode.REGISTRY_UNAVAILABLE, f"token server {host}: its answer holds no usable token")
        return AuthHeader(Secret(f"{token_type} {token}"), renew_at(decoded, self._timing))


class _NoTokenServer(Fault):
    """Nobody is where the challenge leads; `fault` says why."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.code, fault.message)
        self.fault = fault


def realm_of(challenge: Challenge, origin: URL) -> URL | None:
    """The token server that a challenge of `origin` names, maybe by a path of its own; None for no usable address."""
    realm = challenge.parameters.get("realm", "")
    try:
        url = http_url(str(origin.join(exact_url(realm))) if realm.startswith("/") else realm)
    except ValueError:
        return None
    return url.with_user(None).with_fragment(None) if url else None


def wanted(scopes: Sequence[str]) -> str:
    """The repository that the first scope speaks of."""
    return scopes[0].split(":")[1] if scopes and scopes[0].count(":") >= 2 else "what was asked"


def _headers_of(login: TokenRequest, url: URL, host: str) -> dict[str, str]:
    """The headers of a request's own token server; a login in its URL is one of them, as curl has it."""
    headers = {"Authorization": basic(Credentials(url.user, Secret(url.password or "")))} if url.user else {}
    if login.body:
        headers["Content-Type"] = "application/json"
    for name, value in login.headers.items():
        if not _TOKEN_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value.reveal()):
            raise invalid(f"registry {host}: a header for its token server cannot be sent as it is")
        if name.lower() not in _OWN_HEADERS:
            headers = {known: text for known, text in headers.items() if known.lower() != name.lower()}
            headers[name] = value.reveal()
    return headers
