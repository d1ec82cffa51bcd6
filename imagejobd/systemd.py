"""What a daemon and systemd say to each other: sd_notify(3), its watchdog, and the sockets of sd_listen_fds(3).

The protocols are one datagram and a few environment variables, so there is no library to depend on. Sending never
blocks and never raises: a service manager that is slow or gone must not stop the queue. What is sent when is the
supervisor's business, not this module's.
"""

import contextlib
import os
import socket
import time
from collections.abc import Mapping, MutableMapping

from imagejobd.model.errors import invalid

LISTEN_FDS_START = 3  # SD_LISTEN_FDS_START of sd-daemon.h
WATCHDOG_BEATS_PER_TIMEOUT = 3


class Notifier:
    """The line to the service manager; without `$NOTIFY_SOCKET` there is none and nothing is sent.

    Each message returns whether the manager's socket took it. One that is dropped (the manager is behind or restarts)
    may be sent again: all of them are idempotent.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._environ = environ
        self._address = _unix_address(environ.get("NOTIFY_SOCKET", ""))
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def ready(self) -> bool:
        """Start-up, or a reload, is complete."""
        return self._send("READY=1")

    def reloading(self) -> bool:
        """A reload begins; the time tells the manager's order from an earlier one (sd_notify(3), `RELOADING=1`)."""
        return self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def status(self, text: str) -> bool:
        """One line for `systemctl status`."""
        return self._send("STATUS=" + " ".join(text.split()))

    def stopping(self) -> bool:
        """The drain begins."""
        return self._send("STOPPING=1")

    def watchdog(self) -> bool:
        """Still alive."""
        return self._send("WATCHDOG=1")

    def watchdog_interval_s(self) -> float | None:
        """How often to call `watchdog`; None where the manager does not watch this process."""
        timeout_usec = _integer(self._environ, "WATCHDOG_USEC")
        if not timeout_usec or _integer(self._environ, "WATCHDOG_PID") not in (None, os.getpid()):
            return None
        return timeout_usec / 1_000_000 / WATCHDOG_BEATS_PER_TIMEOUT

    def close(self) -> None:
        self._socket.close()

    def _send(self, message: str) -> bool:
        if self._address is None:
            return False
        try:
            # Not connected: the manager may bind its socket anew while we live.
            self._socket.sendto(message.encode(), self._address)
        except OSError:
            return False
        return True


def listen_sockets(environ: MutableMapping[str, str] = os.environ) -> list[socket.socket]:
    """The listening sockets that systemd opened for this process, in the order of the socket unit; often none.

    They are non-blocking and not inherited by child processes. The variables are removed, so that no child takes
    them for its own. Raises `Permanent(invalid)` for a descriptor that is not a listening stream socket.
    """
    pid, count = _integer(environ, "LISTEN_PID"), _integer(environ, "LISTEN_FDS")
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        environ.pop(name, None)
    if pid != os.getpid() or not count:
        return []
    return [_listening_socket(fd) for fd in range(LISTEN_FDS_START, LISTEN_FDS_START + count)]


def _listening_socket(fd: int) -> socket.socket:
    with contextlib.suppress(OSError):
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            sock.setblocking(False)
            return sock
    raise invalid(
        f"file descriptor {fd} passed by systemd is not a listening stream socket: "
        "the socket unit may only have ListenStream= lines, and no Accept=yes"
    )


def _unix_address(address: str) -> str | bytes | None:
    """The form `sendto` takes. Not a path nor abstract (`vsock:…` inside a virtual machine's init): None."""
    if address.startswith("@"):
        return b"\0" + address[1:].encode()
    return address if address.startswith("/") else None


def _integer(environ: Mapping[str, str], name: str) -> int | None:
    value = environ.get(name, "")
    return int(value) if value.isdecimal() else None
