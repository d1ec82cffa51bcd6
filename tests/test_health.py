"""What /readyz says is so: a full disk, a writer that hangs, a state folder that somebody has removed."""

import json
import shutil
import sqlite3
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from harness.daemon import Daemon
from harness.services import require_root
from harness.waiting import until

TIMEOUT_S = 20.0
DISK_BYTES = 4 * 1024 * 1024
JOB: dict[str, Any] = {"kind": "build", "spec": {"image": "registry.example/a", "dockerfile": "FROM scratch\n"}}


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    daemon = Daemon()
    yield daemon
    daemon.remove()


@pytest.fixture
def small_disk(daemon: Daemon) -> Iterator[Path]:
    """The state folder on a file system of its own."""
    require_root("mounting a tmpfs")
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0700", "tmpfs", str(daemon.state_dir)]
    subprocess.run(command, check=True, capture_output=True)
    yield daemon.state_dir
    daemon.kill()
    subprocess.run(["umount", "--lazy", str(daemon.state_dir)], check=True)


def fill(ballast: Path) -> None:
    """Write until the disk is full."""
    with ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def call(daemon: Daemon, path: str, body: object = None) -> tuple[int, Any]:
    """Status and JSON of an answer; status 0 where there was none."""
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(daemon.url + path, data), timeout=TIMEOUT_S) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)
    except OSError:
        return 0, None


def until_ready(daemon: Daemon, status: int) -> dict[str, Any]:
    """What /readyz says once it has that status."""
    said: dict[str, Any] = {}

    def reached() -> bool:
        code, body = call(daemon, "/readyz")
        said.update(body or {})
        return code == status

    until(reached, timeout_s=TIMEOUT_S, what=f"/readyz to answer {status}")
    return said


def test_a_full_disk_is_no_readiness(daemon: Daemon, small_disk: Path) -> None:
    """503 names the disk; with room it is ready again by itself, in the same process."""
    daemon.start()
    pid = daemon.pid
    ballast = small_disk / "ballast"
    with pytest.raises(OSError, match="No space"):
        fill(ballast)
    said = until_ready(daemon, 503)
    assert "is full" in said["blobs"]
    assert said["ready"] is False
    ballast.unlink()
    until_ready(daemon, 200)
    assert call(daemon, "/api/v2/jobs", JOB)[0] == 201
    assert daemon.is_running
    assert daemon.pid == pid


def test_a_writer_that_hangs_is_no_readiness(daemon: Daemon) -> None:
    """While another program holds the write lock no commit goes on: 503, and 200 when it has let go."""
    daemon.start()
    with closing(sqlite3.connect(daemon.database_file, isolation_level=None)) as intruder:
        intruder.execute("begin immediate")
        said = until_ready(daemon, 503)
        assert "no answer within" in said["store"] or "write lock" in said["store"]
        assert said["blobs"] == "ok"
        intruder.execute("rollback")
    until_ready(daemon, 200)


@pytest.mark.parametrize("lost", ["database", "state folder"])
def test_a_lost_database_ends_the_daemon(daemon: Daemon, lost: str) -> None:
    """No job is acknowledged into a file that nobody can find, and the process ends with the reason."""
    daemon.start()
    assert call(daemon, "/api/v2/jobs", JOB)[0] == 201
    if lost == "database":
        daemon.database_file.unlink()
    else:
        shutil.rmtree(daemon.state_dir)
    status, answer = call(daemon, "/api/v2/jobs", JOB)
    assert status in (0, 503), answer
    assert daemon.wait() == 1
    assert f"{daemon.database_file} cannot be found any more" in daemon.log_text()


def test_a_database_that_is_gone_is_not_made_anew(daemon: Daemon) -> None:
    """Beside payloads of jobs the start is refused with what to do; without them it starts anew."""
    daemon.start()
    assert daemon.terminate().code == 0
    daemon.database_file.unlink()
    blob = daemon.state_dir / "blobs" / "sha256" / "aa" / ("a" * 64)
    blob.parent.mkdir()
    blob.write_bytes(b"a payload")
    daemon.spawn()
    assert daemon.wait() == 1
    assert "restore it from a backup" in daemon.log_text()
    assert not daemon.database_file.exists()
    (daemon.state_dir / "blobs").rename(daemon.state_dir / "old-blobs")
    daemon.start()


def test_folders_that_were_removed_are_made_anew(daemon: Daemon) -> None:
    """Lost payloads are told once by a 503; after that uploads go on, and so they do without a spool."""
    daemon.start()
    shutil.rmtree(daemon.state_dir / "blobs")
    assert "was removed while the daemon ran" in until_ready(daemon, 503)["blobs"]
    shutil.rmtree(daemon.state_dir / "spool")
    until_ready(daemon, 200)
    assert (daemon.state_dir / "blobs" / "sha256").is_dir()
    assert (daemon.state_dir / "spool").is_dir()
    assert daemon.terminate().code == 0


def test_a_changed_key_is_told_at_the_start(daemon: Daemon) -> None:
    """Once, with the number of waiting jobs whose credentials it does not open, and no word of them."""
    spec = JOB["spec"] | {"username": "u", "password": "hunter2"}
    daemon.start()
    for _ in range(2):
        assert call(daemon, "/api/v2/jobs", JOB | {"spec": spec, "not_before": "2099-01-01T00:00:00Z"})[0] == 201
    told = []
    for key in (b"1" * 32, b"1" * 32):
        assert daemon.terminate().code == 0
        (daemon.state_dir / "secrets.key").write_bytes(key)
        before = len(daemon.log_text())
        daemon.start()
        told.append([line for line in daemon.log_text()[before:].splitlines() if "secrets key" in line])
    assert [len(lines) for lines in told] == [1, 0]
    assert "jobs=2" in told[0][0]
    assert "hunter2" not in daemon.log_text()
