"""A faulty HTTP proxy in front of a registry: what a real one cannot be made to show on demand.

It cuts, stalls, slows, corrupts, refuses and records. It passes the Host header on, so that absolute upload locations
come back to it.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field

from aiohttp import ClientError, ClientResponse, ClientSession, ClientTimeout, StreamReader, TCPConnector, hdrs, web
from multidict import CIMultiDict

from harness.waiting import END_TIMEOUT_S, until
from harness.web_server import WebServer

CHUNK_BYTES = 64 * 1024
# Small, so that what a throttle lets through is even.
THROTTLED_CHUNK_BYTES = 16 * 1024
# RFC 9110 §7.6.1: these speak of one connection only.
HOP_BY_HOP = frozenset({"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"})


@dataclass(frozen=True)
class Answer:
    """Answer instead of the registry."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True)
class CutRequest:
    """Reset the connection once so many bytes of the request's body were passed on; with 0 nothing is passed on."""

    after_bytes: int = 0


@dataclass(frozen=True)
class CutResponse:
    """Reset the connection once so many bytes of the response's body were sent; with 0 there is no status either."""

    after_bytes: int = 0


@dataclass(frozen=True)
class EndResponse:
    """Close the connection once so many bytes of the response's body were sent; unlike after a cut, these arrive."""

    after_bytes: int


@dataclass(frozen=True)
class StallRequest:
    """Go silent, until `release`, once so many bytes of the request's body were passed on."""

    after_bytes: int = 0


@dataclass(frozen=True)
class StallResponse:
    """Go silent, until `release`, once so many bytes of the response's body were sent."""

    after_bytes: int = 0


@dataclass
class ThrottleRequest:
    """Pass on the bodies of requests, all together, at so many bytes a second, until `release`."""

    bytes_per_s: float
    _free_at: float = field(default=0.0, init=False, repr=False)

    def delay_s(self, now: float, size: int) -> float:
        """How long to wait after `size` bytes that were passed on at `now`."""
        self._free_at = max(self._free_at, now) + size / self.bytes_per_s
        return self._free_at - now


@dataclass
class ThrottleResponse(ThrottleRequest):
    """As `ThrottleRequest`, for the bodies of responses."""


@dataclass(frozen=True)
class FlipByte:
    """Turn over all bits of one byte of the response's body."""

    offset: int


@dataclass(frozen=True)
class DropRequestHeader:
    """Pass the request on without a header: with `Range`, a server that does not know ranges."""

    name: str


@dataclass(frozen=True)
class RewriteLocation:
    """Pass the response on with another Location: what `rewrite` makes of the registry's own."""

    rewrite: Callable[[str], str]


@dataclass(frozen=True)
class DropResponseHeader:
    """Pass the response on without a header."""

    name: str


Partial = CutRequest | CutResponse | EndResponse | StallRequest | StallResponse
Misbehaviour = Answer | Partial | ThrottleRequest | FlipByte | DropRequestHeader | RewriteLocation | DropResponseHeader


@dataclass
class Rule:
    """What to do with the next `times` requests whose method and path match (`re.fullmatch`); None: all of them."""

    method: str
    path: str
    misbehaviour: Misbehaviour
    times: int | None = 1

    def takes(self, method: str, path: str) -> bool:
        if self.times == 0 or not (re.fullmatch(self.method, method) and re.fullmatch(self.path, path)):
            return False
        if self.times is not None:
            self.times -= 1
        return True


@dataclass
class Seen:
    """A request that came in, and how far it got. Its query is part of `path`; `came_at` is `time.monotonic()`.

    `received_bytes` of its body came from the client and were passed on; `sent_bytes` of the response's body went to
    the client. `status` is None until there is one.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    came_at: float = 0.0
    status: int | None = None
    received_bytes: int = 0
    sent_bytes: int = 0
    ended_at: float | None = None
    request: web.BaseRequest | None = field(default=None, repr=False)

    def matches(self, method: str, path: str) -> bool:
        return bool(re.fullmatch(method, self.method) and re.fullmatch(path, self.path))

    @property
    def is_open(self) -> bool:
        """Whether the client still waits for the end of the response."""
        return self.ended_at is None and self.request is not None and self.request.transport is not None


class _Ended(Exception):
    """A rule of the proxy wants the connection to be closed in order."""


class FaultProxy(WebServer):
    """Passes everything on to `upstream` (`host:port`, plain HTTP) but for what its rules say."""

    def __init__(self, upstream: str, *, address: str = "127.0.0.1") -> None:
        super().__init__(address)
        self.upstream = upstream
        self._rules: list[Rule] = []
        self._seen: list[Seen] = []
        self._released = asyncio.Event()

    @property
    def requests(self) -> list[Seen]:
        """All requests so far, in the order of their coming."""
        return list(self._seen)

    def add(self, method: str, path: str, misbehaviour: Misbehaviour, *, times: int | None = 1) -> None:
        """Add a rule behind the others; the first that matches is applied."""
        self._rules.append(Rule(method, path, misbehaviour, times))

    def reset(self) -> None:
        """Forget all rules and requests."""
        self._rules.clear()
        self._seen.clear()

    def release(self) -> None:
        """Let all that is stalled or throttled go on, and stall and throttle nothing more."""
        self._loop.call_soon_threadsafe(self._released.set)

    def seen(self, method: str = ".*", path: str = ".*") -> list[Seen]:
        """The requests whose method and path match (`re.fullmatch`)."""
        return [seen for seen in self.requests if seen.matches(method, path)]

    def count(self, method: str, path: str) -> int:
        """How many requests came in whose method and path match (`re.fullmatch`)."""
        return len(self.seen(method, path))

    def received_bytes(self, method: str = ".*", path: str = ".*") -> int:
        """Bytes of bodies that matching requests brought."""
        return sum(seen.received_bytes for seen in self.seen(method, path))

    def sent_bytes(self, method: str = ".*", path: str = ".*") -> int:
        """Bytes of bodies that matching requests were answered with."""
        return sum(seen.sent_bytes for seen in self.seen(method, path))

    def open_requests(self, method: str = ".*", path: str = ".*") -> list[Seen]:
        """The matching requests whose client still waits."""
        return [seen for seen in self.seen(method, path) if seen.is_open]

    def wait_for(self, method: str, path: str, *, timeout_s: float = END_TIMEOUT_S) -> None:
        """Block until such a request has come in."""
        until(lambda: self.count(method, path) > 0, timeout_s=timeout_s, what=f"{method} {path} at the proxy")

    async def _open(self) -> None:
        self._client = ClientSession(
            connector=TCPConnector(limit=0), timeout=ClientTimeout(total=None), auto_decompress=False
        )
        await super()._open()

    async def _close(self) -> None:
        self._released.set()
        await super()._close()
        await self._client.close()

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        seen = Seen(request.method, request.path_qs, dict(request.headers), time.monotonic(), request=request)
        self._seen.append(seen)
        rule = next((r for r in self._rules if r.takes(request.method, request.path_qs)), None)
        fault = rule.misbehaviour if rule else None
        try:
            if isinstance(fault, Answer):
                return await _answer(request, seen, fault)
            return await self._pass_on(request, seen, fault)
        except _Ended:
            if request.transport is not None:
                request.transport.close()
            return web.Response()
        except (OSError, ClientError):
            _reset(request)  # cut by a rule, or the registry is down: then so are we
            return web.Response()
        finally:
            seen.ended_at = time.monotonic()

    async def _pass_on(self, request: web.BaseRequest, seen: Seen, fault: Misbehaviour | None) -> web.StreamResponse:
        on_request = fault if _acts_on_request(fault) else None
        on_response = fault if fault is not on_request else None
        await self._misbehave_at(0, on_request)
        async with self._client.request(
            request.method,
            f"http://{self.upstream}{request.path_qs}",
            headers=_end_to_end(request.headers, without=fault.name if isinstance(fault, DropRequestHeader) else None),
            data=self._body_in(request, seen, on_request) if request.body_exists else None,
            allow_redirects=False,
            skip_auto_headers=[hdrs.USER_AGENT, hdrs.ACCEPT, hdrs.ACCEPT_ENCODING, hdrs.CONTENT_TYPE],
        ) as answer:
            await self._misbehave_at(0, on_response)
            seen.status = answer.status
            response = _response(answer, fault)
            await response.prepare(request)
            async for chunk in self._obey(answer.content, on_response):
                await response.write(chunk)
                seen.sent_bytes += len(chunk)
            return response

    async def _body_in(self, request: web.BaseRequest, seen: Seen, fault: Misbehaviour | None) -> AsyncIterator[bytes]:
        async for chunk in self._obey(request.content, fault):
            seen.received_bytes += len(chunk)
            yield chunk

    async def _obey(self, content: StreamReader, fault: Misbehaviour | None) -> AsyncIterator[bytes]:
        """Pass a body on, and misbehave after exactly the bytes that the fault names."""
        passed = 0
        point = _point(fault)
        chunk_bytes = THROTTLED_CHUNK_BYTES if isinstance(fault, ThrottleRequest) else CHUNK_BYTES
        async for chunk in content.iter_chunked(chunk_bytes):
            before = point - passed if 0 < point - passed < len(chunk) else len(chunk)
            for part in filter(None, (chunk[:before], chunk[before:])):
                yield _flipped(part, passed, fault)
                passed += len(part)
                await self._misbehave_at(passed, fault)
                await self._slow_down(len(part), fault)

    async def _misbehave_at(self, passed: int, fault: Misbehaviour | None) -> None:
        if isinstance(fault, CutRequest | CutResponse) and passed == fault.after_bytes:
            raise ConnectionResetError("cut by a rule of the proxy")
        if isinstance(fault, EndResponse) and passed == fault.after_bytes:
            raise _Ended
        if isinstance(fault, StallRequest | StallResponse) and passed == fault.after_bytes:
            await self._released.wait()

    async def _slow_down(self, size: int, fault: Misbehaviour | None) -> None:
        if not isinstance(fault, ThrottleRequest) or self._released.is_set():
            return
        try:
            await asyncio.wait_for(self._released.wait(), fault.delay_s(time.monotonic(), size))
        except TimeoutError:
            return


def _acts_on_request(fault: Misbehaviour | None) -> bool:
    if isinstance(fault, ThrottleResponse):
        return False
    return isinstance(fault, CutRequest | StallRequest | ThrottleRequest)


def _point(fault: Misbehaviour | None) -> int:
    """The byte behind which something happens; 0 for none."""
    return fault.after_bytes if isinstance(fault, Partial) else 0


def _flipped(part: bytes, offset: int, fault: Misbehaviour | None) -> bytes:
    """`part`, which begins at `offset` of the body, corrupted if the byte of the fault is in it."""
    if not isinstance(fault, FlipByte) or not offset <= fault.offset < offset + len(part):
        return part
    at = fault.offset - offset
    return part[:at] + bytes([part[at] ^ 0xFF]) + part[at + 1 :]


async def _answer(request: web.BaseRequest, seen: Seen, fault: Answer) -> web.Response:
    seen.received_bytes = len(await request.read())  # an early answer to an unread body would look like a cut
    seen.status = fault.status
    seen.sent_bytes = len(fault.body)
    return web.Response(status=fault.status, headers=fault.headers, body=fault.body)


def _response(answer: ClientResponse, fault: Misbehaviour | None) -> web.StreamResponse:
    response = web.StreamResponse(status=answer.status, reason=answer.reason)
    dropped = fault.name if isinstance(fault, DropResponseHeader) else None
    response.headers.extend(_end_to_end(answer.headers, without=dropped))
    if isinstance(fault, RewriteLocation) and hdrs.LOCATION in response.headers:
        response.headers[hdrs.LOCATION] = fault.rewrite(response.headers[hdrs.LOCATION])
    return response


def _reset(request: web.BaseRequest) -> None:
    if request.transport is not None:
        request.transport.abort()


def _end_to_end(headers: Mapping[str, str], *, without: str | None) -> CIMultiDict[str]:
    dropped = HOP_BY_HOP | {(without or "").lower()}
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in dropped)
