"""The decoder of BuildKit's progress records: shapes, and bytes that nobody should trust."""

import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagejobd.engine.buildkit import StatusResponse, VertexLog, VertexWarning, decode_status
from imagejobd.engine.protobuf import MalformedRecord

VERTEX_1 = "sha256:" + "1" * 64
LOGS = 200_000
LOGS_MAX_S = 20.0


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | bytes | str) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    raw = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(raw)) + raw


def timestamp(seconds: int, nanos: int = 0) -> bytes:
    return field(1, seconds) + field(2, nanos)


def log(data: bytes, stream: int = 1, vertex: str = VERTEX_1) -> bytes:
    return field(3, field(1, vertex) + field(2, timestamp(1)) + field(3, stream) + field(4, data))


def test_a_vertex_is_read() -> None:
    """Digest, name, flags, times with their fraction, and error; inputs are skipped."""
    record = field(
        1,
        field(1, VERTEX_1)
        + field(2, "input")
        + field(3, "[1/2] RUN ünïcode")
        + field(4, 1)
        + field(5, timestamp(1_700_000_000, 500_000_000))
        + field(6, timestamp(1_700_000_002))
        + field(7, "broke"),
    )
    (vertex,) = decode_status(record).vertices
    assert (vertex.digest, vertex.name, vertex.cached) == (VERTEX_1, "[1/2] RUN ünïcode", True)
    assert (vertex.started_s, vertex.completed_s, vertex.error) == (1_700_000_000.5, 1_700_000_002, "broke")


def test_gos_zero_time_is_no_time() -> None:
    """The year 1, a negative number of seconds, means that it has not happened."""
    record = field(1, field(1, VERTEX_1) + field(5, timestamp((1 << 64) - 62_135_596_800)))
    assert decode_status(record).vertices[0].started_s is None


def test_statuses_logs_and_warnings_are_read() -> None:
    """Each kind of part goes to its own list, in order."""
    record = (
        field(2, field(1, "layer") + field(2, VERTEX_1) + field(3, "extract") + field(4, 10) + field(5, 20))
        + log(b"out")
        + log(b"\xff", stream=2)
        + field(
            4, field(1, VERTEX_1) + field(2, 1) + field(3, "short") + field(4, "a") + field(4, "b") + field(5, "url")
        )
    )
    status = decode_status(record)
    assert (status.statuses[0].id, status.statuses[0].current, status.statuses[0].total) == ("layer", 10, 20)
    assert status.logs == [VertexLog(VERTEX_1, False, b"out"), VertexLog(VERTEX_1, True, b"\xff")]
    assert status.warnings == [VertexWarning(VERTEX_1, "short\na\nb\nurl")]


def test_fields_of_the_future_are_skipped() -> None:
    """Unknown numbers of every wire type do not disturb the known ones."""
    unknown = field(99, 7) + field(98, b"x") + varint(97 << 3 | 1) + b"12345678" + varint(96 << 3 | 5) + b"1234"
    assert decode_status(unknown + log(b"out") + unknown).logs[0].data == b"out"


@given(st.binary(max_size=300))
def test_any_bytes_are_a_value_or_malformed(record: bytes) -> None:
    """Garbage raises MalformedRecord and nothing else."""
    with contextlib.suppress(MalformedRecord):
        assert isinstance(decode_status(record), StatusResponse)


@given(st.data())
def test_a_damaged_record_is_a_value_or_malformed(data: st.DataObject) -> None:
    """A record with a byte changed or its end cut raises MalformedRecord and nothing else."""
    record = bytearray(
        field(1, field(1, VERTEX_1) + field(5, timestamp(5))) + log(b"some output") + field(2, b"\x0a\x01x")
    )
    record[data.draw(st.integers(0, len(record) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(MalformedRecord):
        decode_status(bytes(record[: data.draw(st.integers(0, len(record)))]))


@pytest.mark.parametrize("record", [b"\xff" * 11, b"\x0a\xff\x7f", b"\x0b", b"\x08\x01", b"\x1a\x02\x08\x01"])
def test_what_is_malformed_is_said_so(record: bytes) -> None:
    """An endless number, a length beyond the end, an unknown wire type, a number for a message: all refused."""
    with pytest.raises(MalformedRecord):
        decode_status(record)


def test_decoding_keeps_up_with_a_noisy_build() -> None:
    """200,000 pieces of log in a record take far less time than a build needs to print them."""
    record = log(b"line number 123456\n") * LOGS
    began = time.process_time()
    assert len(decode_status(record).logs) == LOGS
    assert time.process_time() - began < LOGS_MAX_S
