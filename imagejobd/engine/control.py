"""BuildKit's own service (`moby.buildkit.v1.Control`), for what the engine's API does not offer.

It is gRPC over HTTP/2 over an upgraded `POST /grpc`. An engine may have no such door, or not every method behind it.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import H2Error

from imagejobd.engine import faults, grpc
from imagejobd.engine.client import Engine, Upgraded
from imagejobd.engine.protobuf import MalformedRecord
from imagejobd.model.errors import ErrorCode, Permanent

# For all that is asked over one connection.
CONTROL_TIMEOUT_S = 10.0
# A record of a build holds all its arguments. BuildKit itself sends at most 16 MiB in one message.
MESSAGE_MAX_BYTES = 24 * 1024**2
ANSWER_MAX_BYTES = 256 * 1024**2

# Before each message: whether it is compressed, and its size in four bytes.
_FRAME_BYTES = 5
# gRPC's statuses that say more than that something went wrong, in HTTP's: bad argument, absent, forbidden, unknown
# method, not logged in.
_HTTP_STATUSES = {"3": 400, "5": 404, "7": 403, "12": 404, "16": 401}


@asynccontextmanager
async def control(engine: Engine) -> AsyncIterator["Control"]:
    """The service over a connection of its own, within `CONTROL_TIMEOUT_S`.

    Raises `Permanent(not_found)` where there is no such door or method, another `Permanent` where the engine refuses,
    and `Temporary(engine_unavailable)`, also for a `MalformedRecord` that is found in the block.
    """
    try:
        async with engine.upgrade("grpc", "h2c", timeout_s=CONTROL_TIMEOUT_S) as connection:
            yield Control(connection)
    except (H2Error, MalformedRecord) as error:
        raise faults.ended_early(f"BuildKit's answer is not what an engine says ({error})") from error


class Control:
    """One call at a time."""

    def __init__(self, connection: Upgraded) -> None:
        self._connection = connection
        self._http = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self._http.initiate_connection()

    async def call(self, method: str, request: bytes = b"") -> AsyncGenerator[bytes, None]:
        """The messages of the answer, of which each has a byte and its size before it."""
        stream = self._http.get_next_available_stream_id()
        self._http.send_headers(stream, _headers(method))
        self._http.send_data(stream, grpc.message(request), end_stream=True)
        buffer, answer_bytes = bytearray(), 0
        async with aclosing(self._blocks(stream)) as blocks:
            async for block in blocks:
                buffer += block
                answer_bytes += len(block)
                while len(buffer) >= (end := _FRAME_BYTES + int.from_bytes(buffer[1:_FRAME_BYTES], "big")):
                    yield bytes(buffer[_FRAME_BYTES:end])
                    del buffer[:end]
                if answer_bytes > ANSWER_MAX_BYTES or len(buffer) > MESSAGE_MAX_BYTES:
                    raise Permanent(ErrorCode.TOO_LARGE, f"BuildKit answered {method} with too many bytes")

    async def _blocks(self, stream: int) -> AsyncGenerator[bytes, None]:
        """The body of an answer. Raises what its status means, which stands behind it, or before one that is empty."""
        headers: dict[str, str] = {}
        while True:
            self._connection.write(self._http.data_to_send())
            received = await self._connection.read()
            if not received:
                raise faults.ended_early("BuildKit's answer was cut")
            for event in self._http.receive_data(received):
                match event:
                    case DataReceived():
                        self._http.acknowledge_received_data(event.flow_controlled_length, stream)
                        yield event.data
                    case ResponseReceived() | TrailersReceived():
                        headers |= _as_text(event.headers)
                    case StreamEnded():
                        _raise_refusal(headers)
                        return
                    case StreamReset() | ConnectionTerminated():
                        raise faults.ended_early(f"BuildKit's answer was cut ({event})")


def _headers(method: str) -> list[tuple[str, str]]:
    return [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", f"/moby.buildkit.v1.Control/{method}"),
        (":authority", "engine"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    ]


def _as_text(headers: Iterable[tuple[str | bytes, str | bytes]]) -> dict[str, str]:
    """They are text by the configuration; the types do not know that."""
    return {str(name): str(value) for name, value in headers}


def _raise_refusal(headers: dict[str, str]) -> None:
    status = headers.get("grpc-status", "")
    if status != "0":
        raise faults.of_engine(_HTTP_STATUSES.get(status, 500), headers.get("grpc-message", ""))
