"""gRPC over HTTP/2, on a connection that the engine let be upgraded: the server of its calls, and a client of it.

Just what BuildKit's session and its own service need: calls by name with their metadata, messages, and flow control, so
that nothing is held in memory that the engine does not take. A call of an unknown name is answered as unimplemented.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from urllib.parse import quote

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    PingAckReceived,
    RemoteSettingsChanged,
    RequestReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes

from imagejobd.engine import errors
from imagejobd.engine.client import Upgraded
from imagejobd.model.errors import ErrorCode, Permanent

# A request for a file is some 15 bytes: thousands may be under way.
RECEIVE_WINDOW_BYTES = 1 << 20
# The names of all that a Dockerfile copies stand in the header of one call. More than h2 takes would end the session:
# this the engine hears before, and says it.
HEADERS_MAX_BYTES = 1 << 20
MESSAGE_MAX_BYTES = 1 << 20
# Of an answer. BuildKit itself sends at most 16 MiB in one message; a record of a build holds all its arguments.
ANSWER_MESSAGE_MAX_BYTES = 24 * 1024**2
ANSWER_MAX_BYTES = 256 * 1024**2
# At some thirty bytes a frame, what takes h2 10 ms, in which nothing else is served.
PARSED_BYTES = 8 * 1024
# An engine that holds its end answers at once, however slow its builds are.
PING_TIMEOUT_S = 10.0

OK, CANCELLED, NOT_FOUND, UNIMPLEMENTED, INTERNAL = 0, 1, 5, 12, 13

# Before each message: whether it is compressed, and its size in four bytes.
_PREFIX_BYTES = 5
_HEADERS = [(":status", "200"), ("content-type", "application/grpc")]
_PING = b"is-alive"
_SETTINGS: dict[SettingCodes | int, int] = {
    SettingCodes.INITIAL_WINDOW_SIZE: RECEIVE_WINDOW_BYTES,
    SettingCodes.MAX_HEADER_LIST_SIZE: HEADERS_MAX_BYTES,
}
# The statuses that say more than that something went wrong, in HTTP's: bad argument, absent, forbidden, unknown method,
# not logged in.
_HTTP_STATUSES = {"3": 400, "5": 404, "7": 403, "12": 404, "16": 401}


class StatusError(Exception):
    """The call ends with this status of gRPC."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def message(content: bytes) -> bytes:
    """A message as it is sent: not compressed, its length, itself."""
    return b"\0" + len(content).to_bytes(4) + content


class Call:
    """One call by the engine, while it lasts."""

    def __init__(self, server: "Server", stream: int, metadata: Mapping[str, list[str]]) -> None:
        self.metadata = metadata
        self.stream = stream
        self._server = server
        self._received = bytearray()
        self._messages: list[bytes] = []
        self._changed = asyncio.Event()
        self._is_ended = False
        self.has_headers = False

    def feed(self, data: bytes) -> None:
        """What the engine sends; raises `ProtocolError` for what is no message."""
        buffer = self._received
        buffer += data
        while len(buffer) >= _PREFIX_BYTES:
            size = int.from_bytes(buffer[1:_PREFIX_BYTES])
            if buffer[0] or size > MESSAGE_MAX_BYTES:
                raise ProtocolError("a message is compressed or too long")
            end = _PREFIX_BYTES + size
            if len(buffer) < end:
                break
            self._messages.append(bytes(buffer[_PREFIX_BYTES:end]))
            del buffer[:end]
        self._changed.set()

    def end(self) -> None:
        """The engine sends no more."""
        self._is_ended = True
        self._changed.set()

    def wake(self) -> None:
        """The engine takes more."""
        self._changed.set()

    def take(self) -> list[bytes]:
        """The messages that have arrived since the last time."""
        messages, self._messages = self._messages, []
        return messages

    async def wait(self) -> None:
        """Until there are messages; raises `StatusError` when there will be none."""
        while not self._messages:
            if self._is_ended:
                raise StatusError(CANCELLED, "the call was left")
            await self.change()

    async def change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    async def send(self, messages: bytes) -> None:
        """Whole messages, one behind the other, as fast as the engine takes them."""
        await self._server.send(self, messages)


Handler = Callable[[Call], Awaitable[None]]


class Server:
    """Answers the calls that arrive over one connection."""

    def __init__(self, connection: Upgraded, handlers: Mapping[str, Handler]) -> None:
        self._connection = connection
        self._handlers = handlers
        self._h2 = H2Connection(H2Configuration(client_side=False, header_encoding=None))
        self._calls: dict[int, tuple[Call, asyncio.Task[None]]] = {}
        self._sending = asyncio.Lock()
        self._pong = asyncio.Event()
        self._is_open = True

    async def serve(self) -> None:
        """Until the engine closes the connection, or breaks the protocol; then it is closed here."""
        try:
            async with asyncio.TaskGroup() as tasks:
                await self._read(tasks)
                for _, task in self._calls.values():
                    task.cancel()
        finally:
            self._is_open = False
            self._pong.set()
            self._connection.abort()

    async def is_alive(self) -> bool:
        """Whether the engine still holds its end: it answers a ping."""
        try:
            async with asyncio.timeout(PING_TIMEOUT_S):
                if self._is_open:
                    self._pong.clear()
                    self._h2.ping(_PING)
                    self._flush()
                    await self._pong.wait()
        except (ProtocolError, *errors.BROKEN):
            return False
        return self._is_open

    async def send(self, call: Call, messages: bytes) -> None:
        """As `Call.send` says."""
        if not call.has_headers:
            self._h2.send_headers(call.stream, _HEADERS)
            call.has_headers = True
        rest = memoryview(messages)
        while rest:
            room = self._h2.local_flow_control_window(call.stream)
            if room <= 0:
                await call.change()
                continue
            piece, rest = rest[:room], rest[room:]
            while piece:
                frame = piece[: self._h2.max_outbound_frame_size]
                self._h2.send_data(call.stream, frame)
                piece = piece[len(frame) :]
            async with self._sending:
                self._flush()
                await self._connection.drain()

    async def _read(self, tasks: asyncio.TaskGroup) -> None:
        try:
            self._h2.initiate_connection()
            self._h2.update_settings(_SETTINGS)
            self._h2.increment_flow_control_window(RECEIVE_WINDOW_BYTES)
            self._flush()
            while data := await self._connection.read():
                for at in range(0, len(data), PARSED_BYTES):
                    self._receive(data[at : at + PARSED_BYTES], tasks)
                    await asyncio.sleep(0)
        except (ProtocolError, *errors.BROKEN):
            return

    def _receive(self, data: bytes, tasks: asyncio.TaskGroup) -> None:
        sizes: Counter[int] = Counter()
        for event in self._h2.receive_data(data):
            if isinstance(event, DataReceived):
                sizes[event.stream_id] += event.flow_controlled_length
            self._handle(event, tasks)
        for stream, size in sizes.items():
            self._h2.acknowledge_received_data(size, stream)
        self._flush()

    def _handle(self, event: Event, tasks: asyncio.TaskGroup) -> None:
        match event:
            case RequestReceived():
                self._begin(event, tasks)
            case DataReceived() if event.stream_id in self._calls:
                self._calls[event.stream_id][0].feed(event.data)
            case StreamEnded() if event.stream_id in self._calls:
                self._calls[event.stream_id][0].end()
            case StreamReset() if event.stream_id in self._calls:
                self._calls[event.stream_id][1].cancel()
            case WindowUpdated() | RemoteSettingsChanged():
                for call, _ in self._calls.values():
                    call.wake()
            case PingAckReceived():
                self._pong.set()
            case ConnectionTerminated():
                raise ProtocolError("the engine leaves")

    def _begin(self, event: RequestReceived, tasks: asyncio.TaskGroup) -> None:
        metadata: dict[str, list[str]] = {}
        for name, value in event.headers:
            metadata.setdefault(bytes(name).decode("latin-1"), []).append(bytes(value).decode("latin-1"))
        call = Call(self, event.stream_id, metadata)
        task = tasks.create_task(self._run(call))
        self._calls[call.stream] = (call, task)
        task.add_done_callback(lambda _: self._calls.pop(call.stream))

    async def _run(self, call: Call) -> None:
        path = call.metadata[":path"][0]
        handler = self._handlers.get(path)
        status, reason = (OK, "") if handler else (UNIMPLEMENTED, f"{path} is not offered")
        try:
            try:
                if handler:
                    await handler(call)
            except StatusError as error:
                status, reason = error.status, str(error)
            trailers = [("grpc-status", str(status)), ("grpc-message", quote(reason, safe=" "))]
            self._h2.send_headers(call.stream, trailers if call.has_headers else _HEADERS + trailers, end_stream=True)
            self._flush()
        except (ProtocolError, *errors.BROKEN):
            return  # The connection is at its end, which the reading of it finds too.

    def _flush(self) -> None:
        if data := self._h2.data_to_send():
            self._connection.write(data)


class Client:
    """Calls the methods of one `service` of the engine, one at a time."""

    def __init__(self, connection: Upgraded, service: str) -> None:
        self._connection = connection
        self._service = service
        self._h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self._h2.initiate_connection()

    async def call(self, method: str, request: bytes = b"") -> AsyncGenerator[bytes, None]:
        """The messages of the answer. Raises what the status behind it means, and `Permanent(too_large)`."""
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", f"/{self._service}/{method}"),
            (":authority", "engine"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
        ]
        stream = self._h2.get_next_available_stream_id()
        self._h2.send_headers(stream, headers)
        self._h2.send_data(stream, message(request), end_stream=True)
        buffer, answer_bytes = bytearray(), 0
        async with aclosing(self._blocks(stream)) as blocks:
            async for block in blocks:
                buffer += block
                answer_bytes += len(block)
                while len(buffer) >= (end := _PREFIX_BYTES + int.from_bytes(buffer[1:_PREFIX_BYTES])):
                    yield bytes(buffer[_PREFIX_BYTES:end])
                    del buffer[:end]
                if answer_bytes > ANSWER_MAX_BYTES or len(buffer) > ANSWER_MESSAGE_MAX_BYTES:
                    raise Permanent(ErrorCode.TOO_LARGE, f"BuildKit answered {method} with too many bytes")

    async def _blocks(self, stream: int) -> AsyncGenerator[bytes, None]:
        headers: dict[str, str] = {}
        while True:
            self._connection.write(self._h2.data_to_send())
            data = await self._connection.read()
            if not data:
                raise errors.ended_early("BuildKit's answer was cut")
            for event in self._h2.receive_data(data):
                match event:
                    case DataReceived():
                        self._h2.acknowledge_received_data(event.flow_controlled_length, stream)
                        yield event.data
                    case ResponseReceived() | TrailersReceived():
                        # They are text by the configuration; the types do not know that.
                        headers |= {str(name): str(value) for name, value in event.headers}
                    case StreamEnded():
                        # The status stands behind the answer, or before one that is empty.
                        if (status := headers.get("grpc-status", "")) != "0":
                            raise errors.of_engine(_HTTP_STATUSES.get(status, 500), headers.get("grpc-message", ""))
                        return
                    case StreamReset() | ConnectionTerminated():
                        raise errors.ended_early(f"BuildKit's answer was cut ({event})")
