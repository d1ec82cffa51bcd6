"""A log that is followed over connections that break comes whole, and every byte once."""

import re

import pytest
from fake_server import http, server

from imagejobd.cli.api import Api
from imagejobd.cli.errors import Refused, Unreachable
from imagejobd.cli.follow import LogFollower
from imagejobd.cli.session import Session
from imagejobd.cli.watch import Lines

JOB = "01a1fa0d-783b-702e-b400-328fdb89cd09"
LOG = "#1 first\n#2 zweite Zeile: ä\n\n#3 third\nno end".encode()
ENDED = http(b'{"id": "x", "kind": "build", "state": "succeeded"}')


def followed(answers: list[bytes]) -> tuple[bytes, list[bytes], list[str]]:
    """What comes of a log whose connections are answered in turn; the requests for it, and remarks on outages."""
    heads: list[bytes] = []
    remarks: list[str] = []

    def answer(head: bytes) -> bytes:
        if b"/log" not in head:
            return ENDED
        heads.append(head)
        return answers[len(heads) - 1]

    with server(answer) as url:
        session = Session(Api(url), as_json=False)
        follower = LogFollower(session, JOB, on_outage=lambda why: remarks.append(why or "back"), sleep=lambda s: None)
        return b"".join(follower.texts()), heads, remarks


def events(log: bytes, start: int = 0) -> list[bytes]:
    """The log from an offset on as the daemon sends it, a line an event."""
    found = []
    for match in re.finditer(rb"[^\n]*\n|[^\n]+$", log):
        if match.end() > start:
            line = match[0][max(0, start - match.start()) :].replace(b"\r\n", b"\n").removesuffix(b"\n")
            found.append(b"id: %d\nevent: log\ndata: %s\n\n" % (match.end(), line.replace(b"\r", b"\ndata: ")))
    return found


def sse(*pieces: bytes) -> bytes:
    """A stream of events that is cut after its pieces."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (b"retry: 1000\n\n", *pieces))


END = b'event: end\ndata: {"state": "succeeded"}\n\n'


def test_events_in_one_piece() -> None:
    """Comments and other events are passed over; the last line keeps having no end."""
    log, heads, _ = followed([sse(*events(LOG), b": keep-alive\n\n", b"event: other\ndata: x\n\n", END) + b"0\r\n\r\n"])
    assert log == LOG
    assert b"text/event-stream" in heads[0]


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_events_that_are_cut(cut: int) -> None:
    """An event that did not come whole counts for nothing: the next connection is asked from before it."""
    whole = b"".join(events(LOG))
    first = sse(whole[:cut])
    known = [int(offset) for offset in re.findall(rb"id: (\d+)\nevent: log\ndata: [^\n]*\n\n", whole[:cut])]
    rest = sse(*events(LOG, known[-1] if known else 0), END) + b"0\r\n\r\n"
    log, heads, remarks = followed([first, rest])
    assert log == LOG
    assert (b"Last-Event-ID: %d" % known[-1] in heads[1]) if known else b"Last-Event-ID" not in heads[1]
    assert remarks[-1:] == ["back"]


def test_line_ends_that_a_stream_of_events_cannot_show() -> None:
    """A line that came with a carriage return ends all the same, and nothing comes twice after it."""
    log, _, _ = followed([sse(*events(b"one\r\ntwo\n"), END) + b"0\r\n\r\n"])
    assert log == b"one\ntwo\n"


def test_a_daemon_that_knows_no_offset() -> None:
    """Plain text that begins anew is passed over as far as it is known."""
    text = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % len(LOG)
    log, heads, _ = followed([text + LOG[:17], text + LOG])
    assert log == LOG
    assert b"offset=17" in heads[1]


def test_a_daemon_that_was_never_there() -> None:
    """It is not waited for."""
    with server(lambda head: b"") as url, pytest.raises(Unreachable):
        b"".join(LogFollower(Session(Api(url), as_json=False), JOB).texts())


def test_a_job_that_is_not_found() -> None:
    """What the daemon refuses is not asked again."""
    problem = http(b'{"code": "not_found", "detail": "no job"}', "404 Not Found")
    with server(lambda head: problem) as url, pytest.raises(Refused, match="no job"):
        b"".join(LogFollower(Session(Api(url), as_json=False), JOB).texts())


def test_a_daemon_that_stays_away() -> None:
    """After a while the follower gives up, with what is wrong."""
    with pytest.raises(Unreachable):
        followed([sse(events(LOG)[0]), *[b""] * 10_000])


def test_lines_of_pieces() -> None:
    """Lines and characters may be cut anywhere."""
    for size in range(1, 9):
        lines, found = Lines(), list[str]()
        for start in range(0, len(LOG), size):
            found += lines.feed(LOG[start : start + size])
        assert "\n".join(found + lines.end()) == LOG.decode()
