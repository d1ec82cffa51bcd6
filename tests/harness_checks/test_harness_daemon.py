"""The daemon under the harness: started, read, crashed and stopped; forked and executed ones are alike."""

import os
import signal
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.daemon import Daemon, to_toml
from imagejobd.model.failpoint import EXIT_STATUS

CANNOT_START, BAD_CONFIGURATION = 1, 78


@pytest.fixture(params=[False, True], ids=["forked", "executed"])
def daemon(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    daemon = Daemon(env={"CACHE_1_HOST": "registry.example"}, executed=request.param)
    yield daemon
    daemon.remove()


def test_writes_toml() -> None:
    """Tables of any name and depth read back as they were."""
    tables = {
        "server": {"listen": ["127.0.0.1:1"], "drain_timeout_s": 1.5},
        "registry": {"127.0.0.1:5000": {"username": 'a "b" \\ é', "insecure": True}},
    }
    assert tomllib.loads(to_toml(tables)) == tables


def test_a_life_of_a_daemon(daemon: Daemon) -> None:
    """It comes back on its state after kill -9, can be read beside its work, and ends with code 0 on SIGTERM."""
    daemon.start()
    assert daemon.sqlite("pragma user_version")[0][0] > 0
    assert daemon.rss_bytes() > 0
    daemon.kill()
    assert not daemon.is_running
    assert daemon.wait() == -signal.SIGKILL
    daemon.start()
    assert daemon.terminate().code == 0
    assert daemon.log_text().count("event=starting") == 2


def test_a_process_of_its_own(daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It leads a session, has the environment, folder and umask that it is given, its log, and nothing of the tests."""
    monkeypatch.chdir(tmp_path)
    daemon.start(umask=0o27)
    process = Path(f"/proc/{daemon.pid}")
    assert os.getsid(daemon.pid) == os.getpgid(daemon.pid) == daemon.pid
    assert (process / "cwd").readlink() == tmp_path
    files = {int(file.name): str(file.readlink()) for file in (process / "fd").iterdir()}
    assert [files[number] for number in range(3)] == ["/dev/null", *2 * [str(daemon.folder / "daemon.log")]]
    others = {path for path in files.values() if path.startswith("/") and not path.startswith(str(daemon.folder))}
    assert others == {"/dev/null"}
    masks = _signal_masks(process)
    assert masks["SigBlk"] == 0
    # What else whoever started the tests ignores (as nohup does) is inherited by all.
    assert not masks["SigIgn"] & sum(1 << number - 1 for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT))
    assert "names=CACHE_1_HOST" in daemon.log_text()


def test_a_crash_that_is_armed(daemon: Daemon) -> None:
    """A failpoint ends the life that it is armed for, and not the next one."""
    daemon.spawn(failpoints="before_commit")
    assert daemon.wait() == EXIT_STATUS
    daemon.start()


def test_a_start_that_is_refused(daemon: Daemon) -> None:
    """Its exit code and its words are those of the process."""
    daemon.configure({"server": {"state_dir": "/dev/null"}})
    daemon.spawn()
    assert daemon.wait() == CANNOT_START
    assert "server.state_dir" in daemon.log_text()
    daemon.configure({"limits": {"build": 0}})
    daemon.spawn()
    assert daemon.wait() == BAD_CONFIGURATION
    assert "limits.build" in daemon.log_text()


def _signal_masks(process: Path) -> dict[str, int]:
    lines = (line.partition(":") for line in (process / "status").read_text().splitlines())
    return {name: int(value, 16) for name, _, value in lines if name in ("SigBlk", "SigIgn")}
