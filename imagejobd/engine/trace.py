"""BuildKit's progress records, as `moby.buildkit.trace` lines carry them: protobuf, decoded to plain values.

Shapes: `control.StatusResponse` of moby/buildkit `api/services/control/control.proto`. Only the fields that are shown
are read, unknown ones are skipped as protobuf wants. Whatever the bytes are, the outcome is a value or
`MalformedRecord`.
"""

import msgspec

from imagejobd.engine.protobuf import as_bytes, as_int, as_text, as_time, fields

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
