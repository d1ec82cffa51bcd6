"""BuildKit's progress records, as `moby.buildkit.trace` lines carry them: protobuf, decoded to plain values.

Shapes: `control.StatusResponse` of moby/buildkit `api/services/control/control.proto`. Only the fields that are shown
are read, unknown ones are skipped as protobuf wants. Whatever the bytes are, the outcome is a value or
`MalformedRecord`.

BuildKit's progress made into events: vertices become numbered steps, logs become text.

BuildKit repeats a vertex whenever something about it changes, so they are kept by digest and only changes are told.
Numbers are given as docker's plain progress gives them: when a vertex first shows life. No I/O happens here.
"""

import codecs
from collections.abc import Iterable, Iterator

import msgspec

from imagejobd.engine import errors
from imagejobd.engine.protobuf import MalformedRecord, as_bytes, as_int, as_text, as_time, fields
from imagejobd.engine.stream import (
    BuildEvent,
    BuildWarning,
    Message,
    Output,
    OutputStream,
    Step,
    StepState,
    Tail,
    Transfer,
)
from imagejobd.model.errors import ErrorCode, Permanent

_STDERR = 2


class Vertex(msgspec.Struct, frozen=True):
    """One step of the build graph. Times are seconds since the epoch; None while it has not come to that."""

    digest: str = ""
    name: str = ""
    cached: bool = False
    started_s: float | None = None
    completed_s: float | None = None
    error: str = ""


class VertexStatus(msgspec.Struct, frozen=True):
    """How far a part of a vertex has come; `total` is 0 where it is not known."""

    id: str = ""
    vertex: str = ""
    name: str = ""
    current: int = 0
    total: int = 0


class VertexLog(msgspec.Struct, frozen=True, gc=False):
    """A piece of a vertex's output: bytes cut anywhere, even within a character."""

    vertex: str
    is_stderr: bool
    data: bytes


class VertexWarning(msgspec.Struct, frozen=True):
    """A frontend's remark on the Dockerfile."""

    vertex: str = ""
    short: str = ""
    details: tuple[str, ...] = ()
    url: str = ""


class StatusResponse(msgspec.Struct, frozen=True):
    vertices: list[Vertex]
    statuses: list[VertexStatus]
    logs: list[VertexLog]
    warnings: list[VertexWarning]


def decode_status(record: bytes) -> StatusResponse:
    """Decode one record. Raises `MalformedRecord`."""
    response = StatusResponse([], [], [], [])
    for number, value in fields(record):
        if number == 3:
            response.logs.append(_log(as_bytes(value)))
        elif number == 1:
            response.vertices.append(_vertex(as_bytes(value)))
        elif number == 2:
            response.statuses.append(_status(as_bytes(value)))
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
    found = dict(fields(record))
    return Vertex(
        digest=as_text(found.get(1, b"")),
        name=as_text(found.get(3, b"")),
        cached=bool(as_int(found.get(4, 0))),
        started_s=as_time(found.get(5)),
        completed_s=as_time(found.get(6)),
        error=as_text(found.get(7, b"")),
    )


def _status(record: bytes) -> VertexStatus:
    found = dict(fields(record))
    return VertexStatus(
        id=as_text(found.get(1, b"")),
        vertex=as_text(found.get(2, b"")),
        name=as_text(found.get(3, b"")),
        current=as_int(found.get(4, 0)),
        total=as_int(found.get(5, 0)),
    )


def _warning(record: bytes) -> VertexWarning:
    pairs = list(fields(record))
    found = dict(pairs)
    details = tuple(as_text(value) for number, value in pairs if number == 4)
    return VertexWarning(as_text(found.get(1, b"")), as_text(found.get(3, b"")), details, as_text(found.get(5, b"")))


TRACE_ID = "moby.buildkit.trace"
IMAGE_ID = "moby.image.id"

_UTF8 = codecs.getincrementaldecoder("utf-8")
_CANCELLED = "context canceled"
_EMPTY_RECORD = b'""'
# A sound engine sends no empty records in a row; the fault below sends tens of thousands a second.
STUCK_RECORDS = 1000
_LOST = "the engine lost the rest of this build's output, as Docker 20.10 does with very fast output"
# How BuildKit calls the step that takes the Dockerfile in over the session.
_DOCKERFILE_STEP = "[internal] load build definition from"


_trace_decoder = msgspec.json.Decoder(bytes)


class _Tracked:
    """One vertex: what was told of it so far."""

    __slots__ = ("decoders", "has_ended", "name", "number", "tail", "transfers")

    def __init__(self) -> None:
        self.number = 0
        self.name = ""
        self.has_ended = False
        self.tail = Tail()
        self.transfers: dict[str, VertexStatus] = {}
        self.decoders: dict[bool, codecs.IncrementalDecoder] = {}


class BuildkitProgress:
    """Reads the messages of one build; `image_id` is set when the engine tells it.

    `dockerfile_span` is from when to when the Dockerfile came in, by the engine's clock.
    """

    # BuildKit runs its steps without the engine's containers.
    container = ""

    def __init__(self) -> None:
        self.image_id = ""
        self._failed: _Tracked | None = None
        self._vertices: dict[str, _Tracked] = {}
        self._steps = 0
        self._is_garbled = False
        self._empty_records = 0
        self.dockerfile_span: tuple[float, float] | None = None

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
            if message.id == TRACE_ID:
                if bytes(message.aux) == _EMPTY_RECORD:
                    self._empty_records += 1
                    continue
                self._empty_records = 0
                yield from self._trace(message.aux)
            elif message.id == IMAGE_ID:
                self.image_id = message.image_id()
        if self.is_stuck and self.image_id:
            yield BuildWarning(0, f"{_LOST}; the image is whole")
            yield from self._end_open("done")

    def lost(self) -> Permanent:
        """The fault of a build that is stuck and over, without an image: what failed is told by its last words only."""
        going_on = [tracked for tracked in self._vertices.values() if tracked.number and not tracked.has_ended]
        self._failed = self._failed or max(going_on, key=lambda tracked: tracked.number, default=None)
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

    def _end_open(self, state: StepState) -> Iterator[BuildEvent]:
        for tracked in self._vertices.values():
            if tracked.number and not tracked.has_ended:
                tracked.has_ended = True
                yield Step(tracked.number, tracked.name, state)

    def _trace(self, aux: msgspec.Raw) -> Iterator[BuildEvent]:
        try:
            status = decode_status(_trace_decoder.decode(aux))
        except (MalformedRecord, msgspec.DecodeError) as error:
            # Progress is for people: a build whose progress cannot be read still builds. Said once per build.
            if not self._is_garbled:
                self._is_garbled = True
                yield BuildWarning(
                    0, f"a progress record of the engine could not be read ({error}); its output is lost"
                )
            return
        yield from self._status(status)

    def _status(self, status: StatusResponse) -> Iterator[BuildEvent]:
        # Logs go between starts and ends: a record may carry a step's last output and its end together.
        for vertex in status.vertices:
            yield from self._begin(vertex)
        for part in status.statuses:
            yield from self._transfer(part)
        yield from self._output(status.logs)
        for vertex in status.vertices:
            yield from self._end(vertex)
        for warning in status.warnings:
            yield self._warning(warning)

    def _begin(self, vertex: Vertex) -> Iterator[BuildEvent]:
        tracked = self._tracked(vertex.digest)
        tracked.name = vertex.name or tracked.name
        if vertex.started_s is not None or vertex.completed_s is not None or vertex.cached or vertex.error:
            yield from self._number(tracked)

    def _end(self, vertex: Vertex) -> Iterator[BuildEvent]:
        tracked = self._tracked(vertex.digest)
        if tracked.has_ended or not (vertex.completed_s is not None or vertex.cached or vertex.error):
            return
        tracked.has_ended = True
        if (
            tracked.name.startswith(_DOCKERFILE_STEP)
            and vertex.started_s is not None
            and vertex.completed_s is not None
        ):
            self.dockerfile_span = vertex.started_s, vertex.completed_s
        yield from self._flush(tracked)
        state = _state(vertex)
        if state == "failed":
            self._failed = tracked
        yield Step(tracked.number, tracked.name, state, _seconds(vertex), errors.public_text(vertex.error) or None)

    def _number(self, tracked: _Tracked) -> Iterator[BuildEvent]:
        if tracked.number == 0:
            self._steps += 1
            tracked.number = self._steps
            yield Step(tracked.number, tracked.name, "started")

    def _transfer(self, part: VertexStatus) -> Iterator[BuildEvent]:
        tracked = self._tracked(part.vertex)
        if tracked.transfers.get(part.id) == part:
            return
        tracked.transfers[part.id] = part
        yield from self._number(tracked)
        yield Transfer(tracked.number, part.id, part.name, part.current, part.total)

    def _output(self, logs: list[VertexLog]) -> Iterator[BuildEvent]:
        """One event for neighbouring pieces of one step and stream: a noisy step sends thousands at a time."""
        start = 0
        while start < len(logs):
            first, stop = logs[start], start + 1
            while stop < len(logs) and logs[stop].vertex == first.vertex and logs[stop].is_stderr == first.is_stderr:
                stop += 1
            data = b"".join([log.data for log in logs[start:stop]])
            yield from self._text(self._tracked(first.vertex), first.is_stderr, data)
            start = stop

    def _text(self, tracked: _Tracked, is_stderr: bool, data: bytes, *, final: bool = False) -> Iterator[BuildEvent]:
        decoder = tracked.decoders.get(is_stderr)
        if decoder is None:
            decoder = tracked.decoders[is_stderr] = _UTF8(errors="replace")
        text = decoder.decode(data, final)
        if text:
            tracked.tail.add(text)
            yield from self._number(tracked)
            stream: OutputStream = "err" if is_stderr else "out"
            yield Output(tracked.number, stream, text)

    def _flush(self, tracked: _Tracked) -> Iterator[BuildEvent]:
        for is_stderr in tuple(tracked.decoders):
            yield from self._text(tracked, is_stderr, b"", final=True)

    def _warning(self, warning: VertexWarning) -> BuildWarning:
        known = self._vertices.get(warning.vertex)
        text = "\n".join(part for part in (warning.short, *warning.details, warning.url) if part)
        return BuildWarning(known.number if known else 0, text)

    def _tracked(self, digest: str) -> _Tracked:
        tracked = self._vertices.get(digest)
        if tracked is None:
            tracked = self._vertices[digest] = _Tracked()
        return tracked


def _state(vertex: Vertex) -> StepState:
    if vertex.error:
        return "cancelled" if vertex.error.endswith(_CANCELLED) else "failed"
    return "cached" if vertex.cached else "done"


def _seconds(vertex: Vertex) -> float | None:
    if vertex.started_s is None or vertex.completed_s is None:
        return None
    return max(0.0, vertex.completed_s - vertex.started_s)
