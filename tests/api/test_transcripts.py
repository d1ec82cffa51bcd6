"""The examples in `transcripts/`, each a conversation that the real daemon has as it is written there."""

import base64
import hashlib
import http.client
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from calls import END_TIMEOUT_S, POLL_INTERVAL_S, REQUEST_TIMEOUT_S, context_tar
from file_server import FileServer
from signing import DOCUMENT_TOKEN

from harness.base_image import BUSYBOX
from harness.daemon import Daemon
from harness.process import free_port
from harness.registry import PASSWORD, USERNAME, Registry

TRANSCRIPTS = sorted((Path(__file__).parent / "transcripts").glob("*.http"))
UUID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
NUMBER = "[1-9][0-9]*"
DOCKERFILE = f"FROM {BUSYBOX}\nRUN echo dispatched\n".encode()

Headers = dict[str, str]


class Exchange(NamedTuple):
    """A request and the answer that is expected; `is_repeated` until that answer comes."""

    is_repeated: bool
    request_line: str
    request_headers: Headers
    request_body: str
    status_line: str
    headers: Headers
    body: str


class Spoken(NamedTuple):
    """An answer as it came."""

    status_line: str
    headers: Headers
    body: str


@pytest.fixture(scope="module")
def values(registry: Registry, private_registry: Registry) -> Iterator[dict[str, bytes]]:
    """What the placeholders of the transcripts stand for."""
    tar = context_tar()
    for tag in ("latest", "1", "2"):
        registry.put_image("transcripts/hello", tag)
    with FileServer({"/context.tar": tar}) as files, Registry() as second_registry:
        yield {
            "base": BUSYBOX.encode(),
            "registry": registry.host.encode(),
            "second registry": second_registry.host.encode(),
            "private registry": private_registry.host.encode(),
            "nobody": f"127.0.0.1:{free_port()}".encode(),
            "username": USERNAME.encode(),
            "password": PASSWORD.encode(),
            "files": files.authority.encode(),
            "tar": tar,
            "tar in base64": base64.b64encode(tar),
            "token": DOCUMENT_TOKEN.encode(),
            "dockerfile in base64": base64.b64encode(DOCKERFILE),
            "dockerfile md5": hashlib.md5(DOCKERFILE, usedforsecurity=False).hexdigest().encode(),
        }


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=lambda path: path.stem)
def test_transcript(transcript: Path, daemon: Daemon, values: dict[str, bytes]) -> None:
    """The daemon answers as the transcript has it."""
    known = dict(values)
    for exchange in exchanges(transcript.read_text()):
        deadline = time.monotonic() + END_TIMEOUT_S
        while True:
            spoken = speak(daemon, exchange, known)
            found = expected_body(exchange.body, known).fullmatch(spoken.body)
            if found or not exchange.is_repeated or time.monotonic() > deadline:
                break
            time.sleep(POLL_INTERVAL_S)
        assert spoken.status_line == exchange.status_line, spoken.body
        assert found, f"{exchange.request_line} was answered with\n{spoken.body}\ninstead of\n{exchange.body}"
        known |= {name.replace("_", " "): text.encode() for name, text in found.groupdict().items()}
        for name, value in exchange.headers.items():
            assert spoken.headers.get(name) == filled(value, known).decode(), name


def exchanges(text: str) -> Iterator[Exchange]:
    for part in text.split("====\n"):
        asked, _, answered = part.partition("----\n")
        is_repeated = "# until\n" in asked
        asked = re.sub(r"\A(#.*\n)+", "", asked)
        yield Exchange(is_repeated, *message(asked), *message(answered))


def message(text: str) -> tuple[str, Headers, str]:
    """Start line, headers, and body without the last line break."""
    head, _, body = text.partition("\n\n")
    start, *lines = head.strip().splitlines()
    headers = dict(line.split(": ", 1) for line in lines)
    return start, headers, body.removesuffix("\n")


def speak(daemon: Daemon, exchange: Exchange, known: dict[str, bytes]) -> Spoken:
    method, path, _ = filled(exchange.request_line, known).decode().split()
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=REQUEST_TIMEOUT_S)
    try:
        headers = {name: filled(value, known).decode() for name, value in exchange.request_headers.items()}
        connection.request(method, path, request_body(exchange, known), headers)
        response = connection.getresponse()
        line = f"HTTP/1.1 {response.status} {response.reason}"
        return Spoken(line, dict(response.getheaders()), response.read().decode())
    finally:
        connection.close()


def request_body(exchange: Exchange, known: dict[str, bytes]) -> bytes | None:
    body = exchange.request_body
    if exchange.request_headers.get("Content-Type", "").startswith("multipart/"):
        body = body.replace("\n", "\r\n") + "\r\n"
    return filled(body, known) or None


def filled(text: str, known: dict[str, bytes]) -> bytes:
    """`text` with what is known for its placeholders."""
    return re.sub(rb"<([a-z0-9 ]+)>", lambda found: known[found[1].decode()], text.encode())


def expected_body(text: str, known: dict[str, bytes]) -> re.Pattern[str]:
    """A pattern for an answer: `<text>` is any; a job that nothing is known of yet gets its name here."""
    pattern = ""
    for index, piece in enumerate(re.split(r"<([a-z0-9 ]+)>", text)):
        group = piece.replace(" ", "_")
        if index % 2 == 0:
            pattern += re.escape(piece)
        elif piece == "text":
            pattern += ".*"
        elif piece in known:
            pattern += re.escape(known[piece].decode())
        else:
            pattern += f"(?P<{group}>{UUID}|{NUMBER})"
    return re.compile(pattern, re.DOTALL)
