"""Requests to the run API that no honest client sends: one line of refusal each, and a daemon that stays well."""

import pytest
from calls import curl, raw_request, send_raw

from harness.daemon import Daemon

PART = b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nFROM scratch\r\n--b--\r\n'
FORM = "multipart/form-data; boundary=b"


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        pytest.param("multipart/form-data", PART, id="no boundary"),
        pytest.param("multipart/form-data; boundary=b; boundary=", PART, id="empty last boundary"),
        pytest.param('multipart/form-data; boundary=b; boundary="', PART, id="open quote"),
        pytest.param("multipart/form-data; boundary=b; boundary=c", PART, id="not the last boundary"),
        pytest.param(f"multipart/form-data; boundary=b; boundary={'c' * 71}", PART, id="long last boundary"),
        pytest.param("multipart/form-data; x=\xff; boundary=c; boundary=b\xff", PART, id="not ASCII"),
        pytest.param("multipart/form-data; " + "boundary=b; " * 500, PART[:-4], id="cut short, many boundaries"),
        pytest.param(FORM, b"--b\r\n\r\nx\r\n" * 10_000 + PART, id="ten thousand parts"),
        pytest.param(FORM, PART.replace(b'name="file"', b'name="file'), id="open name"),
        pytest.param(FORM, PART.replace(b"FROM", b"FROM\0"), id="NUL"),
        pytest.param(FORM, PART[:-4], id="cut short"),
        pytest.param("multipart/form-data-x; boundary=b", b"", id="empty"),
    ],
)
def test_bad_requests(lone_daemon: Daemon, content_type: str, body: bytes) -> None:
    """A 4xx with a short reason in one line of text, and no traceback in the daemon's log."""
    before = len(lone_daemon.log_text())
    said = send_raw(lone_daemon, raw_request("/run", {"Content-Type": content_type}, body))
    head, _, reason = said.partition(b"\r\n\r\n")
    assert head.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 422 ")), said
    assert b"Content-Type: text/plain; charset=utf-8" in head
    assert reason.decode().isprintable()
    assert 10 < len(reason) < 1000
    assert "Traceback" not in lone_daemon.log_text()[before:]


@pytest.mark.parametrize(
    "query", ["id=%ff", "id=%00", "id=" + "%0d%0aX" * 500, "id=1&id=2", "&&&", "ID=x", "id=%u0041"]
)
def test_bad_ids(lone_daemon: Daemon, query: str) -> None:
    """Whatever the id is, the answer is one short, printable line."""
    answer = curl(lone_daemon, f"/status?{query}")
    assert answer.status in (400, 404)
    assert answer.text.isprintable()
    assert len(answer.text) < 200
