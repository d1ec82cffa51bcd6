"""One request to a registry before it is known at which of its origins, and who makes it.

The `Warning: 299` headers by which a registry speaks to people (distribution spec, "Warnings").

Single attempts at one site: the origin that answers, and the login that a request needs there. No retries.

A registry as one job speaks to it: endpoint, trust, login, pace, retries. Every request passes here.
"""

import re
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack, asynccontextmanager
from typing import Protocol

import aiohttp
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from imagejobd.model.errors import ErrorCode, Fault, Permanent, Temporary, parse_retry_after
from imagejobd.model.secrets import Redactor
from imagejobd.registry.address import exact_url, host_of, is_http, origin_of
from imagejobd.registry.auth import AuthHeader, Authorization, Challenge, TokenClient, parse_challenges
from imagejobd.registry.body import Outgoing
from imagejobd.registry.errors import NoAnswer, detail, is_busy, is_missing_content, one_line, refusal, translated
from imagejobd.registry.hosts import Identity, Origin
from imagejobd.registry.http import Answer, Transport
from imagejobd.registry.limits import PAUSE_MAX_S, HostLimiter, Permit, RetryBudget, Timing


class Request:
    """`target` is a path below an origin or an absolute URL; `scopes` are what a token for it must allow."""

    def __init__(
        self, method: str, target: str | URL, scopes: Sequence[str] = (), headers: Mapping[str, str] | None = None
    ) -> None:
        """Raises `Permanent(registry_unavailable)` for a target that cannot be one: registries name them."""
        self.method = method
        self.target = _target(target)
        self.scopes = tuple(scopes)
        self._headers = headers or {}

    @property
    def is_absolute(self) -> bool:
        return self.target.absolute

    def url(self, origin: URL) -> URL:
        """Where the request goes. A registry behind a TLS proxy may name itself with http: it is meant all the same.

        Raises `Permanent` where another host without TLS is named while the registry has it.
        """
        if not self.target.absolute:
            return origin.join(self.target)
        if origin.scheme == "https" and self.target.scheme == "http":
            if not self._is_same_host(origin):
                raise Permanent(
                    ErrorCode.REGISTRY_UNAVAILABLE,
                    f"registry {host_of(origin)}: it leads from TLS to plain HTTP at {host_of(self.target)}; refused",
                )
            return origin.join(exact_url(self.target.raw_path_qs))
        return self.target.with_user(None)

    def is_at(self, origin: URL) -> bool:
        """Whether the request goes to `origin` itself, and may carry its login."""
        return origin_of(self.url(origin)) == origin_of(origin)

    def headers(self, authorization: str | None) -> CIMultiDict[str]:
        """What is sent, with the login that was found for it."""
        headers = CIMultiDict(self._headers)
        if authorization is not None:
            headers["Authorization"] = authorization
        return headers

    def _is_same_host(self, origin: URL) -> bool:
        same_name = (self.target.host or "").lower() == (origin.host or "").lower()
        return same_name and self.target.explicit_port in (None, 80, origin.port)


def _target(target: str | URL) -> URL:
    try:
        url = exact_url(target) if isinstance(target, str) else target
        usable = is_http(url) if url.absolute else url.raw_path.startswith("/")
    except ValueError:
        usable = False
    if not usable:
        raise Permanent(ErrorCode.REGISTRY_UNAVAILABLE, "a registry named an address that is no http(s) URL")
    return url


WARNING_MAX_CHARS = 256
WARNINGS_MAX = 20

_WARNING = re.compile(r'299 \S+ "((?:[^"\\]|\\.)*)"')


class Warnings:
    """Tells each text once, and not too many of them."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._told: set[str] = set()

    def heard(self, headers: Iterable[str], redact: Callable[[str], str]) -> None:
        """Take the `Warning` headers of one answer. `redact` removes what no text may show."""
        for header in headers:
            for found in _WARNING.finditer(header[: 4 * WARNING_MAX_CHARS]):
                text = one_line(re.sub(r"\\(.)", r"\1", found[1]), WARNING_MAX_CHARS, redact)
                if text and text not in self._told and len(self._told) < WARNINGS_MAX:
                    self._told.add(text)
                    self._tell(text)


ERROR_MAX_BYTES = 1024 * 1024
# Logins to try after the first 401: the one that it asks for, or a token for one that got old; and one token more.
LOGINS_MAX = 2
# Distribution spec, "Determining Support": every registry has it, and challenges there.
PING = Request("GET", "/v2/")

Headers = CIMultiDictProxy[str]


class Session:
    """Requests to one site, each made once, or again with the login that the answer asked for.

    Raises faults only; see `Connection`.
    """

    def __init__(self, approach: Origin, transport: Transport, timing: Timing) -> None:
        self._host = approach.site.host
        self._approach = approach
        self._transport = transport
        self.authorization = Authorization(approach, TokenClient(transport, approach, timing), timing)
        origins = [URL(endpoint.origin) for endpoint in approach.endpoints]
        self._origin = origins[0] if len(origins) == 1 else None
        self._origins = origins

    async def ping(self) -> None:
        """Ask at the first origin what says nothing about anybody, as nobody. A refusal to speak TLS is an answer."""
        with self._translated():
            await self._transport.once(
                "GET",
                PING.url(self._origins[0]),
                {},
                b"",
                trust=self._approach.tls_for,
                body_max_bytes=ERROR_MAX_BYTES,
            )

    async def ask(self, request: Request, content: bytes, body_max_bytes: int) -> Answer:
        """A small request and its whole answer."""
        with self._translated():
            grant = await self._grant(request)
            answer = await self._reach(request, grant, content, body_max_bytes)
            for _ in range(LOGINS_MAX):
                if answer.status != 401:
                    break
                grant = await self._another_grant(request, grant, answer.url, answer.headers)
                if grant is None:
                    break
                answer = await self._reach(request, grant, content, body_max_bytes)
            return answer

    @asynccontextmanager
    async def open(self, request: Request) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer whose body has not been read."""
        async with AsyncExitStack() as stack:
            # Only the way in is translated: what a reader raises meanwhile is not the registry's fault.
            with self._translated():
                url = request.url(await self._settle())
                grant = await self._grant(request)
                response = await self._enter(stack, request, url, grant)
                for _ in range(LOGINS_MAX):
                    if response.status != 401:
                        break
                    grant = await self._another_grant(request, grant, response.url, response.headers)
                    if grant is None:
                        break
                    await stack.aclose()
                    response = await self._enter(stack, request, url, grant)
            yield response

    async def send(self, request: Request, outgoing: Outgoing) -> Answer:
        """A large request and its whole answer. Raises `Temporary` where a new login would have helped: the body is
        spent, and the next attempt has that login. Not so for a fresh token: bodies would be spent without end."""
        with self._translated():
            url = request.url(await self._settle())
            grant = await self._grant(request)
            answer = await self._transport.give(
                request.method,
                url,
                request.headers(grant.header if grant else None),
                outgoing,
                trust=self._approach.tls_for,
                body_max_bytes=ERROR_MAX_BYTES,
            )
            may_be_old = grant is None or grant.is_cached
            if (
                answer.status == 401
                and may_be_old
                and await self._another_grant(request, grant, answer.url, answer.headers)
            ):
                raise Temporary(
                    ErrorCode.REGISTRY_UNAVAILABLE, f"registry {self._host}: it wants a new login in mid-upload"
                )
        return answer

    def _translated(self) -> AbstractContextManager[None]:
        return translated(self._host, withheld=self._approach.withheld, scheme=self._approach.site.scheme)

    async def _enter(
        self, stack: AsyncExitStack, request: Request, url: URL, grant: AuthHeader | None
    ) -> aiohttp.ClientResponse:
        headers = request.headers(grant.header if grant else None)
        opened = self._transport.open(request.method, url, headers, trust=self._approach.tls_for)
        return await stack.enter_async_context(opened)

    async def _reach(self, request: Request, grant: AuthHeader | None, content: bytes, body_max_bytes: int) -> Answer:
        """Ask at the known origin, else at the first that lets itself be connected to."""
        if request.is_absolute:
            await self._settle()
        headers = request.headers(grant.header if grant else None)

        async def at(origin: URL) -> Answer:
            url = request.url(origin)
            trust = self._approach.tls_for
            if request.method in ("GET", "HEAD") and not content:
                return await self._transport.fetch(
                    request.method, url, headers, trust=trust, body_max_bytes=body_max_bytes
                )
            return await self._transport.once(
                request.method, url, headers, content, trust=trust, body_max_bytes=body_max_bytes
            )

        return await (at(self._origin) if self._origin else self._first(at))

    async def _first(self, at: Callable[[URL], Awaitable[Answer]]) -> Answer:
        """The answer of the first origin that lets itself be connected to, which is the one from then on."""
        *others, last = self._origins
        for origin in others:
            try:
                answer = await at(origin)
            except (NoAnswer, aiohttp.ClientConnectorError) as error:
                cause = error.cause if isinstance(error, NoAnswer) else error
                if not isinstance(cause, aiohttp.ClientConnectorError):
                    raise
                if (cause.host, cause.port) != (origin.host, origin.port):
                    raise  # it was reached, and led us elsewhere
                continue
            self._origin = origin
            return answer
        answer = await at(last)
        self._origin = last
        return answer

    async def _settle(self) -> URL:
        """The origin, found out by a ping where there are several to choose from."""
        if self._origin is None:
            await self._reach(PING, None, b"", ERROR_MAX_BYTES)
        if self._origin is None:
            raise RuntimeError("an answer came from no origin")
        return self._origin

    async def _grant(self, request: Request) -> AuthHeader | None:
        """The login that `request` carries; none for addresses that are not the registry's own."""
        if request.is_absolute and not request.is_at(await self._settle()):
            return None
        return await self.authorization.grant(request.scopes, self._origin)

    async def _another_grant(
        self, request: Request, grant: AuthHeader | None, responder: URL, headers: Headers
    ) -> AuthHeader | None:
        """The login to try after a 401; None where there is no other.

        What a redirect leads to has not seen our login, and may not say where to send it.
        """
        origin = await self._settle()
        if not request.is_at(origin) or origin_of(responder) != origin_of(origin):
            return None
        if grant is not None and not self.authorization.refused(grant, request.scopes):
            return None
        if not self.authorization.is_known:
            self.authorization.learn(_challenges(headers) or await self._ping_challenges(origin))
        return await self.authorization.grant(request.scopes, origin)

    async def _ping_challenges(self, origin: URL) -> list[Challenge]:
        """What the registry wants in general; nothing where its ping leads to somebody else."""
        answer = await self._reach(PING, None, b"", ERROR_MAX_BYTES)
        return _challenges(answer.headers) if origin_of(answer.url) == origin_of(origin) else []


def _challenges(headers: Headers) -> list[Challenge]:
    return parse_challenges(headers.getall("WWW-Authenticate", []))


class Stream(Protocol):
    """A response whose body has not been read; it ends with its context."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> CIMultiDictProxy[str]: ...

    @property
    def url(self) -> URL:
        """Who answered, after redirects."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives. Raises `Temporary` when it is cut or stalls."""
        ...


class Connection:
    """Requests to `site`. Holds its tokens; shares the pace of its host with every other connection to it.

    `target` is a path below the origin (`/v2/…`, may hold a query) or an absolute URL that the registry itself named
    (an upload's location), which gets no Authorization unless it is of this very origin.
    `scopes` are token scopes (`repository:team/app:pull,push`), the most important first.
    Statuses are the caller's to judge (see `refusal`): only what stays 429 or 5xx and network faults are
    retried here, within bounds, the whole host paused where it asked for that.
    All raise `Temporary(registry_unavailable)` for network faults, at once and with its `peer` while that is known to
    be down, `Permanent(denied)` where no login helps, `Permanent(egress)` for addresses that are off limits. `ask`
    finds out who is down; after `stream` and `send`, which have one attempt, `judged` does.
    """

    def __init__(
        self,
        approach: Origin,
        transport: Transport,
        pace: HostLimiter,
        timing: Timing,
        *,
        judged: Callable[[Fault], Awaitable[Fault]],
        mirrors: Callable[[], Sequence["Connection"]] = tuple,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`RegistryClient.connect` makes them. `judged` finds out who does not answer at all, once the tries of a
        request are over."""
        self.judged = judged
        self.site = approach.site
        self._approach = approach
        self._pace = pace
        self._timing = timing
        self._mirrors = mirrors
        self._mirrored: tuple[Connection, ...] | None = None
        self._notices = Warnings(warn)
        self._exchange = Session(approach, transport, timing)

    def __repr__(self) -> str:
        return f"Connection({self.host!r})"

    @property
    def host(self) -> str:
        """`name[:port]`, as image references have it."""
        return self.site.host

    @property
    def identity(self) -> Identity:
        """What makes two connections see the same: host, way, trust and login. Hashable; shows no secret."""
        return self._approach.identity

    @property
    def chunk_bytes(self) -> int | None:
        """The size of the pieces that blobs are uploaded in; None: in one."""
        return self._approach.hosts.chunk_bytes_for(self.host)

    def mirrors(self) -> Sequence["Connection"]:
        """Connections to the configured mirrors of this host, best first, with their own settings and logins."""
        if self._mirrored is None:
            self._mirrored = tuple(self._mirrors())
        return self._mirrored

    def refusal(self, answer: Answer, *, what: str) -> Fault:
        """The fault for an answer that is no success to `what`, without the secrets that a peer may echo."""
        told = detail(answer.body, self._redactor())
        wish = answer.headers.get("Retry-After")
        advice = None if self._approach.login else self._approach.advice
        return refusal(self.host, answer.status, what=what, detail=told, retry_after=wish, advice=advice)

    async def ask(
        self,
        method: str,
        target: str | URL,
        *,
        scopes: Sequence[str],
        headers: Mapping[str, str] = {},
        content: bytes = b"",
        body_max_bytes: int = ERROR_MAX_BYTES,
        is_retried: bool = True,
    ) -> Answer:
        """A small request and its whole answer, on the lane for small ones. Without `is_retried` it is made once."""
        request = Request(method, target, scopes, headers)
        persistence = RetryBudget(self._timing)
        while True:
            try:
                answer = await self._ask(request, content, body_max_bytes, persistence)
                wait_s = self._wait_s(answer, persistence) if is_retried else None
                if wait_s is None:
                    return answer
            except Temporary as fault:
                wait_s = None if fault.peer or not is_retried else persistence.wait_s(fault.retry_after_s)
                if wait_s is None:
                    raise await self.judged(fault) from fault.__cause__
            await self._timing.sleep(wait_s)

    async def ping(self) -> None:
        """Ask whether anybody is there, once; any answer will do."""
        async with self._pace.permit(self._pace.small):
            await self._exchange.ping()

    def stream(
        self, target: str | URL, *, scopes: Sequence[str], headers: Mapping[str, str] = {}
    ) -> AbstractAsyncContextManager[Stream]:
        """GET a large body, through redirects; one attempt. Its place in the host's pace is held until the end."""
        return self._stream(Request("GET", target, scopes, headers))

    async def send(
        self,
        method: str,
        target: str | URL,
        body: AsyncIterable[bytes],
        *,
        size_bytes: int,
        scopes: Sequence[str],
        headers: Mapping[str, str] = {},
    ) -> Answer:
        """PUT or PATCH a large body with its Content-Length; one attempt, because a body cannot be played twice.

        Raises `Temporary` when the peer takes no byte for the idle time-out. An answer that comes before the body's
        end is returned, and the body is not read further. So is a redirect that keeps the body (307, 308): to follow it
        takes the body once more.
        """
        outgoing = Outgoing(body, size_bytes)
        try:
            # Whatever else is said here, some registries try to parse (docker-registry: DIGEST_INVALID for a form).
            typed = CIMultiDict(headers)
            typed["Content-Type"] = "application/octet-stream"
            request = Request(method, target, scopes, typed)
            async with self._pace.permit(self._pace.writes) as permit:
                answer = await self._exchange.send(request, outgoing)
                self._note(permit, answer.status, answer.headers)
        except Exception:
            # It is no fault of the registry's, whatever it made of the connection.
            if outgoing.failure is not None:
                raise outgoing.failure from None
            raise
        finally:
            await outgoing.settle()
        _check_upload(self.host, answer, outgoing)
        return answer

    async def _ask(self, request: Request, content: bytes, body_max_bytes: int, persistence: RetryBudget) -> Answer:
        async with self._pace.permit(self._pace.small) as permit:
            persistence.begin()
            answer = await self._exchange.ask(request, content, body_max_bytes)
            self._note(permit, answer.status, answer.headers)
            return answer

    def _wait_s(self, answer: Answer, persistence: RetryBudget) -> float | None:
        """Seconds to wait before `answer` is asked for again; None where it stands.

        Raises `Temporary` where the registry wants to be left alone for longer than a request may wait.
        """
        if not is_busy(answer.status) or is_missing_content(answer.body):
            return None
        wish_s = self._wish_s(answer.headers)
        if wish_s is not None and wish_s > PAUSE_MAX_S:
            raise self.refusal(answer, what="it wants to be left alone")
        return persistence.wait_s(wish_s)

    @asynccontextmanager
    async def _stream(self, request: Request) -> AsyncIterator[Stream]:
        async with self._pace.permit(self._pace.reads) as permit, self._exchange.open(request) as response:
            self._note(permit, response.status, response.headers)
            yield _Body(response)

    def _note(self, permit: Permit, status: int, headers: Headers) -> None:
        permit.heard(status, self._wish_s(headers))
        if warnings := headers.getall("Warning", []):
            self._notices.heard(warnings, self._redactor())

    def _redactor(self) -> Redactor:
        return Redactor(self._exchange.authorization.secrets())

    def _wish_s(self, headers: Headers) -> float | None:
        return parse_retry_after(headers.get("Retry-After"), self._timing.now())


class _Body:
    """A `Stream`."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    @property
    def status(self) -> int:
        return self._response.status

    @property
    def headers(self) -> Headers:
        return self._response.headers

    @property
    def url(self) -> URL:
        return self._response.url

    async def chunks(self) -> AsyncIterator[bytes]:
        with translated(host_of(self._response.url)):
            async for chunk in self._response.content.iter_any():
                yield chunk


def _check_upload(host: str, answer: Answer, outgoing: Outgoing) -> None:
    """Refuse what an upload cannot be answered with."""
    if 300 <= answer.status < 400 and answer.status not in (307, 308):
        raise Permanent(
            ErrorCode.REGISTRY_UNAVAILABLE,
            f"registry {host}: it redirects an upload ({answer.status}), which is not followed",
        )
    if answer.status < 300 and not outgoing.is_given:
        raise Temporary(
            ErrorCode.REGISTRY_UNAVAILABLE,
            f"registry {host}: it answered {answer.status} before it had the whole upload",
        )
