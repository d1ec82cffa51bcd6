"""What a peer may say before and after the one answer that a request has.

The HTTP library waits through any number of informational answers (RFC 9110 §15.2), for ever, and keeps what comes
unasked on an idle connection. Here a few informational ones are passed over, the header of the answer itself has a time
limit that they do not prolong, and a connection that says more than it was asked is closed.

One HTTP exchange with a registry, its storage or its token server: redirected with care, not interpreted.

Refuses: bodies beyond the caller's bound, more than `REDIRECTS_MAX` redirects, a redirect from TLS to plain HTTP, and
to carry a body through a redirect. `Authorization` stays with the origin that it was meant for. A body has no total
time limit, only an idle one: a caller's phase has the total. The rule over addresses holds for all that is connected to
on a user's or peer's word; the environment's proxy is the operator's own word, and is connected to wherever it is.
"""

import asyncio
import functools
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
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
from imagejobd.model.errors import ErrorCode, Permanent
from imagejobd.registry.address import basic, exact_url, host_of, http_url, numeric_address, origin_of, peer_of
from imagejobd.registry.body import Outgoing, watched
from imagejobd.registry.errors import NoAnswer
from imagejobd.registry.proxies import Proxies, Proxy
from imagejobd.registry.resolver import Resolver

INFORMATIONAL_MAX = 20
_SWITCHING_PROTOCOLS = 101


class Responses(ResponseHandler):
    """One connection, which is asked for one answer at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._informational = 0
        self._is_waiting = False
        self._header_deadline: asyncio.TimerHandle | None = None

    def set_response_params(self, **params: Any) -> None:
        """A request is about to be sent. `read_timeout` is the time until the answer's header is whole, too."""
        self._informational = 0
        self._is_waiting = True
        self._stop_waiting()
        if params.get("read_timeout"):
            self._header_deadline = self._loop.call_later(params["read_timeout"], self._too_late)
        super().set_response_params(**params)

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        """Take a header that is whole."""
        code = data[0].code
        if self._is_waiting and 100 <= code < 200 and code != _SWITCHING_PROTOCOLS:
            self._informational += 1
            if self._informational > INFORMATIONAL_MAX:
                self._refuse("too many informational answers")
            return
        if not self._is_waiting:
            self._refuse("an answer to no request")
            return
        self._is_waiting = False
        self._stop_waiting()
        super().feed_data(data, size)
        self.start_timeout()  # from here the idle time-out counts for the body

    def connection_lost(self, exc: BaseException | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def close(self) -> None:
        self._stop_waiting()
        super().close()

    def abort(self) -> None:
        self._stop_waiting()
        super().abort()

    def _refuse(self, why: str) -> None:
        self._is_waiting = False
        self._stop_waiting()
        self.force_close()
        if self.exception() is None and self.transport is not None:
            self.transport.close()
            self.set_exception(HttpProcessingError(message=why))

    def _too_late(self) -> None:
        self._header_deadline = None
        self.set_exception(aiohttp.SocketTimeoutError("no header in time"))

    def _stop_waiting(self) -> None:
        if self._header_deadline is not None:
            self._header_deadline.cancel()
            self._header_deadline = None


class Connector(aiohttp.TCPConnector):
    """Connections of that kind."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._factory = functools.partial(Responses, loop=self._loop)  # type: ignore[assignment]  # it makes handlers


CONNECT_TIMEOUT_S = 10.0  # to one address
REACH_TIMEOUT_S = 30.0  # name, all its addresses, proxy, TLS
IDLE_TIMEOUT_S = 30.0
REDIRECTS_MAX = 5
READ_BUFFER_BYTES = 64 * 1024
# Storage is redirected to with signed URLs of several kilobytes.
HEADER_MAX_BYTES = 32 * 1024

_CONNECTOR: Mapping[str, Any] = {"limit": 0, "happy_eyeballs_delay": None}
_REDIRECTS = frozenset({301, 302, 303, 307, 308})

Trust = Callable[[URL], ssl.SSLContext]
"""What to trust at the host of an address."""


class Answer(msgspec.Struct, frozen=True):
    """A response whose body has been read. `url` is who answered, after redirects."""

    url: URL
    status: int
    headers: CIMultiDictProxy[str]
    body: bytes


class Transport:
    """A session with registries; open it inside the event loop that uses it.

    `egress` decides which addresses may be reached; `circuits` hears who answers. All methods raise the HTTP library's
    errors and `NoAnswer` (see `faults.translated`), `Permanent` for what this module refuses, and at once what
    `Circuits.check` raises.
    """

    def __init__(
        self,
        egress: Egress,
        proxies: Proxies,
        *,
        circuits: Circuits,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
        names: Resolver | None = None,
    ) -> None:
        self._egress = egress
        self._circuits = circuits
        self._proxies = proxies
        self._idle_timeout_s = idle_timeout_s
        self._idle = self._timeout(idle_timeout_s)
        self._watched = self._timeout(None)
        self._names = names or Resolver()
        self._direct = _session(Connector(**_CONNECTOR, resolver=self._names, socket_factory=egress.open_socket))
        self._by_proxy = _session(Connector(**_CONNECTOR, resolver=self._names))

    async def fetch(
        self, method: str, url: URL, headers: Mapping[str, str], *, trust: Trust, body_max_bytes: int
    ) -> Answer:
        """Send a request without a body and read the answer, through redirects."""
        async with self.open(method, url, headers, trust=trust) as response:
            return await read_answer(response, body_max_bytes)

    async def once(
        self,
        method: str,
        url: URL,
        headers: Mapping[str, str],
        content: bytes,
        *,
        trust: Trust,
        body_max_bytes: int,
    ) -> Answer:
        """Send a small request and read the answer, even if that is a redirect."""
        if content:
            outgoing = Outgoing(_whole(content), len(content))
            return await self.give(method, url, headers, outgoing, trust=trust, body_max_bytes=body_max_bytes)
        async with self._request(method, url, headers, trust, self._idle) as response:
            return await read_answer(response, body_max_bytes)

    @asynccontextmanager
    async def open(
        self, method: str, url: URL, headers: Mapping[str, str], *, trust: Trust
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request without a body, through redirects; the answer's body is not read."""
        for _ in range(REDIRECTS_MAX + 1):
            async with self._request(method, url, headers, trust, self._idle) as response:
                target = redirect_target(url, response.status, response.headers)
                if target is None:
                    yield response
                    return
                # Its body is not waited for. Where it has come already, the connection is used again.
            if origin_of(target) != origin_of(url):
                headers = {name: value for name, value in headers.items() if name.lower() != "authorization"}
            url = target
        raise Permanent(ErrorCode.REGISTRY_UNAVAILABLE, f"registry {host_of(url)}: more than {REDIRECTS_MAX} redirects")

    async def give(
        self,
        method: str,
        url: URL,
        headers: Mapping[str, str],
        outgoing: Outgoing,
        *,
        trust: Trust,
        body_max_bytes: int,
    ) -> Answer:
        """Send a request with a body and read the answer, which is no redirect to follow.

        An answer that comes first ends the body. When the body raises (see `Outgoing.failure`), the connection is
        closed, so that the peer has no whole request.
        """
        try:
            async with (
                watched(outgoing, self._idle_timeout_s, host_of(url)) as watch,
                self._request(method, url, headers, trust, self._watched, outgoing) as response,
            ):
                watch.answering()
                return await read_answer(response, body_max_bytes)
        except BaseException:
            outgoing.abort()
            raise
        finally:
            await outgoing.settle()

    async def close(self) -> None:
        await self._direct.close()
        await self._by_proxy.close()
        await self._names.close()

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        url: URL,
        headers: Mapping[str, str],
        trust: Trust,
        timeout: aiohttp.ClientTimeout,
        outgoing: Outgoing | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        sent = CIMultiDict(headers)
        proxy = self._proxies.find(url)
        to_proxy = self._introduce(proxy, url, sent)
        session = self._by_proxy if proxy else self._direct
        with self._listening(peer_of(proxy.url if proxy else url)):
            response = await session.request(
                method,
                url,
                headers=sent,
                data=outgoing,
                ssl=trust(url),
                timeout=timeout,
                allow_redirects=False,
                proxy=proxy.url if proxy else None,
                proxy_headers=to_proxy,
            )
        async with response:
            yield response

    @contextmanager
    def _listening(self, peer: str) -> Iterator[None]:
        """Note whether `peer` answers meanwhile, with whatever. Raises `NoAnswer`, and what `Circuits.check` raises."""
        self._circuits.check(peer)
        try:
            yield
        except aiohttp.ClientSSLError:
            self._circuits.answered(peer)
            raise
        except (aiohttp.ClientOSError, aiohttp.ServerConnectionError, OSError) as error:
            self._circuits.abandoned(peer)
            raise NoAnswer(peer, error) from error
        except asyncio.CancelledError:
            self._circuits.abandoned(peer)
            raise
        except aiohttp.ClientResponseError:
            self._circuits.answered(peer)
            raise
        self._circuits.answered(peer)

    def _introduce(self, proxy: Proxy | None, url: URL, headers: CIMultiDict[str]) -> dict[str, str] | None:
        """The headers that the proxy gets of its own; for plain HTTP they are those of the request."""
        if proxy is None:
            return None
        if address := numeric_address((url.host or "").rstrip(".")):
            self._egress.check(address)
        own = {"Proxy-Authorization": basic(proxy.credentials)} if proxy.credentials else {}
        if url.scheme == "http":
            headers.update(own)
            return None
        return own

    def _timeout(self, idle_s: float | None) -> aiohttp.ClientTimeout:
        return aiohttp.ClientTimeout(
            total=None, connect=REACH_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S, sock_read=idle_s
        )


async def read_answer(response: aiohttp.ClientResponse, max_bytes: int) -> Answer:
    """Read a body of at most `max_bytes`. Raises `Permanent(too_large)`."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > max_bytes:
            raise Permanent(
                ErrorCode.TOO_LARGE,
                f"registry {host_of(response.url)}: it answered with more than {max_bytes} bytes",
            )
    return Answer(response.url, response.status, response.headers, bytes(body))


def _session(connector: Connector) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        # Bytes are hashed as they come: no content coding.
        headers={"User-Agent": f"imagejobd/{__version__}", "Accept-Encoding": "identity"},
        auto_decompress=False,
        read_bufsize=READ_BUFFER_BYTES,
        max_line_size=HEADER_MAX_BYTES,
        max_field_size=HEADER_MAX_BYTES,
    )


async def _whole(content: bytes) -> AsyncIterator[bytes]:
    yield content


def redirect_target(url: URL, status: int, headers: CIMultiDictProxy[str]) -> URL | None:
    """Where an answer of `url` sends us; None where it does not. Raises `Permanent` where we do not go."""
    if status not in _REDIRECTS or "Location" not in headers:
        return None
    try:
        target = http_url(str(url.join(exact_url(headers["Location"]))))
    except ValueError:
        target = None
    if target is None:
        raise Permanent(ErrorCode.REGISTRY_UNAVAILABLE, f"registry {host_of(url)}: it redirects to no usable URL")
    if url.scheme == "https" and target.scheme != "https":
        raise Permanent(
            ErrorCode.REGISTRY_UNAVAILABLE,
            f"registry {host_of(url)}: it redirects from TLS to plain HTTP at {host_of(target)}, which is refused",
        )
    # A user and a password in it would be sent as a login; nobody gave them to us.
    return target.with_user(None)
