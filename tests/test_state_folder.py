"""Who may read the state folder: its owner and group, whatever the umask that the daemon is started with."""

import io
import socket
import tarfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.daemon import Daemon
from harness.waiting import until

TIMEOUT_S = 10.0
HEAD = b'--b\r\nContent-Disposition: form-data; name="TarFile"\r\n\r\n'
TAIL = b'\r\n--b\r\nContent-Disposition: form-data; name="Json"\r\n\r\n{"image_name": "app"}\r\n--b--\r\n'
EXPECTED = {"folder": 0o750, "file": 0o640, "key": 0o600}


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    daemon = Daemon()
    yield daemon
    daemon.remove()


def context_tar() -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        member = tarfile.TarInfo("Dockerfile")
        member.size = 13
        tar.addfile(member, io.BytesIO(b"FROM scratch\n"))
    return archive.getvalue()


def upload(daemon: Daemon) -> None:
    """A job with a context, which the content store keeps."""
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    request = urllib.request.Request(f"{daemon.url}/api/v1/build", HEAD + context_tar() + TAIL, headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
        assert response.status == 200


def begin_upload(daemon: Daemon) -> socket.socket:
    """An upload that is half way in the spool."""
    connection = socket.create_connection(("127.0.0.1", daemon.port), timeout=TIMEOUT_S)
    head = b"POST /api/v1/build HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    connection.sendall(head + b"Content-Length: 2000000\r\n\r\n" + HEAD + bytes(1_000_000))
    until(lambda: any((daemon.state_dir / "spool").iterdir()), timeout_s=TIMEOUT_S, what="the upload to be spooled")
    return connection


def modes(folder: Path) -> dict[str, int]:
    """Path and permissions of a folder and all below it."""
    return {str(path.relative_to(folder)): path.stat().st_mode & 0o777 for path in (folder, *folder.rglob("*"))}


def expected(folder: Path) -> dict[str, int]:
    """What `modes` has to be."""
    sorts = {path: "folder" if path.is_dir() else "file" for path in (folder, *folder.rglob("*"))}
    sorts[folder / "secrets.key"] = "key"
    return {str(path.relative_to(folder)): EXPECTED[sort] for path, sort in sorts.items()}


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077], ids=oct)
def test_a_new_folder(daemon: Daemon, umask: int) -> None:
    """Database, its log and index, lock, content and what is still arriving."""
    daemon.state_dir.rmdir()
    daemon.start(umask=umask)
    upload(daemon)
    with begin_upload(daemon):
        found = modes(daemon.state_dir)
        assert {"imagejobd.db", "imagejobd.db-wal", "imagejobd.db-shm", "lock", "secrets.key"} <= found.keys()
        assert sum(path.startswith("spool/") for path in found) == 1
        assert sum(path.startswith("blobs/sha256/") for path in found) == 2
        assert found == expected(daemon.state_dir)


@pytest.mark.parametrize(("folder_mode", "file_mode"), [(0o777, 0o666), (0o755, 0o644), (0o700, 0o600)])
def test_a_folder_of_before(daemon: Daemon, folder_mode: int, file_mode: int) -> None:
    """What was made with other modes gets these at the next start, after a crash too; the key keeps its own."""
    daemon.start()
    upload(daemon)
    daemon.kill()
    for path in (daemon.state_dir, *daemon.state_dir.rglob("*")):
        if path.name != "secrets.key":
            path.chmod(folder_mode if path.is_dir() else file_mode)
    daemon.start(umask=0)
    found = modes(daemon.state_dir)
    assert {"imagejobd.db-wal", "lock"} <= found.keys()
    assert found == expected(daemon.state_dir)


@pytest.mark.parametrize("umask", [0o022, 0o007], ids=oct)
def test_a_unix_socket(daemon: Daemon, umask: int) -> None:
    """Who may connect says the umask that the daemon is started with, as it always has."""
    path = daemon.folder / "api.sock"
    daemon.configure(
        {
            "server": {"listen": [f"127.0.0.1:{daemon.port}", f"unix:{path}"], "state_dir": str(daemon.state_dir)},
            "engine": {"host": f"unix://{daemon.folder}/no-engine.sock"},
        }
    )
    daemon.start(umask=umask)
    assert path.stat().st_mode & 0o777 == 0o777 & ~umask
