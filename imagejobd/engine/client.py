"""The connection to the engine. Every other module of this package talks through `Engine`.

aiodocker gives the transport and the errors; its image calls lack most of the build's options, leave a response open
when the task is cancelled, and read JSON lines with a limit that BuildKit exceeds. So requests go through its `_query`
with query strings of our own, and the response is always closed: for the engine that is the sign to stop.
"""

import asyncio
import http
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from typing import Any, Literal, Self, TypeVar

import aiohttp
import msgspec
from aiodocker import Docker
from yarl import URL

from imagejobd.engine import errors
from imagejobd.engine.settings import Builder, EngineSettings
from imagejobd.model.errors import ENGINE, ErrorCode, Permanent, Temporary, invalid
from imagejobd.model.ownership import NO_INSTALLATION

Params = Sequence[tuple[str, str]]
T = TypeVar("T")

# 1.41 is Docker 20.10, the oldest engine whose BuildKit is known here; 1.52 (29.0) the newest API that was read.
API_VERSION_MIN = (1, 41)
API_VERSION_MAX = (1, 52)
# 20.10's own BuildKit frontend has none, and there was no 21 or 22.
HEREDOCS_SINCE_MAJOR = 23
# An engine with tens of thousands of images answers /images/json with tens of MiB.
BODY_MAX_BYTES = 64 * 1024**2
UPGRADED_BUFFER_BYTES = 64 * 1024

_UNIX = "unix://"
_SCHEMES = (_UNIX, "tcp://", "http://", "https://")


class EngineInfo(msgspec.Struct, frozen=True):
    """Who answers: the engine's version, the API version that is spoken with it, and its platform."""

    version: str
    api_version: str
    os: str
    architecture: str

    def knows_heredocs(self, builder: Builder) -> bool:
        """Whether `RUN <<EOF` is one instruction for the builder; else it reads the lines as instructions.

        The classic builder reads them so in every version, BuildKit in those before `HEREDOCS_SINCE_MAJOR`. A version
        of another form counts as one of those.
        """
        major = self.version.partition(".")[0]
        return builder == "buildkit" and major.isdecimal() and int(major) >= HEREDOCS_SINCE_MAJOR


class Reply(msgspec.Struct, frozen=True):
    """An answer that is under way: its headers, and its body in blocks as they arrive."""

    headers: Mapping[str, str]
    blocks: AsyncIterator[bytes]


class Upgraded:
    """A connection that was an HTTP request, and now speaks what it was upgraded to."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        connection = response.connection
        if connection is None or connection.protocol is None or connection.transport is None:
            raise ConnectionError("the engine closed the connection as it was upgraded")
        self._protocol = connection.protocol
        self._transport = connection.transport
        self._reader = asyncio.StreamReader(limit=UPGRADED_BUFFER_BYTES)
        self._reader.set_transport(self._transport)
        # aiohttp hands all bytes from here on to an object of this form, as it does to its own WebSocket reader.
        connection.protocol.set_parser(self, None)

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self._reader.feed_data(data)
        return False, b""

    def feed_eof(self) -> None:
        self._reader.feed_eof()

    async def read(self) -> bytes:
        """The next bytes; empty when the engine has closed the connection."""
        return await self._reader.read(UPGRADED_BUFFER_BYTES)

    def write(self, data: bytes) -> None:
        """Small messages only: nobody waits here until they are sent. Raises `ConnectionError` once it is closed."""
        if self._transport.is_closing():
            raise ConnectionResetError("the engine closed the connection")
        self._transport.write(data)

    def abort(self) -> None:
        """Close it now, without what was written and is not yet sent: the engine may have ceased to read."""
        self._transport.abort()

    async def drain(self) -> None:
        """Wait until most of what was written is sent. One task at a time: they would share one future."""
        await self._protocol._drain_helper()


def filters(**values: Sequence[str]) -> tuple[str, str]:
    """The parameter by which the engine lists only what has one of the values of each."""
    return "filters", msgspec.json.encode(values).decode()


class _Version(msgspec.Struct, frozen=True):
    """`GET /version`, as far as it matters here."""

    version: str = msgspec.field(name="Version")
    api: str = msgspec.field(name="ApiVersion")
    api_min: str = msgspec.field(name="MinAPIVersion", default="1.12")
    os: str = msgspec.field(name="Os", default="")
    architecture: str = msgspec.field(name="Arch", default="")


class Engine:
    """One Docker Engine. Connects on first use, and again after the engine was restarted or upgraded."""

    def __init__(self, settings: EngineSettings, installation: str = NO_INSTALLATION) -> None:
        """`installation` marks all that is made over this connection (`model/ownership.py`).

        Raises `Permanent(invalid)` for a host that is no address of an engine.
        """
        self.settings = settings
        self.installation = installation
        self.host = settings.resolved_host()
        if not self.host.startswith(_SCHEMES):
            raise invalid(f"engine host {self.host!r} must start with one of {', '.join(_SCHEMES)}")
        # What builds have left and nobody could remove yet (`classic.py`), and when the build began.
        self.remains: dict[tuple[Literal["container", "image"], str], datetime] = {}
        self._connector: aiohttp.BaseConnector | None = None
        self._docker: Docker | None = None
        self._info: EngineInfo | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def info(self) -> EngineInfo | None:
        """Who answered last, without asking; None before the first answer and since the engine went away."""
        return self._info

    async def close(self) -> None:
        """Close all connections; what still goes on over them stops in the engine too."""
        docker, self._docker = self._docker, None
        connector, self._connector = self._connector, None
        if docker is not None:
            await docker.close()
        if connector is not None:
            await connector.close()

    async def ping(self) -> EngineInfo:
        """Ask the engine who it is, over a connection of its own.

        Raises `Temporary(engine_unavailable)` when it does not answer within `connect_timeout_s`, and when no API
        version is common to both.
        """
        try:
            timeout = aiohttp.ClientTimeout(total=self.settings.connect_timeout_s)
            async with self._open("GET", "version", errors.of_engine, timeout=timeout, versioned_api=False) as reply:
                body = await _read_bounded(reply.content)
            self._info = _negotiated(_decoded("/version", body, _Version))
        except BaseException:
            self._info = None
            raise
        self._aiodocker().api_version = f"v{self._info.api_version}"
        return self._info

    async def probe(self) -> None:
        """As `ping`, to be called every few seconds: to find out their version, older engines start programs."""
        await self.request("GET", "_ping", timeout_s=self.settings.connect_timeout_s)

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Params = (),
        body: bytes | None = None,
        judge: errors.Judge = errors.of_engine,
        timeout_s: float | None = None,
    ) -> bytes:
        """One short request; returns the answer's body, at most `BODY_MAX_BYTES`.

        `body` is JSON or a tar: the engine looks at the endpoint, not at the content type. `timeout_s` (default
        `request_timeout_s`) covers all of it. Raises what `judge` makes of a refusal, and
        `Temporary(engine_unavailable)`.
        """
        await self._connect()
        timeout = aiohttp.ClientTimeout(
            total=timeout_s or self.settings.request_timeout_s, sock_connect=self.settings.connect_timeout_s
        )
        async with self._open(method, path, judge, params=params, data=body, timeout=timeout) as reply:
            return await _read_bounded(reply.content)

    async def request_json(
        self,
        method: str,
        path: str,
        answer: type[T],
        *,
        params: Params = (),
        body: object = None,
        judge: errors.Judge = errors.of_engine,
        timeout_s: float | None = None,
    ) -> T:
        """One short request with `body` as JSON, and the answer's body as an `answer`.

        A body that is none is `Temporary(engine_unavailable)`; else it raises as `request` does.
        """
        data = None if body is None else msgspec.json.encode(body)
        raw = await self.request(method, path, params=params, body=data, judge=judge, timeout_s=timeout_s)
        return _decoded(path, raw, answer)

    @asynccontextmanager
    async def exchange(
        self,
        method: str,
        path: str,
        *,
        params: Params = (),
        headers: Mapping[str, str] | None = None,
        body: AsyncIterator[bytes] | None = None,
        judge: errors.Judge = errors.of_engine,
        idle_timeout_s: float | None,
    ) -> AsyncIterator[Reply]:
        """One request whose answer is read as it arrives; leaving the block closes the response.

        `body` is sent as it comes. `idle_timeout_s` bounds the silence between two blocks. Raises what `judge` makes of
        a refusal, and `Temporary(engine_unavailable)`.
        """
        await self._connect()
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=self.settings.connect_timeout_s, sock_read=idle_timeout_s
        )
        async with self._open(method, path, judge, params=params, headers=headers, data=body, timeout=timeout) as reply:
            yield Reply(reply.headers, reply.content.iter_any())

    @asynccontextmanager
    async def upgrade(
        self, path: str, protocol: str, *, headers: Mapping[str, str] = {}, timeout_s: float | None
    ) -> AsyncIterator[Upgraded]:
        """POST, and speak `protocol` over the same connection; leaving the block closes it, as `timeout_s` does.

        Raises `Temporary(engine_unavailable)`, also when the time is over, and `Permanent` where the engine refuses.
        """
        await self._connect()
        headers = {"Connection": "Upgrade", "Upgrade": protocol, **headers}
        timeout = aiohttp.ClientTimeout(sock_connect=self.settings.connect_timeout_s)
        judge = errors.of_engine
        with errors.translated(self.host, judge):
            opening = self._open("POST", path, judge, headers=headers, timeout=timeout)
            async with asyncio.timeout(timeout_s), opening as reply:
                if reply.status != http.HTTPStatus.SWITCHING_PROTOCOLS:
                    raise judge(http.HTTPStatus.NOT_FOUND, f"{path} does not speak {protocol}")
                yield Upgraded(reply)

    async def _connect(self) -> None:
        if self._info is None:
            await self.ping()

    @asynccontextmanager
    async def _open(
        self, method: str, path: str, judge: errors.Judge, *, params: Params = (), **options: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        query = self._aiodocker()._query(URL(path).with_query(params), method, **options)
        try:
            with errors.translated(self.host, judge):
                async with AsyncExitStack() as stack:
                    try:
                        reply = await stack.enter_async_context(query)
                    except (ValueError, KeyError, TypeError) as error:
                        # aiodocker takes a refusal for the engine's, whoever may stand in front of it.
                        raise errors.unavailable(self.host, "what answers there is not an engine") from error
                    stack.callback(reply.close)
                    yield reply
        except Temporary as fault:
            if fault.code is ErrorCode.ENGINE_UNAVAILABLE:
                # An engine that went away may come back upgraded: ask for its version again.
                self._info = None
            raise

    def _aiodocker(self) -> Docker:
        if self._docker is None:
            url = self.host
            if url.startswith(_UNIX):
                # A fresh connection each time: an engine that shuts down still serves its old ones, and a pooled one
                # that died with a restart would fail the first request after it. On a socket this costs microseconds.
                self._connector = aiohttp.UnixConnector(url.removeprefix(_UNIX), force_close=True, limit=0)
                url = f"{_UNIX}localhost"
            self._docker = Docker(url, connector=self._connector, api_version=f"v{_api_text(API_VERSION_MIN)}")
        return self._docker


async def _read_bounded(content: aiohttp.StreamReader) -> bytes:
    body = bytearray()
    async for block in content.iter_any():
        body += block
        if len(body) > BODY_MAX_BYTES:
            raise Permanent(ErrorCode.TOO_LARGE, f"the Docker Engine's answer is over {BODY_MAX_BYTES} bytes")
    return bytes(body)


def _decoded(path: str, body: bytes, answer: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=answer)
    except errors.UNDECODABLE as error:
        raise errors.ended_early(f"{path} is not what an engine says ({error})") from error


def _negotiated(engine: _Version) -> EngineInfo:
    newest, oldest = _api_number(engine.api), _api_number(engine.api_min)
    if newest < API_VERSION_MIN or oldest > API_VERSION_MAX:
        spoken = f"{_api_text(API_VERSION_MIN)} to {_api_text(API_VERSION_MAX)}"
        # It passes with an upgrade of either, until which all jobs wait.
        raise Temporary(
            ErrorCode.ENGINE_UNAVAILABLE,
            f"Docker Engine {engine.version} speaks API {engine.api_min} to {engine.api}, this service {spoken}:"
            f" {'upgrade the engine to 20.10 or newer' if newest < API_VERSION_MIN else 'upgrade this service'}",
            peer=ENGINE,
        )
    return EngineInfo(engine.version, _api_text(min(newest, API_VERSION_MAX)), engine.os, engine.architecture)


def _api_number(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    if not (major.isdecimal() and minor.isdecimal()):
        raise errors.ended_early(f"{text!r} is not an API version")
    return int(major), int(minor)


def _api_text(number: tuple[int, int]) -> str:
    return f"{number[0]}.{number[1]}"
