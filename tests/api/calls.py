"""How the tests of the API speak to a daemon: curl, as users do; raw sockets for what no client would send."""

import io
import json
import socket
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

from harness.base_image import BUSYBOX
from harness.daemon import Daemon
from harness.services import program

REQUEST_TIMEOUT_S = 60
END_TIMEOUT_S = 40.0
# Each question is a process.
POLL_INTERVAL_S = 0.1

T = TypeVar("T")


class Answer(NamedTuple):
    """An HTTP answer; header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        return self.body.decode()


def curl(daemon: Daemon, path: str, *args: str, stdin: bytes = b"") -> Answer:
    """One request as `curl` sends it; `@-` in `args` stands for `stdin`."""
    done = subprocess.run(
        [str(program("curl")), "-sS", "-i", "--max-time", str(REQUEST_TIMEOUT_S), *args, f"{daemon.url}{path}"],
        input=stdin,
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"curl {' '.join(args)} exited with {done.returncode}: {done.stderr.decode()}")
    return _parsed(done.stdout)


def post_json(daemon: Daemon, path: str, value: object, *args: str) -> Answer:
    return curl(daemon, path, "--data-binary", "@-", *args, stdin=json.dumps(value).encode())


def send_raw(daemon: Daemon, request: bytes | Iterable[bytes], *, timeout_s: float = 10.0) -> bytes:
    """Bytes to the daemon's socket, and all that it says until it closes or has answered in full."""
    pieces = [request] if isinstance(request, bytes) else request
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=timeout_s) as connection:
        for piece in pieces:
            connection.sendall(piece)
        said = b""
        while not _is_whole(said):
            received = connection.recv(65536)
            if not received:
                break
            said += received
    return said


def raw_request(
    path: str, headers: dict[str, str], body: bytes = b"", *, method: str = "POST", length: int | None = None
) -> bytes:
    """A request as bytes; `length` is what its Content-Length says, where that is not the truth."""
    lines = {"Host": "localhost", "Content-Length": str(len(body) if length is None else length)} | headers
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return head.encode("latin-1") + b"\r\n" + body


def submit(daemon: Daemon, **fields: object) -> str:
    """Submit a build through the builder API; its id."""
    answer = post_json(daemon, "/api/v1/build", fields)
    assert answer.status == 200, answer.text
    return str(answer.json["JobIdentifier"])


def stage(daemon: Daemon, job: str) -> str:
    return str(curl(daemon, f"/api/v1/{job}/status").json["Status"])


def ended_stage(daemon: Daemon, job: str) -> str:
    """The stage that a build ends at."""
    return until(lambda: stage(daemon, job), lambda seen: seen == "Finished" or seen.startswith("Failed"))


def until(ask: Callable[[], T], is_so: Callable[[T], bool], *, timeout_s: float = END_TIMEOUT_S) -> T:
    """Ask again and again until the answer is so."""
    deadline = time.monotonic() + timeout_s
    while not is_so(answer := ask()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"still {answer!r} after {timeout_s:g} s")
        time.sleep(POLL_INTERVAL_S)
    return answer


def context_tar(dockerfile: str = f"FROM {BUSYBOX}\nCOPY greeting /greeting\n", **files: bytes) -> bytes:
    """A build context, plain tar."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, content in ({"Dockerfile": dockerfile.encode(), "greeting": b"hello\n"} | files).items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return archive.getvalue()


def _parsed(said: bytes) -> Answer:
    head, _, body = said.partition(b"\r\n\r\n")
    status_line, *lines = head.decode("latin-1").split("\r\n")
    status = int(status_line.split()[1])
    if status < 200:
        return _parsed(body)
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Answer(status, headers, body)


def _is_whole(said: bytes) -> bool:
    head, blank, body = said.partition(b"\r\n\r\n")
    length = next((line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), None)
    return bool(blank) and length is not None and len(body) >= int(length.partition(b":")[2])
