"""BuildKit's own service (`moby.buildkit.v1.Control`), for what the engine's API does not offer.

It is gRPC over HTTP/2 over an upgraded `POST /grpc`. An engine may have no such door, or not every method behind it.

BuildKit's history of builds, which keeps the arguments and all output of each, for days, where nothing prunes it.

Docker 20.10 keeps none. A record is known for a job's by a build argument that no Dockerfile asks for: it stands there
however the build ended, and changes nothing in image or cache. (The name of the image, an attribute of the exporter, is
not in the records of Docker 26.)
"""

import asyncio
import functools
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager

import msgspec
import structlog
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

from imagejobd.engine import errors, grpc
from imagejobd.engine.client import Engine, Upgraded
from imagejobd.engine.protobuf import MalformedRecord, as_bytes, as_int, as_text, encoded, fields
from imagejobd.model.errors import ErrorCode, NotFound, Permanent

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
        raise errors.ended_early(f"BuildKit's answer is not what an engine says ({error})") from error


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
                raise errors.ended_early("BuildKit's answer was cut")
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
                        raise errors.ended_early(f"BuildKit's answer was cut ({event})")


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
        raise errors.of_engine(_HTTP_STATUSES.get(status, 500), headers.get("grpc-message", ""))


log = structlog.get_logger("imagejobd.engine")

# A build that was stopped is recorded a moment later; one that takes longer is found by the next look.
ENDING_LOOKS = 10
ENDING_INTERVAL_S = 0.1

# Names the images of a build, as `repository:tag` with commas between them.
IMAGES_ARG = "IMAGEJOBD_IMAGES"


class _Build(msgspec.Struct, frozen=True):
    """A record: its id, the repositories that its image was named in, and whether the build still goes on."""

    ref: str
    repositories: frozenset[str]
    is_active: bool


async def list_history(engine: Engine) -> set[str]:
    """The repositories (`model/reserved.py`) that ended builds in the history, of all installations, were to name
    images in.

    Raises as `delete_history` does, and is empty where that does nothing.
    """
    try:
        async with control(engine) as service:
            builds = await _builds(service)
    except Permanent as fault:
        _tell_refused(engine, fault)
        return set()
    return {repository for build in builds if not build.is_active for repository in build.repositories}


async def delete_history(engine: Engine, *repositories: str) -> int:
    """Delete the records, with their logs, of builds that were to name an image in one of these; returns how many.

    A build that still goes on is waited for a moment. Docker 26 removes a log's file, which nobody can reach any more,
    with the next pruning of the build cache. Does nothing on an engine that has no history, or that keeps it from us.
    Raises `Temporary(engine_unavailable)`.
    """
    deleted: set[str] = set()
    try:
        async with control(engine) as service:
            for _ in range(ENDING_LOOKS):
                builds = [build for build in await _builds(service) if not build.repositories.isdisjoint(repositories)]
                # One that somebody reads goes only when he has done, and is listed until then.
                for ref in {build.ref for build in builds if not build.is_active} - deleted:
                    await _delete(service, ref)
                    deleted.add(ref)
                if not any(build.is_active for build in builds):
                    break
                await asyncio.sleep(ENDING_INTERVAL_S)
    except Permanent as fault:
        _tell_refused(engine, fault)
    return len(deleted)


async def _builds(service: Control) -> list[_Build]:
    """Everything in the history, and the builds that go on."""
    # BuildHistoryRequest: 3 is EarlyExit. Without it the engine goes on to tell what changes.
    async with aclosing(service.call("ListenBuildHistory", encoded(3, True))) as events:
        return [_build(event) async for event in events]


async def _delete(service: Control, ref: str) -> None:
    # UpdateBuildHistoryRequest: 1 is Ref, 3 is Delete.
    request = encoded(1, ref.encode()) + encoded(3, True)
    try:
        async with aclosing(service.call("UpdateBuildHistory", request)) as answer:
            async for _ in answer:
                pass
    except NotFound:
        pass


def _build(event: bytes) -> _Build:
    """BuildHistoryEvent: 1 is the type, of which 0 is STARTED; 2 is the BuildHistoryRecord.

    Of that 1 is the Ref and 3 an entry of the FrontendAttrs: key and value.
    """
    outer = dict(fields(event))
    record = list(fields(as_bytes(outer.get(2, b""))))
    entries = [dict(fields(as_bytes(value))) for number, value in record if number == 3]
    attributes = {as_text(entry.get(1, b"")): as_text(entry.get(2, b"")) for entry in entries}
    images = attributes.get(f"build-arg:{IMAGES_ARG}", "").split(",")
    return _Build(
        ref=as_text(dict(record).get(1, b"")),
        repositories=frozenset(image.rpartition(":")[0] for image in images if image),
        is_active=as_int(outer.get(1, 0)) == 0,
    )


def _tell_refused(engine: Engine, fault: Permanent) -> None:
    if not isinstance(fault, NotFound):
        _tell_once(engine.host, fault.message)


@functools.cache
def _tell_once(host: str, why: str) -> None:
    log.warning("the engine keeps the logs of builds: it does not let us delete its history", host=host, error=why)
