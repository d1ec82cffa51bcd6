"""BuildKit's history of builds, which keeps the arguments and all output of each, for days, where nothing prunes it.

It is reached through gRPC (`moby.buildkit.v1.Control`) over HTTP/2 over an upgraded `POST /grpc`. Docker 20.10 keeps
none. A record is known for a job's by a build argument that no Dockerfile asks for: it stands there however the build
ended, and changes nothing in image or cache. (The name of the image, an attribute of the exporter, is not in the
records of Docker 26.)
"""

import asyncio
import functools
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from typing import TypeVar

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

from imagejobd.engine import faults
from imagejobd.engine.client import Engine, Upgraded
from imagejobd.engine.protobuf import MalformedRecord, as_bytes, as_int, as_text, encoded, fields
from imagejobd.model.errors import ErrorCode, Permanent

log = structlog.get_logger("imagejobd.engine")
T = TypeVar("T")

# For all that is asked over one connection.
HISTORY_TIMEOUT_S = 10.0
# A build that was stopped is recorded a moment later; one that takes longer is found by the next look.
ENDING_LOOKS = 10
ENDING_INTERVAL_S = 0.1
# A record holds all arguments of its build. BuildKit itself sends at most 16 MiB.
RECORD_MAX_BYTES = 24 * 1024**2
HISTORY_MAX_BYTES = 256 * 1024**2

# Names the images of a build, as `repository:tag` with commas between them.
IMAGES_ARG = "IMAGEJOBD_IMAGES"
# gRPC's statuses that say more than that something went wrong, in HTTP's: bad argument, absent, forbidden, unknown
# method, not logged in.
_HTTP_STATUSES = {"3": 400, "5": 404, "7": 403, "12": 404, "16": 401}


class _Build(msgspec.Struct, frozen=True):
    """A record: its id, the repositories that its image was named in, and whether the build still goes on."""

    ref: str
    repositories: frozenset[str]
    is_active: bool


async def list_history(engine: Engine) -> set[str]:
    """The repositories (`imagejobd/<uuid>`) that our ended builds in the history were to name images in.

    Raises as `delete_history` does, and is empty where that does nothing.
    """
    return await _asked(engine, _ended, set())


async def delete_history(engine: Engine, repository: str) -> int:
    """Delete the records, with their logs, of our builds that were to name an image in `repository`; returns how many.

    A build that still goes on is waited for a moment. Docker 26 removes a log's file, which nobody can reach any more,
    with the next pruning of the build cache. Does nothing on an engine that has no history, or that keeps it from us.
    Raises `Temporary(engine_unavailable)`.
    """
    return await _asked(engine, functools.partial(_delete, repository=repository), 0)


async def _asked(engine: Engine, question: Callable[["_Control"], Awaitable[T]], otherwise: T) -> T:
    try:
        async with engine.upgrade("grpc", "h2c", timeout_s=HISTORY_TIMEOUT_S) as connection:
            return await question(_Control(connection))
    except (H2Error, MalformedRecord) as error:
        raise faults.ended_early(f"the build history is not what an engine says ({error})") from error
    except Permanent as fault:
        if fault.code is not ErrorCode.NOT_FOUND:
            _tell_refused(engine.host, fault.message)
        return otherwise


async def _ended(control: "_Control") -> set[str]:
    builds = await control.builds()
    return {repository for build in builds if not build.is_active for repository in build.repositories}


async def _delete(control: "_Control", repository: str) -> int:
    deleted: set[str] = set()
    for _ in range(ENDING_LOOKS):
        builds = [build for build in await control.builds() if repository in build.repositories]
        # One that somebody reads goes only when he has done, and is listed until then.
        for ref in {build.ref for build in builds if not build.is_active} - deleted:
            await control.delete(ref)
            deleted.add(ref)
        if not any(build.is_active for build in builds):
            break
        await asyncio.sleep(ENDING_INTERVAL_S)
    return len(deleted)


class _Control:
    """BuildKit's control service over one connection, one call at a time."""

    def __init__(self, connection: Upgraded) -> None:
        self._connection = connection
        self._http = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self._http.initiate_connection()

    async def builds(self) -> list[_Build]:
        """Everything in the history, and the builds that go on."""
        # BuildHistoryRequest: 3 is earlyExit. Without it the engine goes on to tell what changes.
        async with aclosing(self._call("ListenBuildHistory", encoded(3, True))) as events:
            return [_build(event) async for event in events]

    async def delete(self, ref: str) -> None:
        # UpdateBuildHistoryRequest: 1 is Ref, 3 is Delete.
        try:
            async with aclosing(self._call("UpdateBuildHistory", encoded(1, ref.encode()) + encoded(3, True))) as none:
                async for _ in none:
                    pass
        except Permanent as fault:
            if fault.code is not ErrorCode.NOT_FOUND:
                raise

    async def _call(self, method: str, request: bytes) -> AsyncGenerator[bytes, None]:
        """The messages of the answer: each has five bytes before it, of which four are its size."""
        stream = self._http.get_next_available_stream_id()
        self._http.send_headers(stream, _headers(method))
        self._http.send_data(stream, b"\0" + len(request).to_bytes(4, "big") + request, end_stream=True)
        buffer, answer_bytes = bytearray(), 0
        async with aclosing(self._blocks(stream)) as blocks:
            async for block in blocks:
                buffer += block
                answer_bytes += len(block)
                while len(buffer) >= 5 and len(buffer) >= (end := 5 + int.from_bytes(buffer[1:5], "big")):
                    yield bytes(buffer[5:end])
                    del buffer[:end]
                if answer_bytes > HISTORY_MAX_BYTES or len(buffer) > RECORD_MAX_BYTES:
                    raise Permanent(ErrorCode.TOO_LARGE, f"{method} answered with more than it may be read of it")

    async def _blocks(self, stream: int) -> AsyncGenerator[bytes, None]:
        """The body of an answer. Raises what its status means, which stands behind it, or before one that is empty."""
        headers: dict[str, str] = {}
        while True:
            self._connection.write(self._http.data_to_send())
            received = await self._connection.read()
            if not received:
                raise faults.ended_early("the build history was cut")
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
                        raise faults.ended_early(f"the build history was cut ({event})")


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


@functools.cache
def _tell_refused(host: str, why: str) -> None:
    """Said once."""
    log.warning(
        "the engine does not let its history of builds be deleted, so it keeps their logs", host=host, error=why
    )
