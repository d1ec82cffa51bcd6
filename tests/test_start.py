"""A daemon while it starts: signals that come early, and a unix socket that another one listens on."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.daemon import Daemon
from harness.waiting import until

TIMEOUT_S = 20.0
NO_ENGINE = {"engine": {"host": "unix:///nonexistent/docker.sock"}}


@contextmanager
def starting(folder: Path) -> Iterator[Daemon]:
    """A daemon that has heard of signals, and waits in its start for the key that systemd is to give it."""
    credential = folder / "imagejobd-key"
    os.mkfifo(credential)
    daemon = Daemon(env={"CREDENTIALS_DIRECTORY": str(folder)})
    try:
        daemon.spawn()
        until(lambda: catches(daemon.pid, signal.SIGHUP), timeout_s=TIMEOUT_S, what="the signals to be heard")
        yield daemon
    finally:
        daemon.remove()


def go_on(folder: Path) -> None:
    """Give the key."""
    (folder / "imagejobd-key").write_bytes(bytes(32))


def send(daemon: Daemon, number: signal.Signals) -> None:
    """And wait until it has come: one that came earlier would be one with it."""
    os.kill(daemon.pid, number)
    until(lambda: not is_pending(daemon.pid, number), timeout_s=TIMEOUT_S, what="the signal to come")


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal."""
    return is_in_mask(pid, "SigCgt", number)


def is_pending(pid: int, number: signal.Signals) -> bool:
    return is_in_mask(pid, "ShdPnd", number)


def is_in_mask(pid: int, mask: str, number: signal.Signals) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    [digits] = [line.split()[1] for line in status.splitlines() if line.startswith(f"{mask}:")]
    return bool(int(digits, 16) >> (number - 1) & 1)


def test_a_hangup(tmp_path: Path) -> None:
    """SIGHUP waits until there is something to reload."""
    with starting(tmp_path) as daemon:
        send(daemon, signal.SIGHUP)
        go_on(tmp_path)
        until(lambda: "reloading" in daemon.log_text(), timeout_s=TIMEOUT_S, what="the reload")
        assert "event=ready" in daemon.log_text()
        assert daemon.terminate().code == 0


def test_a_signal_to_stop(tmp_path: Path) -> None:
    """After SIGTERM the start comes to its end, and the daemon stops in order."""
    with starting(tmp_path) as daemon:
        send(daemon, signal.SIGTERM)
        go_on(tmp_path)
        assert daemon.wait() == 0
        assert "event=drained" in daemon.log_text()


def test_a_second_signal_to_stop(tmp_path: Path) -> None:
    """After the second SIGTERM the start does not come to its end."""
    with starting(tmp_path) as daemon:
        send(daemon, signal.SIGTERM)
        send(daemon, signal.SIGTERM)
        go_on(tmp_path)
        assert daemon.wait() == -signal.SIGTERM
        assert "event=ready" not in daemon.log_text()


def test_a_live_unix_socket() -> None:
    """A socket at which another program answers is not taken over, and named; one that was left over is replaced."""
    daemon, other = Daemon(), Daemon()
    path = daemon.folder / "api.sock"
    try:
        for one in (daemon, other):
            one.configure({"server": {"listen": [f"unix:{path}"], "state_dir": str(one.state_dir)}} | NO_ENGINE)
        daemon.spawn()
        until(lambda: is_ready(daemon), timeout_s=TIMEOUT_S, what="the first to listen")
        other.spawn()
        assert other.wait() == 1
        assert f"another program answers at {path}" in other.log_text()
        assert daemon.is_running
        daemon.kill()
        assert path.exists()
        other.spawn()
        until(lambda: is_ready(other), timeout_s=TIMEOUT_S, what="the other to listen")
    finally:
        other.remove()
        daemon.remove()


def is_ready(daemon: Daemon) -> bool:
    return "event=ready" in daemon.log_text()
