"""BuildKit's progress records, as `moby.buildkit.trace` lines carry them: protobuf, decoded to plain values.

Shapes: `control.StatusResponse` of moby/buildkit `api/services/control/control.proto`. Only the fields that are shown
are read, unknown ones are skipped as protobuf wants. A reader of two dozen lines stands here instead of a protobuf
runtime with generated code. Whatever the bytes are, the outcome is a value or `MalformedTrace`.
"""

from collections.abc import Iterator

import msgspec

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_VARINT_MAX_BYTES = 10
_STDERR = 2


class MalformedTrace(ValueError):
    """The bytes are not a StatusResponse."""


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
    """Decode one record. Raises `MalformedTrace`."""
    response = StatusResponse([], [], [], [])
    for number, value in _fields(record):
        if number == 3:
            response.logs.append(_log(_bytes(value)))
        elif number == 1:
            response.vertices.append(_vertex(_bytes(value)))
        elif number == 2:
            response.statuses.append(_status(_bytes(value)))
        elif number == 4:
            response.warnings.append(_warning(_bytes(value)))
    return response


def _log(record: bytes) -> VertexLog:
    vertex, stream, data = "", 0, b""
    for number, value in _fields(record):
        if number == 4:
            data = _bytes(value)
        elif number == 3:
            stream = _int(value)
        elif number == 1:
            vertex = _text(value)
    return VertexLog(vertex, stream == _STDERR, data)


def _vertex(record: bytes) -> Vertex:
    found = dict(_fields(record))
    return Vertex(
        digest=_text(found.get(1, b"")),
        name=_text(found.get(3, b"")),
        cached=bool(_int(found.get(4, 0))),
        started_s=_timestamp(found.get(5)),
        completed_s=_timestamp(found.get(6)),
        error=_text(found.get(7, b"")),
    )


def _status(record: bytes) -> VertexStatus:
    found = dict(_fields(record))
    return VertexStatus(
        id=_text(found.get(1, b"")),
        vertex=_text(found.get(2, b"")),
        name=_text(found.get(3, b"")),
        current=_int(found.get(4, 0)),
        total=_int(found.get(5, 0)),
    )


def _warning(record: bytes) -> VertexWarning:
    pairs = list(_fields(record))
    found = dict(pairs)
    details = tuple(_text(value) for number, value in pairs if number == 4)
    return VertexWarning(_text(found.get(1, b"")), _text(found.get(3, b"")), details, _text(found.get(5, b"")))


def _timestamp(value: int | bytes | None) -> float | None:
    """google.protobuf.Timestamp. Go's zero time, which some versions send for "not yet", is before the epoch."""
    if value is None:
        return None
    found = dict(_fields(_bytes(value)))
    seconds = _signed(_int(found.get(1, 0)))
    return None if seconds <= 0 else seconds + _int(found.get(2, 0)) / 1e9


def _fields(record: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of one message in wire order: its number, and an int or bytes as the wire type says."""
    position, end = 0, len(record)
    while position < end:
        tag, position = _varint(record, position)
        number, wire = tag >> 3, tag & 7
        if wire == _BYTES:
            size, position = _varint(record, position)
            start, position = position, position + size
            if position > end:
                raise MalformedTrace("a field is longer than its record")
            yield number, record[start:position]
        elif wire == _VARINT:
            value, position = _varint(record, position)
            yield number, value
        elif wire in (_FIXED32, _FIXED64):
            start, position = position, position + (8 if wire == _FIXED64 else 4)
            if position > end:
                raise MalformedTrace("a field is longer than its record")
            yield number, int.from_bytes(record[start:position], "little")
        else:
            raise MalformedTrace(f"unknown wire type {wire}")


def _varint(record: bytes, position: int) -> tuple[int, int]:
    try:
        value = record[position]
        if value < 0x80:
            return value, position + 1
        value &= 0x7F
        for index in range(1, _VARINT_MAX_BYTES):
            byte = record[position + index]
            value |= (byte & 0x7F) << 7 * index
            if byte < 0x80:
                return value & (1 << 64) - 1, position + index + 1
    except IndexError:
        raise MalformedTrace("the record ends within a number") from None
    raise MalformedTrace("a number is longer than 64 bits")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _int(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise MalformedTrace("a number was expected")
    return value


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise MalformedTrace("bytes were expected")
    return value


def _text(value: int | bytes) -> str:
    return _bytes(value).decode(errors="replace")
