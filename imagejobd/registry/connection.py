"""A registry as one job speaks to it: endpoint, trust, login, limits, retries. Every request passes here."""

import asyncio
import functools
import re
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from imagejobd.model.circuit import peer_name
from imagejobd.model.errors import ErrorCode, Fault, Permanent, Temporary, parse_retry_after
from imagejobd.model.secrets import Redactor, Secret
from imagejobd.model.text import one_line
from imagejobd.model.traffic import Traffic
from imagejobd.registry.address import exact_url, host_of, is_http, origin_of
from imagejobd.registry.auth import AuthHeader, Authorization, Challenge, parse_challenges
from imagejobd.registry.body import Outgoing
from imagejobd.registry.errors import NoAnswer, detail, is_busy, is_missing_content, refusal, translated, unavailable
from imagejobd.registry.hosts import Origin, RegistryTarget
from imagejobd.registry.http import Answer, Headers, HttpClient
from imagejobd.registry.limits import PAUSE_MAX_S, TRIES_MAX, AimdLimiter, HostLimiter, Timing, wait_s

ERROR_MAX_BYTES = 1024 * 1024
# After a first refusal: the login that it asks for, or a token for one that got old; and one more.
LOGINS_MAX = 2
WARNING_MAX_CHARS = 256
WARNINGS_MAX = 20
COOKIES_MAX = 20
COOKIES_MAX_CHARS = 8192
# Distribution spec, "Determining Support": every registry has it, and challenges there.
PING = URL("/v2/")

# Distribution spec, "Warnings": by these a registry speaks to people.
_WARNING = re.compile(r'299 \S+ "((?:[^"\\]|\\.)*)"')
_COOKIE = re.compile(r"\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)=([\x21\x23-\x2b\x2d-\x3a\x3c-\x7e]*)\s*(?:;|$)")


class Stream:
    """A response whose body has not been read; it ends with its context. `url` is who answered, after redirects."""

    def __init__(self, response: aiohttp.ClientResponse, count: Callable[[int], None]) -> None:
        self._count = count
        self.status = response.status
        self.headers = response.headers
        self.url = response.url
        self._content = response.content

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives. Raises `Temporary` when it is cut or stalls."""
        with translated(host_of(self.url)):
            async for chunk in self._content.iter_any():
                self._count(len(chunk))
                yield chunk


class Connection:
    """Requests to `site`. Holds its tokens and cookies; shares the limits of its host with every other connection.

    `target` is a path below the origin (`/v2/…`, may hold a query) or an absolute URL that the registry itself named
    (an upload's location), which gets no Authorization unless it is of this very origin.
    `scopes` are token scopes (`repository:team/app:pull,push`), the most important first.
    Statuses are the caller's to judge (see `refusal`): only what stays 429 or 5xx and network faults are
    retried here, `TRIES_MAX` times in all, the whole host paused where it asked for that.
    All raise `Temporary(registry_unavailable)` for network faults, at once and with its `peer` while that is known to
    be down, `Permanent(denied)` where no login helps, `Permanent(egress)` for addresses that are off limits. `ask`
    finds out who is down; after `stream` and `send` `diagnose` does.
    """

    def __init__(
        self,
        access: Origin,
        http: HttpClient,
        limiter: HostLimiter,
        timing: Timing,
        *,
        diagnose: Callable[[Fault], Awaitable[Fault]],
        mirrors: Callable[[], Sequence["Connection"]],
        warn: Callable[[str], None],
        traffic: Traffic,
    ) -> None:
        """`RegistryClient.connect` makes them. `diagnose` finds out who does not answer at all, once the tries of a
        request are over; `mirrors` connects to the configured mirrors, best first, with their own logins. What is read
        by `stream` is added to `traffic`."""
        self.site: RegistryTarget = access.site
        self.diagnose = diagnose
        self._access = access
        self._http = http
        self._limiter = limiter
        self._timing = timing
        self.mirrors = functools.cache(mirrors)
        self._warn = warn
        self._traffic = traffic
        self._warnings: set[str] = set()
        self._origins = list(access.urls)
        self._auth = Authorization(access, http, timing)
        self._ping_lock = asyncio.Lock()
        self._cookies: dict[str, Secret] = {}

    def __repr__(self) -> str:
        return f"Connection({self.host!r})"

    @property
    def host(self) -> str:
        """`name[:port]`, as image references have it."""
        return self.site.host

    @property
    def identity(self) -> Hashable:
        """What connections to one registry have in common, however they log in, within a tenant: what one takes its
        time over, another tenant must not wait for."""
        return self.site.principal.tenant, self.host

    @property
    def chunk_bytes(self) -> int | None:
        """The size of the pieces that blobs are uploaded in; None: in one."""
        return self._access.hosts.chunk_bytes_for(self.host)

    def refusal(self, answer: Answer, *, what: str) -> Fault:
        """The fault for an answer that is no success to `what`, without the secrets that a peer may echo."""
        reason = detail(answer.body, self._redactor())
        wish = answer.headers.get("Retry-After")
        advice = None if self._access.login else self._access.advice
        return refusal(self.host, answer.status, what=what, detail=reason, retry_after=wish, advice=advice)

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
        """A small request and its whole answer, through redirects. Without `is_retried` it is made once."""
        url = _usable(target)

        tries = 1 if is_retried else TRIES_MAX
        while True:
            try:
                async with AsyncExitStack() as stack:
                    response = await self._open(stack, self._limiter.small, method, url, scopes, headers, content)
                    with self._translated():
                        answer = await self._http.read(response, body_max_bytes)
                if not is_busy(answer.status) or is_missing_content(answer.body):
                    return answer
                wish_s = self._wish_s(answer.headers)
                if wish_s is not None and wish_s > PAUSE_MAX_S:
                    raise self.refusal(answer, what="it wants to be left alone")
                pause_s = wait_s(tries, wish_s, self._timing)
                if pause_s is None:
                    return answer
            except Temporary as fault:
                pause_s = None if fault.peer else wait_s(tries, fault.retry_after_s, self._timing)
                if pause_s is None:
                    raise await self.diagnose(fault) from fault.__cause__
            await self._timing.sleep(pause_s)
            tries += 1

    async def ping(self) -> None:
        """Ask at the first origin, once and as nobody, whether anybody is there; any answer will do."""
        async with self._limiter.slot(self._limiter.small):
            with self._translated():
                url = self._origins[0].join(PING)
                async with self._http.exchange("GET", url, {}, trust=self._access.tls_for):
                    pass

    def _count_read(self, size_bytes: int) -> None:
        self._traffic.add(peer_name(self.host, self.site.scheme), read=size_bytes)

    @asynccontextmanager
    async def stream(
        self, target: str | URL, *, scopes: Sequence[str], headers: Mapping[str, str] = {}
    ) -> AsyncIterator[Stream]:
        """GET a large body, through redirects; once, because who reads it counts the tries. Its slot is held until the
        end."""
        url = _usable(target)
        async with AsyncExitStack() as stack:
            response = await self._open(stack, self._limiter.reads, "GET", url, scopes, headers)
            yield Stream(response, self._count_read)

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

        A redirect that keeps the method is returned, for whoever can play the body again (see `redirect_target`).
        Raises `Temporary` when the peer takes no byte for the idle time-out, and where a new login would have helped:
        the next attempt has it. An answer that comes before the body's end is returned, and the body is not read on.
        """
        outgoing = Outgoing(body, size_bytes)
        # Whatever else is said here, some registries try to parse (docker-registry: DIGEST_INVALID for a form).
        typed = CIMultiDict(headers)
        typed["Content-Type"] = "application/octet-stream"
        try:
            url = _usable(target)
            with self._translated():
                login = await self._login(url, scopes)
                async with self._limiter.slot(self._limiter.writes) as report:
                    if login is not None and login.renew_at <= self._timing.clock():
                        login = await self._login(url, scopes)
                    url = self._resolve(url, await self._settled())
                    sent, trust = self._with_login(typed, url, login), self._access.tls_for
                    answer = await self._http.send(
                        method, url, sent, outgoing, trust=trust, body_max_bytes=ERROR_MAX_BYTES
                    )
                    self._keep_cookies(answer)
                    self._hear(report, answer)
                    # A fresh token that is refused would be so again: bodies would be spent without end.
                    is_fresh = login is not None and not login.is_cached and login.fault is None
                    is_late = answer.status == 401 and not is_fresh and await self._may_help(url, login, answer)
        except Exception:
            # It is no fault of the registry's, whatever it made of the connection.
            if outgoing.failure is not None:
                raise outgoing.failure from None
            raise
        finally:
            await outgoing.settle()
        if is_late:
            raise unavailable(Temporary, self.host, "it wants a new login in mid-upload")
        if 300 <= answer.status < 400 and answer.status not in (307, 308):
            why = f"it redirects an upload ({answer.status}), which is not followed"
            raise unavailable(Permanent, self.host, why)
        if answer.status < 300 and not outgoing.is_given:
            raise unavailable(Temporary, self.host, f"it answered {answer.status} before it had the whole upload")
        return answer

    async def _open(
        self,
        stack: AsyncExitStack,
        limiter: AimdLimiter,
        method: str,
        target: URL,
        scopes: Sequence[str],
        headers: Mapping[str, str],
        content: bytes = b"",
    ) -> aiohttp.ClientResponse:
        """An answer to a small request, with the login that it needs. It and the slot are held by `stack`."""
        # Only the way in is translated: what a reader raises meanwhile is not the registry's fault.
        with self._translated():
            for logins_left in range(LOGINS_MAX, -1, -1):
                # Before the slot, which others wait for: the token server may be another job's own, and slow.
                login = await self._login(target, scopes)
                report = await stack.enter_async_context(self._limiter.slot(limiter))
                response = await self._reach(stack, method, target, login, headers, content)
                url = self._resolve(target, self._origins[0])
                if not logins_left or not await self._may_help(url, login, response):
                    break
                await stack.aclose()
        self._hear(report, response)
        return response

    async def _reach(
        self,
        stack: AsyncExitStack,
        method: str,
        target: URL,
        login: AuthHeader | None,
        headers: Mapping[str, str],
        content: bytes = b"",
    ) -> aiohttp.ClientResponse:
        """Ask at the first origin that lets itself be connected to, which is the one from then on."""
        if target.absolute:
            await self._settled()
        *others, last = self._origins
        for origin in (*others, last):
            url = self._resolve(target, origin)
            sent = self._with_login(headers, url, login)
            opened = self._http.open(method, url, sent, trust=self._access.tls_for, content=content)
            try:
                response = await stack.enter_async_context(opened)
            except (NoAnswer, aiohttp.ClientConnectorError) as error:
                cause = error.cause if isinstance(error, NoAnswer) else error
                if origin is last or not isinstance(cause, aiohttp.ClientConnectorError):
                    raise
                if (cause.host, cause.port) != (origin.host, origin.port):
                    raise  # it was reached, and led us elsewhere
            else:
                self._origins = [origin]
                self._keep_cookies(response)
                return response
        raise RuntimeError("the last origin gives an answer or a fault")

    async def _settled(self) -> URL:
        """The origin, found out by a ping where there are several to choose from."""
        if len(self._origins) > 1:
            await self._pinged()
        return self._origins[0]

    async def _login(self, target: URL, scopes: Sequence[str]) -> AuthHeader | None:
        """The login that a request carries; none for addresses that are not the registry's own."""
        if target.absolute and not self._is_own(self._resolve(target, await self._settled())):
            return None
        # What is private is hidden from who does not log in: whoever can does so before the first request.
        if self._auth.is_unknown:
            async with self._ping_lock:
                if self._auth.is_unknown:
                    async with self._limiter.slot(self._limiter.small):
                        status, challenges = await self._pinged()
                    if status == 401 or (status == 403 and challenges):
                        self._auth.learn(challenges, self._origins[0])
                    elif not is_busy(status):
                        self._auth.learn_open()
        return await self._auth.header(scopes, self._origins[0] if len(self._origins) == 1 else None)

    async def _pinged(self) -> tuple[int, list[Challenge]]:
        """The status of the registry's ping, and how to log in there; nothing where that leads to somebody else."""
        async with AsyncExitStack() as stack:
            response = await self._reach(stack, "GET", PING, None, {})
            return (response.status, _challenges(response.headers)) if self._is_own(response.url) else (0, [])

    async def _may_help(self, url: URL, sent: AuthHeader | None, answer: Answer | aiohttp.ClientResponse) -> bool:
        """Whether to ask again, with another login, after an answer to a request to `url`.

        What a redirect leads to has not seen our login, and may not say where to send it.
        """
        if not self._is_own(url) or not self._is_own(answer.url):
            return False
        if sent is not None:
            if answer.status == 401:
                return self._auth.refused(sent)
            if answer.status != 403:
                self._auth.accepted(sent)
            return False
        if self._auth.is_known:
            return answer.status in (401, 403, 404)  # what others have learnt meanwhile
        challenges = _challenges(answer.headers)
        if answer.status == 401 or (answer.status == 403 and challenges and self._auth.has_password):
            self._auth.learn(challenges or (await self._pinged())[1], self._origins[0])
            return True
        return answer.status in (403, 404) and self._auth.volunteers()

    def _resolve(self, target: URL, origin: URL) -> URL:
        """Where a request goes. A registry behind a TLS proxy may name itself with http: it is meant all the same.

        Raises `Permanent` where another host without TLS is named while the registry has it.
        """
        if not target.absolute:
            return origin.join(target)
        if origin.scheme == "https" and target.scheme == "http":
            is_same_name = (target.host or "").lower() == (origin.host or "").lower()
            if is_same_name and target.explicit_port in (None, 80, origin.port):
                return origin.join(exact_url(target.raw_path_qs))
            why = f"it leads from TLS to plain HTTP at {host_of(target)}; refused"
            raise unavailable(Permanent, host_of(origin), why)
        return target.with_user(None)

    def _is_own(self, url: URL) -> bool:
        return origin_of(url) == origin_of(self._origins[0])

    def _with_login(self, headers: Mapping[str, str], url: URL, login: AuthHeader | None) -> CIMultiDict[str]:
        sent = CIMultiDict(headers)
        if login is not None:
            sent["Authorization"] = login.value.reveal()
        if self._cookies and self._is_own(url):
            sent["Cookie"] = "; ".join(f"{name}={value.reveal()}" for name, value in self._cookies.items())
        return sent

    def _keep_cookies(self, answer: Answer | aiohttp.ClientResponse) -> None:
        """Some registries tie a login, or an upload, to a session. A cookie is a secret, for who has set it only."""
        if not self._is_own(answer.url):
            return
        for header in answer.headers.getall("Set-Cookie", []):
            if cookie := _COOKIE.match(header):
                self._cookies.pop(cookie[1], None)
                chars = sum(len(name) + len(value.reveal()) for name, value in self._cookies.items())
                if cookie[2] and len(self._cookies) < COOKIES_MAX and chars + len(cookie[0]) <= COOKIES_MAX_CHARS:
                    self._cookies[cookie[1]] = Secret(cookie[2])

    def _hear(self, report: Callable[[int, float | None], None], answer: Answer | aiohttp.ClientResponse) -> None:
        """Report to the limits, and tell each warning once, and not too many of them."""
        report(answer.status, self._wish_s(answer.headers))
        for header in answer.headers.getall("Warning", []):
            for warning in _WARNING.finditer(header[: 4 * WARNING_MAX_CHARS]):
                text = one_line(self._redactor()(re.sub(r"\\(.)", r"\1", warning[1])), WARNING_MAX_CHARS)
                if text and text not in self._warnings and len(self._warnings) < WARNINGS_MAX:
                    self._warnings.add(text)
                    self._warn(text)

    def _redactor(self) -> Redactor:
        return Redactor([*self._auth.secrets(), *self._cookies.values()])

    def _wish_s(self, headers: Headers) -> float | None:
        return parse_retry_after(headers.get("Retry-After"), self._timing.now())

    def _translated(self) -> AbstractContextManager[None]:
        return translated(self.host, withheld=self._access.withheld, scheme=self.site.scheme)


def _usable(target: str | URL) -> URL:
    """Raises `Permanent(registry_unavailable)` for a target that cannot be one: registries name them."""
    try:
        url = exact_url(target) if isinstance(target, str) else target
        is_usable = is_http(url) if url.absolute else url.raw_path.startswith("/")
    except ValueError:
        is_usable = False
    if not is_usable:
        raise Permanent(ErrorCode.REGISTRY_UNAVAILABLE, "a registry named an address that is no http(s) URL")
    return url


def _challenges(headers: Headers) -> list[Challenge]:
    return parse_challenges(headers.getall("WWW-Authenticate", []))
