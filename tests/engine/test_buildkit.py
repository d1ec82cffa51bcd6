"""BuildKit's progress: records whose bytes nobody should trust, and events that a real build cannot be made to send."""

import base64
import contextlib
import json
import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagejobd.engine.buildkit import (
    STUCK_RECORDS,
    BuildkitProgress,
    StatusResponse,
    VertexLog,
    decode_status,
)
from imagejobd.engine.protobuf import MalformedRecord
from imagejobd.engine.stream import BuildEvent, BuildWarning, Message, Output, Step, Transfer
from imagejobd.model.errors import ErrorCode

VERTEX_1 = "sha256:" + "1" * 64
VERTEX_2 = "sha256:" + "2" * 64
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
    assert status.transfers == [(VERTEX_1, Transfer(0, "layer", "extract", 10, 20))]
    assert status.logs == [VertexLog(VERTEX_1, False, b"out"), VertexLog(VERTEX_1, True, b"\xff")]
    assert status.warnings == [(VERTEX_1, "short\na\nb\nurl")]


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


def trace(record: bytes) -> Message:
    line = {"id": "moby.buildkit.trace", "aux": base64.b64encode(record).decode()}
    return msgspec.json.decode(json.dumps(line), type=Message)


def image(image_id: str) -> Message:
    return msgspec.json.decode(json.dumps({"id": "moby.image.id", "aux": {"ID": image_id}}), type=Message)


def vertex(digest: str, name: str, *, end: int | None = None, error: str = "") -> bytes:
    done = field(6, timestamp(end)) if end else b""
    return field(1, field(1, digest) + field(3, name) + field(5, timestamp(100)) + done + field(7, error))


def read(progress: BuildkitProgress, *messages: Message) -> list[BuildEvent]:
    return list(progress.read(messages))


def test_repeated_vertices_are_one_event_each() -> None:
    """BuildKit sends a vertex again and again; each change is one event."""
    progress = BuildkitProgress()
    running, done = trace(vertex(VERTEX_1, "one")), trace(vertex(VERTEX_1, "one", end=103))
    events = read(progress, running, running, done, done)
    assert events == [Step(1, "one", "started"), Step(1, "one", "done", 3.0)]


def test_output_of_a_record_comes_between_start_and_end() -> None:
    """A step that starts, prints and ends within one record is reported in that order."""
    record = vertex(VERTEX_1, "one", end=101) + log(b"hello\n")
    states = [e.state if isinstance(e, Step) else e.text for e in read(BuildkitProgress(), trace(record))]
    assert states == ["started", "hello\n", "done"]


def test_characters_cut_between_records_are_put_together() -> None:
    """A multi-byte character whose bytes come in two records is one character; a half one at the end is replaced."""
    text = "ü".encode()
    progress = BuildkitProgress()
    events = read(progress, trace(vertex(VERTEX_1, "one") + log(b"a" + text[:1])), trace(log(text[1:] + text[:1])))
    events += read(progress, trace(vertex(VERTEX_1, "one", end=101)))
    assert "".join(e.text for e in events if isinstance(e, Output)) == "aü\N{REPLACEMENT CHARACTER}"


def test_neighbouring_output_is_one_event() -> None:
    """Thousands of pieces of one stream arrive as one text; another stream or step begins a new one."""
    record = vertex(VERTEX_1, "one") + log(b"a\n") * 1000 + log(b"b\n", stream=2) + log(b"c\n", vertex=VERTEX_2)
    texts = [e for e in read(BuildkitProgress(), trace(record)) if isinstance(e, Output)]
    assert texts == [Output(1, "out", "a\n" * 1000), Output(1, "err", "b\n"), Output(2, "out", "c\n")]


def test_steps_stopped_by_anothers_failure_are_cancelled() -> None:
    """Only the step that broke is failed, and only its output is its last words."""
    progress = BuildkitProgress()
    read(progress, trace(vertex(VERTEX_1, "one") + vertex(VERTEX_2, "two")))
    read(progress, trace(log(b"innocent\n") + log(b"guilty\n", vertex=VERTEX_2)))
    events = read(progress, trace(vertex(VERTEX_2, "two", end=101, error="exit code: 1")))
    events += read(progress, trace(vertex(VERTEX_1, "one", end=101, error="context canceled")))
    assert [(e.number, e.state) for e in events if isinstance(e, Step)] == [(2, "failed"), (1, "cancelled")]
    assert progress.last_words() == ("step 2 (two)", "guilty")


def test_a_garbled_record_is_a_warning_once() -> None:
    """Progress that cannot be read does not end the build; it is said once."""
    progress = BuildkitProgress()
    garbled = trace(b"\xff" * 20)
    events = read(progress, garbled, garbled, trace(vertex(VERTEX_1, "one")), image("sha256:1"))
    assert [type(e) for e in events] == [BuildWarning, Step]
    assert progress.image_id == "sha256:1"


def test_the_clip_notice_is_passed_on() -> None:
    """What BuildKit says where it clips a step's log stands in the output as it is."""
    notice = b"\n[output clipped, log limit 1MiB reached]\n"
    events = read(BuildkitProgress(), trace(vertex(VERTEX_1, "one") + log(notice)))
    assert Output(1, "out", notice.decode()) in events


def test_endless_empty_records_end_a_build_that_is_done() -> None:
    """With an image id, a flood of empty records is the engine's fault: the build counts as done, with a warning."""
    progress = BuildkitProgress()
    read(progress, trace(vertex(VERTEX_1, "one")))
    read(progress, trace(vertex(VERTEX_2, "two")))
    assert not progress.is_stuck
    assert read(progress, *[trace(b"")] * STUCK_RECORDS) == [], "without an image id the build may still be going on"
    assert progress.is_stuck
    events = read(progress, image("sha256:1"), trace(b""))
    assert [type(e) for e in events] == [BuildWarning, Step, Step]


def test_a_build_that_is_lost_reports_what_was_seen_last() -> None:
    """Of the steps that were going on, the last words of the latest are the best there is."""
    progress = BuildkitProgress()
    read(progress, trace(vertex(VERTEX_1, "one") + log(b"long ago\n") + vertex(VERTEX_2, "two")))
    read(progress, trace(log(b"just now\n", vertex=VERTEX_2)), *[trace(b"")] * STUCK_RECORDS)
    assert progress.lost().code is ErrorCode.BUILD_FAILED
    assert progress.last_words() == ("step 2 (two)", "just now")
    events = list(progress.fail("why"))
    assert [(e.number, e.state, e.error) for e in events if isinstance(e, Step)] == [
        (2, "failed", "why"),
        (1, "cancelled", None),
    ]


def test_when_the_dockerfile_came_in_is_known() -> None:
    """By the engine's clock, for the build cache has the same times."""
    progress = BuildkitProgress()
    read(progress, trace(vertex(VERTEX_1, "[internal] load build definition from Dockerfile")))
    assert progress.dockerfile_span is None
    read(progress, trace(vertex(VERTEX_1, "[internal] load build definition from Dockerfile", end=101)))
    assert progress.dockerfile_span == (100, 101)
