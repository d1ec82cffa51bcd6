"""Bodies that no honest client sends: each is refused in words, within bounds, and leaves the daemon well."""

import asyncio
import gzip
from collections.abc import AsyncIterator, Iterator
from socket import create_connection

import pytest
from bare_app import SERVER, BareApp
from calls import curl, post_json, raw_request, send_raw, until

from harness.daemon import Daemon

SUBMISSION_PATHS = ("/api/v1/build", "/api/distribute/image", "/api/v2/jobs")
FORM = "multipart/form-data; boundary=b"
MIXED = "multipart/mixed; boundary=b"
TAR_HEAD = b'--b\r\nContent-Disposition: form-data; name="TarFile"\r\n'
JSON_PART = b'--b\r\nContent-Disposition: form-data; name="Json"\r\n\r\n{"image_name": "app"}\r\n'
END = b"\r\n--b--\r\n"
# What is sent would take several times as much if it became objects, or were unpacked.
GROWTH_MAX_BYTES = 150_000_000


@pytest.fixture(autouse=True)
def clean_log(lone_daemon: Daemon) -> Iterator[None]:
    """Whatever is sent, the daemon's log has no traceback and no warning of it."""
    before = len(lone_daemon.log_text())
    yield
    assert "Traceback" not in lone_daemon.log_text()[before:]
    assert "Warning" not in lone_daemon.log_text()[before:]
    assert curl(lone_daemon, "/healthz").status == 200


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        pytest.param("multipart/form-data", b"--b--\r\n", id="no boundary"),
        pytest.param("multipart/form-data; boundary=", b"--b--\r\n", id="empty boundary"),
        pytest.param(f"multipart/form-data; boundary={'b' * 71}", b"--b--\r\n", id="long boundary"),
        pytest.param("multipart/", b"", id="no subtype"),
        pytest.param(FORM, b"", id="empty"),
        pytest.param(FORM, b"--b--\r\n", id="no parts"),
        pytest.param(FORM, b"--c\r\n\r\nx\r\n--c--\r\n", id="another boundary"),
        pytest.param(FORM, TAR_HEAD + b"\r\nabc", id="ends in a part"),
        pytest.param(FORM, TAR_HEAD, id="ends in part headers"),
        pytest.param(FORM, JSON_PART + b"--b", id="ends in a boundary"),
        pytest.param(FORM, b"--b\r\nX: " + b"a" * 100_000 + b"\r\n\r\nabc" + END, id="huge part header"),
        pytest.param(FORM, b"--b\r\n" + b"X: a\r\n" * 1000 + b"\r\nabc" + END, id="many part headers"),
        pytest.param(FORM, b"--b\r\nno colon\r\n\r\nabc" + END, id="bad part header"),
        pytest.param(FORM, b"a" * 1_000_000 + b"\r\n--b--\r\n", id="long preamble"),
        pytest.param(FORM, b"--b\r\n\r\n" + END + b"x" * 100_000, id="long epilogue"),
        pytest.param(FORM, JSON_PART + END + b"\n" * 100_000, id="epilogue of line feeds"),
        pytest.param(FORM, b"--b\r\nContent-Disposition: " + b";" * 8000 + b"\r\n\r\nabc" + END, id="semicolons"),
        pytest.param(FORM, b"--b\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n--c--" + END, id="nested"),
        pytest.param(FORM, b"--b\r\nContent-Type: multipart/mixed\r\n\r\n" + END, id="nested without boundary"),
        pytest.param(
            FORM, b'--b\r\nContent-Disposition: form-data; name="_charset_"\r\n\r\n' + b"x" * 99 + END, id="charset"
        ),
        pytest.param(FORM, TAR_HEAD + b"Content-Transfer-Encoding: base64\r\n\r\nQUJD" + END, id="base64 part"),
        pytest.param(FORM, TAR_HEAD + b"Content-Transfer-Encoding: x-own\r\n\r\nQUJD" + END, id="own encoding"),
        pytest.param(FORM, TAR_HEAD + b"Content-Encoding: gzip\r\n\r\nQUJD" + END, id="packed part"),
        pytest.param(MIXED, TAR_HEAD + b"Content-Length: -1\r\n\r\nabc" + END, id="negative part length"),
        pytest.param(MIXED, TAR_HEAD + b"Content-Length: 99999\r\n\r\nabc" + END, id="part length too long"),
        pytest.param(MIXED, TAR_HEAD + b"Content-Length: 1\r\n\r\nabc" + END, id="part length too short"),
        pytest.param(FORM, b"--b\r\n\r\nx\r\n" * 10_000 + END, id="ten thousand parts"),
        pytest.param(FORM, JSON_PART * 2 + END, id="JSON twice"),
    ],
)
def test_malformed_multipart(lone_daemon: Daemon, content_type: str, body: bytes) -> None:
    """400 with a short reason, from every API."""
    for path in (*SUBMISSION_PATHS, "/run"):
        said = send_raw(lone_daemon, raw_request(path, {"Content-Type": content_type}, body))
        assert said.startswith(b"HTTP/1.1 400 "), said
        assert len(said) < 1000


@pytest.mark.parametrize("piece", [b"\n", b"\r\n", b"a", b"\r\n--a"])
def test_multipart_without_its_boundary(lone_daemon: Daemon, piece: bytes) -> None:
    """Megabytes before the first boundary are refused after the first few kilobytes, whatever they are."""
    for path in ("/api/v1/build", "/api/v2/jobs", "/run"):
        said = send_raw(lone_daemon, raw_request(path, {"Content-Type": FORM}, piece * (4_000_000 // len(piece))))
        assert said.startswith(b"HTTP/1.1 400 "), said
        assert b"more than 65536 bytes come before its first boundary" in said


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "x-own"])
def test_packed_bodies_are_refused(lone_daemon: Daemon, encoding: str) -> None:
    """400 for every Content-Encoding, bomb or not: nothing is unpacked before it is counted."""
    bomb = gzip.compress(b" " * 50_000_000) * 8
    before = lone_daemon.rss_bytes()
    for path in SUBMISSION_PATHS:
        for content_type in ("application/json", FORM):
            headers = {"Content-Type": content_type, "Content-Encoding": encoding}
            said = send_raw(lone_daemon, raw_request(path, headers, bomb))
            assert said.startswith(b"HTTP/1.1 400 "), said
            assert b"Content-Encoding" in said
    assert lone_daemon.rss_bytes() < before + GROWTH_MAX_BYTES


@pytest.mark.parametrize(
    "request_bytes",
    [
        pytest.param(b"hello\r\n\r\n", id="no HTTP"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", id="TLS"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: localhost\r\nbad header\r\n\r\n", id="bad header"),
        pytest.param(b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", id="huge header"),
        pytest.param(b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n", id="huge path"),
        pytest.param(b"POST /api/v1/build HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n", id="bad length"),
        pytest.param(
            b"POST /api/v1/build HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            id="length and chunks",
        ),
        pytest.param(
            b"POST /api/v1/build HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            id="bad chunk",
        ),
        pytest.param(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGARBAGE\r\n\r\n", id="garbage pipelined"),
    ],
)
def test_what_is_no_http(lone_daemon: Daemon, request_bytes: bytes) -> None:
    """An answer or a closed connection, and no traceback in the log."""
    said = send_raw(lone_daemon, request_bytes)
    assert said == b"" or said.startswith((b"HTTP/1.1 400", b"HTTP/1.0 400", b"HTTP/1.1 200")), said


def test_bad_chunk_after_good_ones(lone_daemon: Daemon) -> None:
    """Chunked framing that breaks within the body is given up: aiohttp tells a handler nothing but silence."""
    head = b"POST /api/v1/build HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{ \r\n"

    def pieces() -> Iterator[bytes]:
        yield head
        curl(lone_daemon, "/healthz")  # the head has been parsed by now
        yield b"zz\r\n"

    assert send_raw(lone_daemon, pieces()).startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 408 "))


def test_pipelined_requests(lone_daemon: Daemon) -> None:
    """Two requests in one packet are answered in order, the refused one too."""
    first = raw_request("/api/v1/build", {}, b"{}")
    second = raw_request("/healthz", {"Connection": "close"}, method="GET")
    with_two = send_all(lone_daemon, first + second)
    assert with_two.index(b"Insufficient") < with_two.index(b"ok\n")


def test_client_that_vanishes_within_its_upload(lone_daemon: Daemon) -> None:
    """A connection cut in mid-body is nobody's error; nothing is queued and the spool is empty again."""
    request = raw_request("/api/v1/build", {"Content-Type": FORM}, TAR_HEAD + b"\r\n" + b"x" * 500_000, length=900_000)
    with create_connection(("127.0.0.1", lone_daemon.port)) as connection:
        connection.sendall(request)
    spool = lone_daemon.state_dir / "spool"
    until(lambda: list(spool.iterdir()), lambda files: not files, timeout_s=20)


def test_chunked_without_length_over_the_bound(lone_daemon: Daemon) -> None:
    """A JSON body that never names its length is cut off at json_max_bytes."""
    answer = curl(
        lone_daemon,
        "/api/v1/build",
        *("-H", "Transfer-Encoding: chunked", "-H", "Expect:", "--data-binary", "@-"),
        stdin=b"a" * 40_000_000,
    )
    assert answer.status == 413
    assert "33554432 bytes" in answer.json["Error"]


def test_large_documents_of_small_values(lone_daemon: Daemon) -> None:
    """Millions of small JSON values do not become millions of objects."""
    before = lone_daemon.rss_bytes()
    body = b'{"image_name": "app", "x": [' + b"{}," * 8_000_000 + b"{}]}"
    assert curl(lone_daemon, "/api/v1/build", "--data-binary", "@-", stdin=body).status == 413
    native = b'{"kind": "build", "spec": {"x": [' + b"{}," * 8_000_000 + b"{}]}}"
    answer = curl(lone_daemon, "/api/v2/jobs", "--data-binary", "@-", stdin=native)
    assert (answer.status, answer.json["code"]) == (413, "too_large")
    assert lone_daemon.rss_bytes() < before + GROWTH_MAX_BYTES


def test_distributions_of_small_values(lone_daemon: Daemon) -> None:
    """As many values as a request may hold, wherever they stand, are refused and take little memory."""
    before = lone_daemon.rss_bytes()
    many = b"[" + b"{}," * 300_000 + b"{}]"
    login = b'{"basicauth": {"user": "u", "password": ' + many + b"}}"
    for body in (
        b'{"source": ' + many + b', "targets": []}',
        b'{"source": {"endpoint": "a"}, "targets": ' + many + b"}",
        b'{"source": {"endpoint": "a", "image": "b", "ref": "c", "auth": ' + login + b'}, "targets": [{}]}',
        b'{"x": ' + many + b"}",
    ):
        answer = curl(lone_daemon, "/api/distribute/image", "--data-binary", "@-", stdin=body)
        assert (answer.status, answer.json["status"]) == (400, "error")
        assert len(answer.body) < 1000
    assert lone_daemon.rss_bytes() < before + GROWTH_MAX_BYTES


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(b'"%b"' % (b"\\u0041" * 3_000_000), id="escapes"),
        pytest.param(b'"%b"' % ("\N{SNOWMAN}".encode() * 1_000_000), id="not ASCII"),
        pytest.param(b" " * 3_000_000 + b"null", id="blanks"),
        pytest.param(b"[" + b"0," * 3_000_000 + b"0]", id="numbers"),
    ],
)
def test_large_documents_that_are_no_base64(lone_daemon: Daemon, value: bytes) -> None:
    """Only base64 makes a request large: all else takes the longer to decode, and is refused beyond its own bound."""
    for path, name in (("/api/v1/build", b"TarFile"), ("/api/v2/jobs", b"context")):
        answer = curl(lone_daemon, path, "--data-binary", "@-", stdin=b'{"%b": %b}' % (name, value))
        assert answer.status == 413
        assert "but for base64, is larger than 2097152 bytes" in answer.text


def test_specs_of_many_values(lone_daemon: Daemon) -> None:
    """A spec within its size has no more values than any job needs."""
    body = b'{"kind": "build", "spec": {"x": [' + b"{}," * 200_000 + b"{}]}}"
    answer = curl(lone_daemon, "/api/v2/jobs", "--data-binary", "@-", stdin=body)
    assert (answer.status, answer.json["detail"]) == (413, "spec has more than 100000 commas; no job needs that")


def test_documents_of_many_members(lone_daemon: Daemon) -> None:
    """Millions of members do not become millions of objects either."""
    before = lone_daemon.rss_bytes()
    body = b"{" + b",".join(b'"%x":0' % number for number in range(2_000_000)) + b"}"
    for path in SUBMISSION_PATHS:
        assert curl(lone_daemon, path, "--data-binary", "@-", stdin=body).status == 413
    assert lone_daemon.rss_bytes() < before + GROWTH_MAX_BYTES


def test_deep_documents(lone_daemon: Daemon) -> None:
    """Nesting beyond all reason is refused like any bad JSON."""
    deep = b"[" * 100_000 + b"]" * 100_000
    for path, body in (
        ("/api/v1/build", b'{"image_name": ' + deep + b"}"),
        ("/api/v2/jobs", b'{"kind": "build", "spec": {"x": ' + deep + b"}}"),
        ("/api/v2/jobs", b'{"kind": "distribute", "spec": {"source": ' + deep + b"}}"),
        ("/api/distribute/image", b'{"source": ' + deep + b', "targets": []}'),
    ):
        assert curl(lone_daemon, path, "--data-binary", "@-", stdin=body).status == 400


def test_expect_continue(lone_daemon: Daemon) -> None:
    """A client that asks before it sends is told to go on, and a refusal after that is still told."""
    answer = post_json(lone_daemon, "/api/v1/build", {"image_name": "app"}, "-H", "Expect: 100-continue")
    assert answer.status == 400
    assert "Insufficient" in answer.text


def test_a_refused_body_is_not_waited_for(lone_daemon: Daemon) -> None:
    """After the refusal what is left of the body is swallowed for a moment, not until it is all there."""
    said = send_all(lone_daemon, raw_request("/api/v1/job", {}, b"{", length=100_000))
    assert said.startswith(b"HTTP/1.1 401 ")


async def test_silent_senders_are_given_up(app: BareApp) -> None:
    """408 when no byte comes for body_idle_s: in a JSON body, in a preamble, in a part, after the last part."""

    async def stalls(sent: bytes) -> AsyncIterator[bytes]:
        yield sent
        await asyncio.Event().wait()

    async def check_given_up(content_type: str, sent: bytes) -> None:
        headers = {"Content-Type": content_type}
        async with app.client.post("/api/v1/build", data=stalls(sent), headers=headers) as response:
            assert response.status == 408
            assert f"{SERVER.body_idle_s:g} s" in (await response.json())["Error"]

    await asyncio.gather(
        check_given_up("application/json", b"{"),
        check_given_up(FORM, b"preamble"),
        check_given_up(FORM, b"--b\r\nX: y"),
        check_given_up(FORM, TAR_HEAD + b"\r\nabc"),
        check_given_up(FORM, JSON_PART + b"--b--\r\n"),
    )


def send_all(daemon: Daemon, request: bytes) -> bytes:
    """Bytes to the socket, and all that comes until the daemon closes."""
    said = b""
    with create_connection(("127.0.0.1", daemon.port), timeout=30) as connection:
        connection.sendall(request)
        while received := connection.recv(65536):
            said += received
    return said
