"""One HTTP exchange with a registry, its storage or its token server: redirected with care, not interpreted.

Refuses: bodies beyond the caller's bound, more than `REDIRECTS_MAX` redirects, and one from TLS to plain HTTP.
`Authorization` and `Cookie` stay with the origin that they were meant for. A body has no total time limit, only an idle
one. The rule over addresses holds for all that is connected to on a user's or peer's word; the environment's proxy is
the operator's own word, and is connected to wherever it is.
"""

import asyncio
import functools
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import aiohttp
import msgspec
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import RawResponseMessage
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import StreamReader
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from imagejobd import __version__
from imagejobd.model.circuit import Circuits
from imagejobd.model.egress import Egress
from imagejobd.model.errors import ErrorCode, Permanent, Temporary
from imagejobd.model.resolver import Resolver
from imagejobd.registry.address import basic, exact_url, host_of, http_url, numeric_address, origin_of, peer_of
from imagejobd.registry.body import Attempt, Outgoing
from imagejobd.registry.errors import NoAnswer, unavailable
from imagejobd.registry.proxies import Proxies

CONNECT_TIMEOUT_S = 10.0  # to one address
REACH_TIMEOUT_S = 30.0  # name, all its addresses, proxy, TLS
IDLE_TIMEOUT_S = 30.0
# What is read whole ends within so many idle time-outs: a byte now and then would hold a job, and a slot, for days.
ANSWER_IDLE_TIMEOUTS_MAX = 10
REDIRECTS_MAX = 5
INFORMATIONAL_MAX = 20
READ_BUFFER_BYTES = 64 * 1024
# Storage is redirected to with signed URLs of several kilobytes.
HEADER_MAX_BYTES = 32 * 1024
# A host that twice in a row dropped a connection that was to be used again gets a fresh one each time, for so long.
DROPS_MAX = 2
FRESH_ONLY_S = 600.0
DROPPING_HOSTS_MAX = 1024

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_REDIRECTS_WITH_METHOD = frozenset({307, 308})
_SECRET_HEADERS = frozenset({"authorization", "cookie"})
# What the task that asks is at, for the connection that it gets.
_ATTEMPT: ContextVar[Attempt] = ContextVar("_ATTEMPT")

Headers = CIMultiDictProxy[str]
Trust = Callable[[URL], ssl.SSLContext]
"""What to trust at the host of an address."""


class Answer(msgspec.Struct, frozen=True):
    """A response whose body has been read. `url` is who answered, after redirects."""

    url: URL
    status: int
    headers: Headers
    body: bytes


class HttpClient:
    """Sessions with registries; open it inside the event loop that uses it.

    `egress` decides which addresses may be reached; `circuits` hears who answers. All methods raise the HTTP library's
    errors and `NoAnswer` (see `errors.translated`), `Permanent` for what this module refuses, and at once what
    `Circuits.check` raises.
    """

    def __init__(
        self, egress: Egress, proxies: Proxies, *, circuits: Circuits, idle_timeout_s: float, resolver: Resolver
    ) -> None:
        self._egress = egress
        self._circuits = circuits
        self._proxies = proxies
        self._idle_timeout_s = idle_timeout_s
        self._timeout = aiohttp.ClientTimeout(None, REACH_TIMEOUT_S, idle_timeout_s, CONNECT_TIMEOUT_S)
        self._timeout_with_body = aiohttp.ClientTimeout(None, REACH_TIMEOUT_S, None, CONNECT_TIMEOUT_S)
        self._resolver = resolver
        self._sessions: dict[tuple[bool, bool], aiohttp.ClientSession] = {}
        self._drops: dict[str, int] = {}
        self._fresh_until: dict[str, float] = {}

    @asynccontextmanager
    async def open(
        self,
        method: str,
        url: URL,
        headers: Mapping[str, str],
        *,
        trust: Trust,
        content: bytes = b"",
        may_leave_origin: bool = True,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a small request, through redirects; the answer's body is not read. What is no GET or HEAD follows those
        redirects only that keep method and body (RFC 9110 §15.4)."""
        followed = _REDIRECTS if method in ("GET", "HEAD") else _REDIRECTS_WITH_METHOD
        for _ in range(REDIRECTS_MAX + 1):
            body = Outgoing(_whole(content), len(content)) if content else None
            async with self.exchange(method, url, headers, trust=trust, body=body) as response:
                is_followed = response.status in followed
                target = redirect_target(url, response.status, response.headers) if is_followed else None
                if target is None:
                    yield response
                    return
                # Its body is not waited for. Where it has come already, the connection is used again.
            if origin_of(target) != origin_of(url):
                if not may_leave_origin:
                    raise Permanent(ErrorCode.DENIED, f"{host_of(url)}: it redirects to {host_of(target)}; refused")
                headers = {name: value for name, value in headers.items() if name.lower() not in _SECRET_HEADERS}
            url = target
        raise unavailable(Permanent, host_of(url), f"more than {REDIRECTS_MAX} redirects")

    async def send(
        self, method: str, url: URL, headers: Mapping[str, str], body: Outgoing, *, trust: Trust, body_max_bytes: int
    ) -> Answer:
        """Send a request with a large body and read the answer, even if that is a redirect.

        An answer that comes first ends the body. When the body raises (see `Outgoing.failure`), the connection is
        closed, so that the peer has no whole request.
        """
        try:
            async with self.exchange(method, url, headers, trust=trust, body=body) as response:
                return await self.read(response, body_max_bytes)
        except BaseException:
            body.abort()
            raise

    @asynccontextmanager
    async def exchange(
        self, method: str, url: URL, headers: Mapping[str, str], *, trust: Trust, body: Outgoing | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request and the header of its answer, whatever that is."""
        proxy = self._proxies.find(url)
        sent, to_proxy = CIMultiDict(headers), {}
        if proxy is not None:
            if address := numeric_address((url.host or "").rstrip(".")):
                self._egress.check(address)
            # For plain HTTP the headers that a proxy gets of its own are those of the request.
            to_proxy = {"Proxy-Authorization": basic(proxy.credentials)} if proxy.credentials else {}
            if url.scheme == "http":
                sent.update(to_proxy)
                to_proxy = {}
        # A server that knows no body of a GET takes it for the next request, and answers that to whoever comes next.
        is_fresh = method == "GET" and body is not None
        is_fresh |= asyncio.get_running_loop().time() < self._fresh_until.get(host_of(url), 0.0)
        session = self._session(is_proxied=proxy is not None, is_fresh=is_fresh)
        async with self._attempt(peer_of(proxy.url if proxy else url), host_of(url), body):
            response = await session.request(
                method,
                url,
                headers=sent,
                data=body,
                ssl=trust(url),
                timeout=self._timeout if body is None else self._timeout_with_body,
                allow_redirects=False,
                proxy=proxy.url if proxy else None,
                proxy_headers=to_proxy or None,
            )
        async with response:
            yield response

    async def read(self, response: aiohttp.ClientResponse, max_bytes: int) -> Answer:
        """Read a body of at most `max_bytes`. Raises `Permanent(too_large)`, and `TimeoutError` where it stalls or
        comes by drops."""
        body, loop = bytearray(), asyncio.get_running_loop()
        end = loop.time() + ANSWER_IDLE_TIMEOUTS_MAX * self._idle_timeout_s
        async with asyncio.timeout(self._idle_timeout_s) as deadline:
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > max_bytes:
                    message = f"registry {host_of(response.url)}: it answered with more than {max_bytes} bytes"
                    raise Permanent(ErrorCode.TOO_LARGE, message)
                deadline.reschedule(min(loop.time() + self._idle_timeout_s, end))
        return Answer(response.url, response.status, response.headers, bytes(body))

    async def close(self) -> None:
        for session in self._sessions.values():
            await session.close()
        await self._resolver.close()

    @asynccontextmanager
    async def _attempt(self, peer: str, host: str, body: Outgoing | None) -> AsyncIterator[None]:
        """Note whether `peer` answers meanwhile, with whatever. Raises `NoAnswer`, `Temporary` where it was its turn to
        take a body, and what `Circuits.check` raises."""
        self._circuits.check(peer)
        deadline = asyncio.timeout(None)
        attempt = Attempt(deadline, self._idle_timeout_s, body)
        is_dropped = False
        try:
            async with deadline:
                _ATTEMPT.set(attempt)
                try:
                    yield
                except BaseException:
                    if body is not None:
                        body.abort()
                    raise
        except (aiohttp.ClientSSLError, aiohttp.ClientResponseError):
            self._circuits.answered(peer)
            raise
        except (aiohttp.ClientOSError, aiohttp.ServerConnectionError, OSError) as error:
            self._circuits.abandoned(peer)
            if attempt.stall:
                raise unavailable(Temporary, host, attempt.stall) from None
            is_dropped = not isinstance(error, aiohttp.ClientConnectorError | TimeoutError)
            raise NoAnswer(peer, error) from error
        except BaseException:
            self._circuits.abandoned(peer)
            raise
        else:
            self._circuits.answered(peer)
        finally:
            attempt.stop()
            self._count_drops(host, attempt.connections - 1 + (is_dropped and attempt.is_reused), attempt.is_reused)

    def _count_drops(self, host: str, drops: int, is_reused: bool) -> None:
        """Some servers close after every answer and do not say so. Of a request the HTTP library makes a second one by
        itself where that is safe, which shows in the number of connections."""
        if drops <= 0:
            if is_reused:
                self._drops.pop(host, None)
            return
        self._drops[host] = drops = self._drops.pop(host, 0) + drops
        if drops >= DROPS_MAX:
            del self._drops[host]
            self._fresh_until[host] = asyncio.get_running_loop().time() + FRESH_ONLY_S
        for hosts in (self._drops, self._fresh_until):
            if len(hosts) > DROPPING_HOSTS_MAX:
                del hosts[next(iter(hosts))]

    def _session(self, *, is_proxied: bool, is_fresh: bool) -> aiohttp.ClientSession:
        """`is_fresh`: no connection is used twice."""
        if session := self._sessions.get((is_proxied, is_fresh)):
            return session
        connector = aiohttp.TCPConnector(
            limit=0,
            happy_eyeballs_delay=None,
            resolver=self._resolver,
            force_close=is_fresh,
            socket_factory=None if is_proxied else self._egress.open_socket,
        )
        connector._factory = functools.partial(_OneAnswer, loop=asyncio.get_running_loop())  # type: ignore[assignment]
        session = self._sessions[is_proxied, is_fresh] = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            # Bytes are hashed as they come: no content coding.
            headers={"User-Agent": f"imagejobd/{__version__}", "Accept-Encoding": "identity"},
            auto_decompress=False,
            read_bufsize=READ_BUFFER_BYTES,
            max_line_size=HEADER_MAX_BYTES,
            max_field_size=HEADER_MAX_BYTES,
        )
        return session


def redirect_target(url: URL, status: int, headers: Headers) -> URL | None:
    """Where an answer of `url` sends us; None where it does not. Raises `Permanent` where we do not go."""
    if status not in _REDIRECTS or "Location" not in headers:
        return None
    try:
        target = http_url(str(url.join(exact_url(headers["Location"]))))
    except ValueError:
        target = None
    if target is None:
        raise unavailable(Permanent, host_of(url), "it redirects to no usable URL")
    if url.scheme == "https" and target.scheme != "https":
        why = f"it redirects from TLS to plain HTTP at {host_of(target)}, which is refused"
        raise unavailable(Permanent, host_of(url), why)
    # A user and a password in it would be sent as a login; nobody gave them to us.
    return target.with_user(None)


class _OneAnswer(ResponseHandler):
    """A connection that is asked for one answer at a time.

    The HTTP library keeps what comes unasked on an idle connection, and takes it for the answer to the next request,
    which is another tenant's: one who can make a server say more than it was asked (a body after HEAD is enough) would
    answer for it. It also waits through informational answers (RFC 9110 §15.2) without end.
    """

    _headers_left = 0
    _is_used = False

    def set_response_params(self, **params: Any) -> None:
        """A request is about to be sent, or CONNECT to a proxy, which has no time-out of its own."""
        self._headers_left = INFORMATIONAL_MAX + 1
        if "read_timeout" in params:
            _ATTEMPT.get().connected(is_reused=self._is_used)
            self._is_used = True
        super().set_response_params(**params)

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        """Take a header that is whole."""
        is_informational = 100 <= data[0].code < 200 and data[0].code != 101
        if self._headers_left > 1 and is_informational:
            self._headers_left -= 1
        elif self._headers_left and not is_informational:
            self._headers_left = 0
            super().feed_data(data, size)
        else:
            self._headers_left = 0
            self.force_close()
            if self.exception() is None and self.transport is not None:
                self.transport.close()
                self.set_exception(HttpProcessingError(message="more answers than requests"))


async def _whole(content: bytes) -> AsyncIterator[bytes]:
    yield content
