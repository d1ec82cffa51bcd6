"""Whatever answers: the client ends with an exit code and a line, and a terminal is shown nothing but text."""

import json
from pathlib import Path

import pytest
from fake_server import http, server
from terminals import run, terminal

from imagejobd.cli.text import line, plain

UNREACHABLE, USAGE, FAILED = 4, 2, 1
UUID = "01a1fa0d-783b-702e-b400-328fdb89cd09"
# Window title, colour, cursor, clearing, a hyperlink, C1, bidirectional override.
ESCAPES = "\x1b]0;owned\x07\x1b[31mred\x1b[2J\x1b[H\x1b]8;;http://evil\x1b\\link\x9b31m\u202egpj\x08\r"


def job(**fields: object) -> dict[str, object]:
    return {"id": UUID, "number": 1, "kind": "build", "state": "failed", **fields}


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\0\1\2\3 not HTTP at all\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\n",
        http(b"<html>hello</html>", content_type="text/html"),
        http(b"<html>bad gateway</html>", "502 Bad Gateway", "text/html"),
        http(b"[[[[[" * 20_000),
        http(b'{"jobs": {"no": "list"}}'),
        http(b'{"jobs": [{"id": 7, "kind": null, "state": []}]}'),
        http(b'{"jobs": [{"id": "x", "kind": "\xff\xfe", "state": "failed"}]}'),
        http(b'{"code": 17}', "400 Bad Request"),
    ],
)
def test_answers_that_are_none(answer: bytes) -> None:
    """Exit 4, one line that names the address, no traceback."""
    with server(lambda head: answer) as url:
        done = run(url, "jobs")
    assert done.code == UNREACHABLE, done
    assert len(done.err.splitlines()) == 1
    assert url in done.err


def test_refusals_in_the_daemons_words() -> None:
    """Exit 2 with the detail of a problem document, without what controls a terminal."""
    problem = json.dumps(
        {"title": "x", "status": 404, "code": "not_found", "detail": f"no such job {ESCAPES}"}
    ).encode()
    with server(lambda head: http(problem, "404 Not Found", "application/problem+json")) as url:
        done = run(url, "show", "1")
    assert (done.code, done.out) == (USAGE, "")
    assert done.err == "imagejobd: no such job redlinkgpj\n"


@pytest.mark.parametrize(
    "command",
    [["jobs"], ["show", "1"], ["logs", "1"], ["logs", "-f", "1"], ["wait", "1"], ["queue"], ["show", "1", "--json"]],
)
def test_escape_sequences(command: list[str]) -> None:
    """In a terminal nothing that strangers wrote moves the cursor, renames the window or draws a link."""
    evil = job(
        spec={"image": ESCAPES}, error={"code": "x", "message": ESCAPES}, labels={ESCAPES: ESCAPES}, phase=ESCAPES
    )
    bodies = {
        "/log": http(f"#1 {ESCAPES}\n#2 done\n".encode(), content_type="text/plain"),
        "/queue": http(json.dumps({"kinds": {ESCAPES: {"queued": 0, "running": 0, "waiting_for": ESCAPES}}}).encode()),
        "/jobs/1": http(json.dumps(evil).encode()),
        "/jobs": http(json.dumps({"jobs": [evil]}).encode()),
    }
    with (
        server(lambda head: next(body for path, body in bodies.items() if path in head.decode())) as url,
        terminal(url, *command) as shown,
    ):
        assert shown.wait() in (0, FAILED), shown.text
    assert "Traceback" not in shown.text
    assert "red" in shown.text
    for sequence in (b"\x1b]", b"\x1b[2J", b"\x1b[H", b"\x1b[31mred", b"\x9b", "\u202e".encode(), b"\x08"):
        assert sequence not in shown.raw


def test_a_daemon_without_the_route() -> None:
    """What an older daemon lacks is said plainly."""
    problem = json.dumps({"code": "not_found", "detail": "no such route"}).encode()
    with server(lambda head: http(problem, "404 Not Found", "application/problem+json")) as url:
        for command in (["queue"], ["pause", "--reason", "x"], ["retry", "--all"]):
            done = run(url, *command)
            assert done.code == USAGE
            assert "older than this client" in done.err


def test_an_early_refusal_of_an_upload(tmp_path: Path) -> None:
    """A daemon that answers before all of a context has come is heard, not run into."""
    (tmp_path / "Dockerfile").write_text("FROM scratch\n")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(256 * 1024 * 1024)
    problem = http(b'{"code": "too_large", "detail": "the upload is too large"}', "413 Payload Too Large")
    with server(lambda head: problem) as url:
        done = run(url, "build", str(tmp_path), "-t", "127.0.0.1:1/a")
    assert done.code == USAGE
    assert "the upload is too large" in done.err


@pytest.mark.parametrize("token", ["a b", "a\nX-Evil: 1", "ä"])
def test_tokens_that_are_none(token: str) -> None:
    """A token that would break out of its header is refused, and not repeated."""
    done = run("http://127.0.0.1:1", "jobs", IMAGEJOBD_TOKEN=token)
    assert done.code == UNREACHABLE
    assert "token" in done.err
    assert token not in done.err


@pytest.mark.parametrize("url", ["ftp://127.0.0.1", "127.0.0.1:8080", "http://", "http://h:99999", "http://u:p@h"])
def test_addresses_that_are_none(url: str) -> None:
    """Exit 4, and how an address looks."""
    done = run(url, "jobs")
    assert done.code == UNREACHABLE
    assert "http://host:port" in done.err


@pytest.mark.parametrize("url", ["http://u:hunter2@h", "http://:hunter2@127.0.0.1:1", "http://u:hunter2@h:99999"])
def test_passwords_in_addresses_are_not_shown(url: str) -> None:
    """They are refused, because the daemon takes none, and stay out of the terminal and the logs of a CI."""
    done = run(url, "jobs")
    assert done.code == UNREACHABLE
    assert "hunter2" not in done.err


def test_a_state_that_is_none(tmp_path: Path) -> None:
    """What a command ends with is text, also where the state of the job is not one of imagejobd's."""
    (tmp_path / "Dockerfile").write_text("FROM scratch\n")
    bodies = {"/log": http(b"", content_type="text/plain"), "/jobs": http(json.dumps(job(state=ESCAPES)).encode())}
    with (
        server(lambda head: next(body for path, body in bodies.items() if path in head.decode())) as url,
        terminal(url, "run", str(tmp_path / "Dockerfile")) as shown,
    ):
        shown.wait()
    assert "redlink" in shown.text
    assert b"\x1b]" not in shown.raw


@pytest.mark.parametrize(
    ("fields", "exit_code"),
    [
        ({"created_at": "2030-01-01T00:00:00"}, UNREACHABLE),
        ({"created_at": "0001-01-01T00:00:00+14:00"}, 0),
        ({"state": "running", "progress": {"percent": 10**400}}, 0),
        ({"progress": {"targets": [{"total_bytes": 10**400}]}}, 0),
    ],
)
def test_values_that_no_daemon_has(fields: dict[str, object], exit_code: int) -> None:
    """They are shown or refused, without a traceback."""
    with server(lambda head: http(json.dumps(job(**fields)).encode())) as url:
        done = run(url, "show", "1")
    assert done.code == exit_code
    assert len(done.err.splitlines()) <= 1


@pytest.mark.parametrize("images", [5, [1], [{"targets": [{"tags": 5}]}]])
def test_results_that_no_daemon_has(images: object) -> None:
    """What a copy came to is printed as it is."""
    done_job = json.dumps(job(state="succeeded", result={"images": images})).encode()
    with server(lambda head: http(b"" if b"/log" in head else done_job)) as url:
        done = run(url, "copy", "registry/app:1", "mirror")
    assert (done.code, json.loads(done.out)) == (0, {"images": images})


def test_plain_text() -> None:
    """Whole sequences go, not only their first character; text, tabs and line ends stay."""
    assert plain(f"a{ESCAPES}\tb\n") == "aredlinkgpj\tb\n"
    assert plain("\x1b[38;5;196mcolour\x1b[0m \x1bPq…\x1b\\x \x1b(B") == "colour x "
    assert plain("\x1b]0;never ended") == ""
    assert line(" a\n\tb ") == "a b"
