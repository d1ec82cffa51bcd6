"""BuildKit's records as events, where a real build cannot be made to send them on demand."""

import base64
import json

import msgspec
from test_trace import VERTEX_1, field, log, timestamp

from imagejobd.engine.buildkit import STUCK_RECORDS, BuildkitProgress
from imagejobd.engine.stream import BuildEvent, BuildWarning, Message, Output, Step
from imagejobd.model.errors import ErrorCode

VERTEX_2 = "sha256:" + "2" * 64


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


def test_repeated_vertices_are_told_once() -> None:
    """BuildKit sends a vertex again and again; each change is one event."""
    progress = BuildkitProgress()
    running, done = trace(vertex(VERTEX_1, "one")), trace(vertex(VERTEX_1, "one", end=103))
    events = read(progress, running, running, done, done)
    assert events == [Step(1, "one", "started"), Step(1, "one", "done", 3.0)]


def test_output_of_a_record_comes_between_start_and_end() -> None:
    """A step that starts, prints and ends within one record is told in that order."""
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


def test_a_build_that_is_lost_tells_what_was_seen_last() -> None:
    """Of the steps that were going on, the last words of the latest are the best that can be told."""
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
    """By the engine's clock, for the build cache tells the same time."""
    progress = BuildkitProgress()
    read(progress, trace(vertex(VERTEX_1, "[internal] load build definition from Dockerfile")))
    assert progress.dockerfile_span is None
    read(progress, trace(vertex(VERTEX_1, "[internal] load build definition from Dockerfile", end=101)))
    assert progress.dockerfile_span == (100, 101)
