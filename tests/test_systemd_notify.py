"""What the daemon tells systemd and takes from it, against real datagram sockets and really passed descriptors."""

import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.services import program, require
from imagejobd.systemd import Notifier, listen_sockets

MESSAGES_MAX = 100_000


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The service manager's end of the line."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(5)
        yield manager


@pytest.fixture
def notifier(manager: socket.socket) -> Iterator[Notifier]:
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname()})
    yield notifier
    notifier.close()


def test_each_message_is_one_datagram(notifier: Notifier, manager: socket.socket) -> None:
    """The manager receives each message as sd_notify(3) spells it."""
    assert notifier.ready()
    assert notifier.status("queued 12, running 4")
    assert notifier.watchdog()
    assert notifier.stopping()
    received = [manager.recv(4096) for _ in range(4)]
    assert received == [b"READY=1", b"STATUS=queued 12, running 4", b"WATCHDOG=1", b"STOPPING=1"]


def test_a_reload_tells_its_time(notifier: Notifier, manager: socket.socket) -> None:
    """RELOADING=1 comes with the time of the clock that the manager knows too, in the same datagram."""
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert notifier.reloading()
    kind, told = manager.recv(4096).decode().split("\n")
    assert kind == "RELOADING=1"
    assert before <= int(told.removeprefix("MONOTONIC_USEC=")) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def test_a_status_is_one_line(notifier: Notifier, manager: socket.socket) -> None:
    """Text with line breaks cannot smuggle a second assignment into the message."""
    notifier.status("a job said\nSTOPPING=1")
    assert manager.recv(4096) == b"STATUS=a job said STOPPING=1"


def test_an_abstract_socket_is_reached() -> None:
    """A leading @ names a socket in the abstract namespace."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        name = f"imagejobd-test-{os.getpid()}"
        manager.bind(f"\0{name}")
        manager.settimeout(5)
        notifier = Notifier({"NOTIFY_SOCKET": f"@{name}"})
        assert notifier.ready()
        assert manager.recv(4096) == b"READY=1"
        notifier.close()


def test_a_manager_that_does_not_read_costs_nothing(notifier: Notifier, manager: socket.socket) -> None:
    """With the manager's buffer full a message is dropped, not waited for, and later ones get through again."""
    sent = next(count for count in range(MESSAGES_MAX) if not notifier.watchdog())
    assert sent > 0
    for _ in range(sent):
        manager.recv(4096)
    assert notifier.ready()
    assert manager.recv(4096) == b"READY=1"


def test_a_manager_that_restarts_is_found_again(tmp_path: Path) -> None:
    """Messages to a socket that is gone are dropped; one bound anew at its path hears the next."""
    path = str(tmp_path / "notify")
    notifier = Notifier({"NOTIFY_SOCKET": path})
    assert not notifier.ready()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        assert notifier.ready()
        assert manager.recv(4096) == b"READY=1"
    notifier.close()


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1234"}])
def test_without_a_manager_nothing_is_sent(environ: dict[str, str]) -> None:
    """Outside systemd every message is a no-op."""
    notifier = Notifier(environ)
    assert not notifier.ready()
    assert notifier.watchdog_interval_s() is None
    notifier.close()


@pytest.mark.parametrize(
    ("environ", "interval_s"),
    [
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 10.0),
        ({"WATCHDOG_USEC": "30000000"}, 10.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_fed_three_times_per_timeout(environ: dict[str, str], interval_s: float | None) -> None:
    """The interval is a third of the unit's WatchdogSec, and only for the process that is watched."""
    assert Notifier(environ).watchdog_interval_s() == interval_s


def test_sockets_of_another_process_are_not_taken() -> None:
    """Without LISTEN_PID being our own no descriptor is touched, and the variables are gone all the same."""
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b", "PATH": "/bin"}
    assert listen_sockets(environ) == []
    assert environ == {"PATH": "/bin"}
    assert listen_sockets({}) == []


# What systemd does between fork and exec: the descriptors from 3 on, and the variables that name them.
ACTIVATED = """
import os, sys
for target, fd in enumerate(map(int, sys.argv[1:]), start=3):
    os.dup2(fd, target)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(sys.argv) - 1)}
from imagejobd.systemd import listen_sockets
sockets = listen_sockets()
assert "LISTEN_FDS" not in os.environ and "LISTEN_PID" not in os.environ
for passed in sockets:
    print(passed.fileno(), passed.getsockname()[1], passed.getblocking(), passed.get_inheritable())
"""


def run_activated(*sockets: socket.socket) -> subprocess.CompletedProcess[str]:
    fds = [passed.fileno() for passed in sockets]
    # High numbers, so that moving one to 3 never overwrites another.
    high = [os.dup2(fd, 100 + index) for index, fd in enumerate(fds)]
    try:
        command = [sys.executable, "-c", ACTIVATED, *map(str, high)]
        return subprocess.run(command, pass_fds=high, capture_output=True, text=True, timeout=30, check=False)
    finally:
        for fd in high:
            os.close(fd)


def test_passed_sockets_are_taken_in_order() -> None:
    """Sockets from descriptor 3 on come back in order, non-blocking and closed to child processes."""
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        ports = [first.getsockname()[1], second.getsockname()[1]]
        done = run_activated(first, second)
    assert done.stdout.splitlines() == [f"3 {ports[0]} False False", f"4 {ports[1]} False False"], done.stderr


def test_a_socket_that_does_not_listen_is_refused() -> None:
    """A datagram socket in the socket unit stops the start with a message that names the mistake."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram:
        datagram.bind(("127.0.0.1", 0))
        done = run_activated(datagram)
    assert done.returncode != 0
    assert "file descriptor 3 passed by systemd is not a listening stream socket" in done.stderr


SERVER = """
import socket
from imagejobd.systemd import listen_sockets
(listener,) = listen_sockets()
listener.setblocking(True)
client, _ = listener.accept()
with client:
    client.recv(65536)
    client.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok")
"""


def test_systemd_itself_activates() -> None:
    """A program started by systemd's own activation answers the client that was waiting in the backlog."""
    require("systemd-socket-activate")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [str(program("systemd-socket-activate")), f"--listen=127.0.0.1:{port}", sys.executable, "-c", SERVER]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as activated:
        try:
            assert activated.stderr is not None
            assert "Listening on" in activated.stderr.readline()
            client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            client.request("GET", "/")
            assert client.getresponse().read() == b"ok"
            assert activated.wait(timeout=30) == 0
        finally:
            activated.kill()
