"""The daemon watched from outside while it copies: processor, peak of memory, pulse of the event loop."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import quantiles

PULSE_S = 0.005
ANSWER_TIMEOUT_S = 30.0
MIB = 1024 * 1024
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# /proc/PID/clear_refs: "reset the peak resident set size to the current value" (proc(5)).
RESET_PEAK = "5"


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def reset_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text(RESET_PEAK)


def peak_mib(pid: int) -> float:
    """The most memory that was resident since `reset_peak`."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / MIB
    raise ProcessLookupError(f"{pid} has ended")


class Pulse:
    """How long `GET /healthz` took each time, in ms, on a thread and a connection of its own.

    A blocked event loop answers late; so does one that got no processor, and the measurement cannot tell them apart.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._beats: list[float] = []
        self._error: OSError | None = None
        self._is_over = threading.Event()

    @property
    def worst_ms(self) -> float:
        return max(self._beats)

    @property
    def p99_ms(self) -> float:
        return quantiles(self._beats, n=100)[98]

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Take it for as long as the block lasts. Raises `RuntimeError` where the daemon stopped answering."""
        thread = threading.Thread(target=self._take)
        thread.start()
        try:
            yield
        finally:
            self._is_over.set()
            thread.join()
        if self._error is not None or len(self._beats) < 2:
            raise RuntimeError(f"GET /healthz was answered {len(self._beats)} times, then: {self._error}")

    def _take(self) -> None:
        try:
            self._beat()
        except OSError as error:
            self._error = error

    def _beat(self) -> None:
        with closing(socket.create_connection(("127.0.0.1", self._port), timeout=ANSWER_TIMEOUT_S)) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while not self._is_over.wait(PULSE_S):
                self._beats.append(_request_ms(connection))


def _request_ms(connection: socket.socket) -> float:
    began = time.perf_counter()
    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    answer = b""
    while not answer.endswith(b"ok\n"):
        received = connection.recv(65536)
        if not received:
            raise ConnectionResetError("the daemon closed the connection")
        answer += received
    return (time.perf_counter() - began) * 1000
