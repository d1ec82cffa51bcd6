"""Protobuf's wire format, read and written to the little extent that BuildKit's messages need here.

Two dozen lines stand here instead of a protobuf runtime with generated code. Whatever the bytes are, the outcome of
reading is a value or `MalformedRecord`; which fields there are is the caller's knowledge.
"""

from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_VARINT_MAX_BYTES = 10


class MalformedRecord(ValueError):
    """The bytes are not a message of the shape that was expected."""


def fields(record: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of one message in wire order: its number, and an int or bytes as the wire type says."""
    position, end = 0, len(record)
    while position < end:
        tag, position = _varint(record, position)
        number, wire = tag >> 3, tag & 7
        if wire == _BYTES:
            size, position = _varint(record, position)
            start, position = position, position + size
            if position > end:
                raise MalformedRecord("a field is longer than its record")
            yield number, record[start:position]
        elif wire == _VARINT:
            value, position = _varint(record, position)
            yield number, value
        elif wire in (_FIXED32, _FIXED64):
            start, position = position, position + (8 if wire == _FIXED64 else 4)
            if position > end:
                raise MalformedRecord("a field is longer than its record")
            yield number, int.from_bytes(record[start:position], "little")
        else:
            raise MalformedRecord(f"unknown wire type {wire}")


def as_int(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise MalformedRecord("a number was expected")
    return value


def as_bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise MalformedRecord("bytes were expected")
    return value


def as_text(value: int | bytes) -> str:
    return as_bytes(value).decode(errors="replace")


def as_time(value: int | bytes | None) -> float | None:
    """A google.protobuf.Timestamp as seconds since the epoch.

    Go's zero time, which some versions send for "not yet", is before it.
    """
    if value is None:
        return None
    parts = dict(fields(as_bytes(value)))
    seconds = as_int(parts.get(1, 0))
    return None if seconds == 0 or seconds >> 63 else seconds + as_int(parts.get(2, 0)) / 1e9


def encoded(number: int, value: int | bytes) -> bytes:
    """One field of a message. A 0 is left out, as protobuf leaves out what is the default."""
    if isinstance(value, bytes):
        return _encoded_varint(number << 3 | _BYTES) + _encoded_varint(len(value)) + value
    return _encoded_varint(number << 3 | _VARINT) + _encoded_varint(value) if value else b""


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
        raise MalformedRecord("the record ends within a number") from None
    raise MalformedRecord("a number is longer than 64 bits")


def _encoded_varint(value: int) -> bytes:
    pieces = bytearray()
    while value >= 0x80:
        pieces.append(value & 0x7F | 0x80)
        value >>= 7
    pieces.append(value)
    return bytes(pieces)
