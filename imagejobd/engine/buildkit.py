"""What BuildKit says in its own messages: the progress of a build, and the history of all of them.

Shapes: moby/buildkit's `api/services/control/control.proto`. Only the fields that are used are read, unknown ones are
skipped as protobuf wants; whatever the bytes are, the outcome is a value or `MalformedRecord`.

Progress comes as `moby.buildkit.trace` records. A vertex is repeated whenever something about it changes, so they are
remembered by digest, and only changes become events. Steps have the numbers of docker's plain progress: in the order in
which they first show life. No I/O is done there.

The history keeps the arguments and all output of each build, for days, where nothing prunes it; Docker 20.10 keeps
none. A record is known for a job's by a build argument that no Dockerfile asks for: it stands there however the build
ended, and changes nothing in image or cache. (The name of the image, an attribute of the exporter, is not in the
records of Docker 26.) The engine's API does not offer the history; BuildKit's own service does.
"""

import asyncio
import codecs
import functools
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import aclosing, asynccontextmanager, suppress
from itertools import groupby
from operator import attrgetter

import msgspec
import structlog
from h2.exceptions import H2Error

from imagejobd.engine import errors, grpc
from imagejobd.engine.client import Engine
from imagejobd.engine.protobuf import MalformedRecord, as_bytes, as_int, as_text, as_time, encoded, fields
from imagejobd.engine.stream import BuildEvent, BuildWarning, Message, Output, Step, StepState, Tail, Transfer
from imagejobd.model.errors import ErrorCode, NotFound, Permanent

# A sound engine sends no empty records in a row; the fault below sends tens of thousands a second.
STUCK_RECORDS = 1000
# For all that is asked over one connection.
CONTROL_TIMEOUT_S = 10.0
# A build that was stopped is recorded a moment later; one that takes longer is found the next time.
ENDING_TRIES = 10
ENDING_INTERVAL_S = 0.1
# Names the images of a build, as `repository:tag` with commas between them.
IMAGES_ARG = "IMAGEJOBD_IMAGES"

_TRACE_ID = "moby.buildkit.trace"
_IMAGE_ID = "moby.image.id"
_STDERR = 2
_UTF8 = codecs.getincrementaldecoder("utf-8")
_CANCELLED = "context canceled"
_EMPTY_RECORD = b'""'
_LOST = "the engine lost the rest of this build's output, as Docker 20.10 does with very fast output"
# How BuildKit calls the step that takes the Dockerfile in over the session.
_DOCKERFILE_STEP = "[internal] load build definition from"
_trace_decoder = msgspec.json.Decoder(bytes)

log = structlog.get_logger("imagejobd.engine")


class Vertex(msgspec.Struct, frozen=True):
    """One step of the build graph. Times are seconds since the epoch; None while it has not come to that."""

    digest: str = ""
    name: str = ""
    cached: bool = False
    started_s: float | None = None
    completed_s: float | None = None
    error: str = ""

    @property
    def has_ended(self) -> bool:
        return self.completed_s is not None or self.cached or bool(self.error)


class VertexLog(msgspec.Struct, frozen=True, gc=False):
    """A piece of a vertex's output: bytes cut anywhere, even within a character."""

    vertex: str
    is_stderr: bool
    data: bytes


class StatusResponse(msgspec.Struct, frozen=True):
    """One record. What is said of a vertex stands beside its digest: how far a part has come, by the part's id, and a
    frontend's remarks on the Dockerfile."""

    vertices: list[Vertex]
    transfers: list[tuple[str, Transfer]]
    logs: list[VertexLog]
    warnings: list[tuple[str, str]]


class _Build(msgspec.Struct, frozen=True):
    """A record: its id, the repositories that its image was named in, and whether the build still goes on."""

    ref: str
    repositories: frozenset[str]
    is_active: bool


class _StepProgress:
    """What was reported of one vertex so far; `number` is 0 before it shows life."""

    __slots__ = ("decoders", "has_ended", "name", "number", "tail", "transfers")

    def __init__(self) -> None:
        self.number = 0
        self.name = ""
        self.has_ended = False
        self.tail = Tail()
        self.transfers: dict[str, Transfer] = {}
        self.decoders = {False: _UTF8("replace"), True: _UTF8("replace")}


class BuildkitProgress:
    """Reads the messages of one build; `image_id` is set when the engine reports it.

    `dockerfile_span` is from when to when the Dockerfile came in, by the engine's clock.
    """

    def __init__(self) -> None:
        self.image_id = ""
        self.dockerfile_span: tuple[float, float] | None = None
        self._steps: defaultdict[str, _StepProgress] = defaultdict(_StepProgress)
        self._last_number = 0
        self._failed: _StepProgress | None = None
        self._is_garbled = False
        self._empty_records = 0

    @property
    def is_stuck(self) -> bool:
        """Whether nothing comes any more but the image's id, where the build succeeds; if it fails, nothing at all.

        When more than 1 MiB of logs waits to be sent, `Controller.Status` of the BuildKit in Docker 20.10 splits it,
        and then repeats an empty record for ever instead of coming to the next one (`retry` keeps its value).
        """
        return self._empty_records >= STUCK_RECORDS

    def read(self, batch: Iterable[Message]) -> Iterator[BuildEvent]:
        for message in batch:
            if not message.aux:
                continue
            if message.id == _TRACE_ID:
                if bytes(message.aux) == _EMPTY_RECORD:
                    self._empty_records += 1
                    continue
                self._empty_records = 0
                yield from self._trace(message.aux)
            elif message.id == _IMAGE_ID:
                self.image_id = message.image_id()
        if self.is_stuck and self.image_id:
            yield BuildWarning(0, f"{_LOST}; the image is whole")
            yield from self._end_open("done")

    def lost(self) -> Permanent:
        """The fault of a build that is stuck and over, without an image: only its last words may say what failed."""
        self._failed = self._failed or max(self._open_steps(), key=lambda step: step.number, default=None)
        return Permanent(ErrorCode.BUILD_FAILED, f"the build failed; why is not known, for {_LOST}")

    def fail(self, error: str) -> Iterator[BuildEvent]:
        """End the steps that went on when the build failed: the error is not theirs, but of one that is lost."""
        failed = self._failed
        if failed is not None and not failed.has_ended:
            failed.has_ended = True
            yield Step(failed.number, failed.name, "failed", error=error)
        yield from self._end_open("cancelled")

    def last_words(self) -> tuple[str, str] | None:
        """The name and last lines of the step that failed, when one did and had printed something."""
        if self._failed is None or not (lines := self._failed.tail.lines()):
            return None
        return f"step {self._failed.number} ({self._failed.name})", lines

    def _open_steps(self) -> list[_StepProgress]:
        return [step for step in self._steps.values() if step.number and not step.has_ended]

    def _end_open(self, state: StepState) -> Iterator[BuildEvent]:
        for step in self._open_steps():
            step.has_ended = True
            yield Step(step.number, step.name, state)

    def _trace(self, aux: msgspec.Raw) -> Iterator[BuildEvent]:
        try:
            status = decode_status(_trace_decoder.decode(aux))
        except (MalformedRecord, msgspec.DecodeError) as error:
            # Progress is for people: a build whose progress cannot be read still builds. Said once per build.
            if not self._is_garbled:
                self._is_garbled = True
                text = f"a progress record of the engine could not be read ({error}); its output is lost"
                yield BuildWarning(0, text)
            return
        # Logs go between starts and ends: a record may carry a step's last output and its end together.
        for vertex in status.vertices:
            step = self._steps[vertex.digest]
            step.name = vertex.name or step.name
            if vertex.started_s is not None or vertex.has_ended:
                yield from self._number(step)
        for digest, transfer in status.transfers:
            step = self._steps[digest]
            if step.transfers.get(transfer.name) != transfer:
                step.transfers[transfer.name] = transfer
                yield from self._number(step)
                yield msgspec.structs.replace(transfer, step=step.number)
        # One event for neighbouring pieces of one step and stream: a noisy step sends thousands at a time.
        for (digest, is_stderr), logs in groupby(status.logs, key=attrgetter("vertex", "is_stderr")):
            yield from self._text(self._steps[digest], is_stderr, b"".join([log.data for log in logs]))
        for vertex in status.vertices:
            yield from self._end(vertex)
        for digest, text in status.warnings:
            yield BuildWarning(self._steps[digest].number if digest in self._steps else 0, text)

    def _end(self, vertex: Vertex) -> Iterator[BuildEvent]:
        step = self._steps[vertex.digest]
        if step.has_ended or not vertex.has_ended:
            return
        step.has_ended = True
        seconds: float | None = None
        if vertex.started_s is not None and vertex.completed_s is not None:
            seconds = max(0.0, vertex.completed_s - vertex.started_s)
            if step.name.startswith(_DOCKERFILE_STEP):
                self.dockerfile_span = vertex.started_s, vertex.completed_s
        for is_stderr in step.decoders:
            yield from self._text(step, is_stderr, b"", final=True)
        state: StepState = "cached" if vertex.cached else "done"
        if vertex.error.endswith(_CANCELLED):
            state = "cancelled"
        elif vertex.error:
            state, self._failed = "failed", step
        yield Step(step.number, step.name, state, seconds, errors.public_text(vertex.error) or None)

    def _number(self, step: _StepProgress) -> Iterator[BuildEvent]:
        if step.number == 0:
            self._last_number += 1
            step.number = self._last_number
            yield Step(step.number, step.name, "started")

    def _text(self, step: _StepProgress, is_stderr: bool, data: bytes, *, final: bool = False) -> Iterator[BuildEvent]:
        if text := step.decoders[is_stderr].decode(data, final):
            step.tail.add(text)
            yield from self._number(step)
            yield Output(step.number, "err" if is_stderr else "out", text)


@asynccontextmanager
async def control(engine: Engine) -> AsyncIterator[grpc.Client]:
    """BuildKit's own service (`moby.buildkit.v1.Control`) over an upgraded `POST /grpc`, within `CONTROL_TIMEOUT_S`.

    Raises `Permanent(not_found)` where there is no such endpoint or method, another `Permanent` where the engine
    refuses, and `Temporary(engine_unavailable)`, also for a `MalformedRecord` that is found in the block.
    """
    try:
        async with engine.upgrade("grpc", "h2c", timeout_s=CONTROL_TIMEOUT_S) as connection:
            yield grpc.Client(connection, "moby.buildkit.v1.Control")
    except (H2Error, MalformedRecord) as error:
        raise errors.ended_early(f"BuildKit's answer is not what an engine says ({error})") from error


async def list_history(engine: Engine) -> set[str]:
    """The repositories (`model/ownership.py`) that ended builds in the history, of all installations, were to name
    images in.

    Raises as `delete_history` does, and is empty where that does nothing.
    """
    try:
        async with control(engine) as service:
            builds = await _builds(service)
    except Permanent as fault:
        if not isinstance(fault, NotFound):
            _warn_refused(engine.host, fault.message)
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
            for _ in range(ENDING_TRIES):
                builds = [build for build in await _builds(service) if not build.repositories.isdisjoint(repositories)]
                # One that somebody reads goes only when he has done, and is listed until then.
                for ref in {build.ref for build in builds if not build.is_active} - deleted:
                    await _delete(service, ref)
                    deleted.add(ref)
                if not any(build.is_active for build in builds):
                    break
                await asyncio.sleep(ENDING_INTERVAL_S)
    except Permanent as fault:
        if not isinstance(fault, NotFound):
            _warn_refused(engine.host, fault.message)
    return len(deleted)


def decode_status(record: bytes) -> StatusResponse:
    """Decode one record. Raises `MalformedRecord`."""
    response = StatusResponse([], [], [], [])
    for number, value in fields(record):
        if number == 3:
            response.logs.append(_log(as_bytes(value)))
        elif number == 1:
            response.vertices.append(_vertex(as_bytes(value)))
        elif number == 2:
            response.transfers.append(_transfer(as_bytes(value)))
        elif number == 4:
            response.warnings.append(_warning(as_bytes(value)))
    return response


def _log(record: bytes) -> VertexLog:
    vertex, stream, data = "", 0, b""
    for number, value in fields(record):
        if number == 4:
            data = as_bytes(value)
        elif number == 3:
            stream = as_int(value)
        elif number == 1:
            vertex = as_text(value)
    return VertexLog(vertex, stream == _STDERR, data)


def _vertex(record: bytes) -> Vertex:
    values = dict(fields(record))
    return Vertex(
        digest=as_text(values.get(1, b"")),
        name=as_text(values.get(3, b"")),
        cached=bool(as_int(values.get(4, 0))),
        started_s=as_time(values.get(5)),
        completed_s=as_time(values.get(6)),
        error=as_text(values.get(7, b"")),
    )


def _transfer(record: bytes) -> tuple[str, Transfer]:
    """VertexStatus: 1 is its id, 2 the vertex, 3 the name, 4 current and 5 total."""
    values = dict(fields(record))
    name, status = as_text(values.get(1, b"")), as_text(values.get(3, b""))
    transfer = Transfer(0, name, status, as_int(values.get(4, 0)), as_int(values.get(5, 0)))
    return as_text(values.get(2, b"")), transfer


def _warning(record: bytes) -> tuple[str, str]:
    """VertexWarning: 1 is the vertex, 3 what in short, 4 details, 5 a URL; a line of text each."""
    pairs = list(fields(record))
    values = dict(pairs)
    details = [value for number, value in pairs if number == 4]
    lines = [as_text(value) for value in (values.get(3, b""), *details, values.get(5, b""))]
    return as_text(values.get(1, b"")), "\n".join(filter(None, lines))


async def _builds(service: grpc.Client) -> list[_Build]:
    """Everything in the history, and the builds that go on."""
    # BuildHistoryRequest: 3 is EarlyExit. Without it the engine goes on to report what changes.
    async with aclosing(service.call("ListenBuildHistory", encoded(3, True))) as events:
        return [_build(event) async for event in events]


async def _delete(service: grpc.Client, ref: str) -> None:
    # UpdateBuildHistoryRequest: 1 is Ref, 3 is Delete.
    request = encoded(1, ref.encode()) + encoded(3, True)
    with suppress(NotFound):
        async with aclosing(service.call("UpdateBuildHistory", request)) as answer:
            async for _ in answer:
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


@functools.cache
def _warn_refused(host: str, fault: str) -> None:
    log.warning("the engine keeps the logs of builds: it does not let us delete its history", host=host, error=fault)
