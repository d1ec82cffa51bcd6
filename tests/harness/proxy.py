"""A faulty HTTP proxy in front of a registry: what a real one cannot be made to show on demand.

It cuts, stalls, refuses and records. It runs on a thread of its own, so blocking callers and event loops can both use
it, and passes the Host header on, so that absolute upload locations come back to it.
"""

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from aiohttp import ClientError, ClientSession, ClientTimeout, StreamReader, TCPConnector, hdrs, web
from multidict import CIMultiDict

from harness.process import free_port
from harness.waiting import until

START_TIMEOUT_S = 5.0
CHUNK_BYTES = 64 * 1024
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
class StallRequest:
    """Go silent, until `release`, once so many bytes of the request's body were passed on."""

    after_bytes: int = 0


@dataclass(frozen=True)
class StallResponse:
    """Go silent, until `release`, once so many bytes of the response's body were sent."""

    after_bytes: int = 0


Partial = CutRequest | CutResponse | StallRequest | StallResponse
Misbehaviour = Answer | Partial


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


@dataclass(frozen=True)
class Seen:
    """A request that came in. Its query is part of `path`."""

    method: str
    path: str
    headers: Mapping[str, str]


class FaultProxy:
    """Passes everything on to `upstream` (`host:port`, plain HTTP) but for what its rules say."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.port = free_port()
        self._rules: list[Rule] = []
        self._seen: list[Seen] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)
        self._released = asyncio.Event()

    @property
    def host(self) -> str:
        """`127.0.0.1:port`, as image references have it."""
        return f"127.0.0.1:{self.port}"

    @property
    def requests(self) -> list[Seen]:
        """All requests so far, in the order of their coming."""
        return list(self._seen)

    def add(self, method: str, path: str, misbehaviour: Misbehaviour, *, times: int | None = 1) -> None:
        """Add a rule behind the others; the first that matches is applied."""
        self._rules.append(Rule(method, path, misbehaviour, times))

    def release(self) -> None:
        """Let all that is stalled go on, and stall nothing more."""
        self._loop.call_soon_threadsafe(self._released.set)

    def count(self, method: str, path: str) -> int:
        """How many requests came in whose method and path match (`re.fullmatch`)."""
        return sum(bool(re.fullmatch(method, s.method) and re.fullmatch(path, s.path)) for s in self._seen)

    def wait_for(self, method: str, path: str, *, timeout_s: float) -> None:
        """Block until such a request has come in."""
        until(lambda: self.count(method, path) > 0, timeout_s=timeout_s, what=f"{method} {path} at the proxy")

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result(START_TIMEOUT_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(START_TIMEOUT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _open(self) -> None:
        self._client = ClientSession(
            connector=TCPConnector(limit=0), timeout=ClientTimeout(total=None), auto_decompress=False
        )
        server = web.Server(self._serve)
        self._runner = web.ServerRunner(server, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def _close(self) -> None:
        self._released.set()
        await self._runner.cleanup()
        await self._client.close()

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        self._seen.append(Seen(request.method, request.path_qs, dict(request.headers)))
        rule = next((r for r in self._rules if r.takes(request.method, request.path_qs)), None)
        fault = rule.misbehaviour if rule else None
        if isinstance(fault, Answer):
            await request.read()  # an early answer to an unread body would look like a cut
            return web.Response(status=fault.status, headers=fault.headers, body=fault.body)
        try:
            return await self._pass_on(request, fault)
        except (OSError, ClientError):
            _reset(request)  # cut by a rule, or the registry is down: then so are we
            return web.Response()

    async def _pass_on(self, request: web.BaseRequest, fault: Misbehaviour | None) -> web.StreamResponse:
        on_request = fault if isinstance(fault, CutRequest | StallRequest) else None
        on_response = fault if isinstance(fault, CutResponse | StallResponse) else None
        await self._misbehave_at(0, on_request)
        async with self._client.request(
            request.method,
            f"http://{self.upstream}{request.path_qs}",
            headers=_end_to_end(request.headers),
            data=self._obey(request.content, on_request) if request.body_exists else None,
            allow_redirects=False,
            skip_auto_headers=[hdrs.USER_AGENT, hdrs.ACCEPT, hdrs.ACCEPT_ENCODING, hdrs.CONTENT_TYPE],
        ) as answer:
            await self._misbehave_at(0, on_response)
            response = web.StreamResponse(status=answer.status, reason=answer.reason)
            response.headers.extend(_end_to_end(answer.headers))
            await response.prepare(request)
            async for chunk in self._obey(answer.content, on_response):
                await response.write(chunk)
            return response

    async def _obey(self, content: StreamReader, fault: Partial | None) -> AsyncIterator[bytes]:
        """Pass a body on, and misbehave after exactly the bytes that the fault names."""
        passed = 0
        async for chunk in content.iter_chunked(CHUNK_BYTES):
            before = fault.after_bytes - passed if fault else len(chunk)
            if 0 < before < len(chunk):
                yield chunk[:before]
                await self._misbehave_at(passed + before, fault)
                yield chunk[before:]
            else:
                yield chunk
                await self._misbehave_at(passed + len(chunk), fault)
            passed += len(chunk)

    async def _misbehave_at(self, passed: int, fault: Partial | None) -> None:
        if fault is None or passed != fault.after_bytes:
            return
        if isinstance(fault, CutRequest | CutResponse):
            raise ConnectionResetError("cut by a rule of the proxy")
        await self._released.wait()


def _reset(request: web.BaseRequest) -> None:
    if request.transport is not None:
        request.transport.abort()


def _end_to_end(headers: Mapping[str, str]) -> CIMultiDict[str]:
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in HOP_BY_HOP)
