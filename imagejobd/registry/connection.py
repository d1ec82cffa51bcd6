"""A registry as one job speaks to it: endpoint, trust, login, pace, retries. Every request passes here."""

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

import aiohttp
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from imagejobd.model.errors import ErrorCode, Fault, Permanent, Temporary, parse_retry_after
from imagejobd.model.secrets import Redactor
from imagejobd.registry.exchange import ERROR_MAX_BYTES, Exchange, Headers
from imagejobd.registry.faults import detail, is_busy, is_missing_content, refusal, translated
from imagejobd.registry.http.address import host_of
from imagejobd.registry.http.outgoing import Outgoing
from imagejobd.registry.http.timing import Timing
from imagejobd.registry.http.transport import Answer, Transport
from imagejobd.registry.notices import Notices
from imagejobd.registry.pace import PAUSE_MAX_S, HostPace, Permit
from imagejobd.registry.persistence import Persistence
from imagejobd.registry.request import Request
from imagejobd.registry.trust import Approach, Identity


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
        approach: Approach,
        transport: Transport,
        pace: HostPace,
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
        self._notices = Notices(warn)
        self._exchange = Exchange(approach, transport, timing)

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
    ) -> Answer:
        """A small request and its whole answer, on the lane for small ones."""
        request = Request(method, target, scopes, headers)
        persistence = Persistence(self._timing)
        while True:
            try:
                answer = await self._ask(request, content, body_max_bytes, persistence)
                wait_s = self._wait_s(answer, persistence)
                if wait_s is None:
                    return answer
            except Temporary as fault:
                wait_s = None if fault.peer else persistence.wait_s(fault.retry_after_s)
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
        end is returned, and the body is not read further.
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

    async def _ask(self, request: Request, content: bytes, body_max_bytes: int, persistence: Persistence) -> Answer:
        async with self._pace.permit(self._pace.small) as permit:
            persistence.begin()
            answer = await self._exchange.ask(request, content, body_max_bytes)
            self._note(permit, answer.status, answer.headers)
            return answer

    def _wait_s(self, answer: Answer, persistence: Persistence) -> float | None:
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
    if 300 <= answer.status < 400:
        raise Permanent(
            ErrorCode.REGISTRY_UNAVAILABLE,
            f"registry {host}: it redirects an upload ({answer.status}), which is not followed",
        )
    if answer.status < 300 and not outgoing.is_given:
        raise Temporary(
            ErrorCode.REGISTRY_UNAVAILABLE,
            f"registry {host}: it answered {answer.status} before it had the whole upload",
        )
