"""Single attempts at one site: the origin that answers, and the login that a request needs there. No retries."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager

import aiohttp
from multidict import CIMultiDictProxy
from yarl import URL

from imagejobd.model.errors import ErrorCode, Temporary
from imagejobd.registry.faults import NoAnswer, translated
from imagejobd.registry.http.address import origin_of
from imagejobd.registry.http.outgoing import Outgoing
from imagejobd.registry.http.timing import Timing
from imagejobd.registry.http.transport import Answer, Transport
from imagejobd.registry.login.auth import TokenServers
from imagejobd.registry.login.authorization import Authorization, Grant
from imagejobd.registry.login.challenge import Challenge, parse_challenges
from imagejobd.registry.request import Request
from imagejobd.registry.trust import Approach

ERROR_MAX_BYTES = 1024 * 1024
# Logins to try after the first 401: the one that it asks for, or a token for one that got old; and one token more.
LOGINS_MAX = 2
# Distribution spec, "Determining Support": every registry has it, and challenges there.
PING = Request("GET", "/v2/")

Headers = CIMultiDictProxy[str]


class Exchange:
    """Requests to one site, each made once, or again with the login that the answer asked for.

    Raises faults only; see `Connection`.
    """

    def __init__(self, approach: Approach, transport: Transport, timing: Timing) -> None:
        self._host = approach.site.host
        self._approach = approach
        self._transport = transport
        self.authorization = Authorization(approach, TokenServers(transport, approach, timing), timing)
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
        self, stack: AsyncExitStack, request: Request, url: URL, grant: Grant | None
    ) -> aiohttp.ClientResponse:
        headers = request.headers(grant.header if grant else None)
        opened = self._transport.open(request.method, url, headers, trust=self._approach.tls_for)
        return await stack.enter_async_context(opened)

    async def _reach(self, request: Request, grant: Grant | None, content: bytes, body_max_bytes: int) -> Answer:
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

    async def _grant(self, request: Request) -> Grant | None:
        """The login that `request` carries; none for addresses that are not the registry's own."""
        if request.is_absolute and not request.is_at(await self._settle()):
            return None
        return await self.authorization.grant(request.scopes, self._origin)

    async def _another_grant(
        self, request: Request, grant: Grant | None, responder: URL, headers: Headers
    ) -> Grant | None:
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
