"""A server as a child process: its output in a file, its readiness awaited, its end enforced."""

import functools
import itertools
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple, Protocol, Self

from harness.waiting import until

LOG_TAIL_CHARS = 4_000
TERMINATE_TIMEOUT_S = 20.0
# For peers written in Go: collecting garbage a fourth as often takes a tenth of the work off an engine.
GOGC = "400"
# Below those that Linux gives to outgoing connections (32768 and up), which would now and then take one first.
PORTS = range(12_000, 32_000)
PORTS_PER_PROCESS = 250


class Exit(NamedTuple):
    """How a process ended: its exit code (negative for a signal) and how long that took."""

    code: int
    seconds: float


def free_port(address: str = "127.0.0.1") -> int:
    """A TCP port of `address` that nobody listens on now, and that no other process of tests is given meanwhile."""
    _, ports = _claimed_ports()
    for port in itertools.islice(ports, PORTS_PER_PROCESS):
        with socket.socket() as probe:
            try:
                probe.bind((address, port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"all {PORTS_PER_PROCESS} ports of this process are in use at {address}")


@functools.cache
def _claimed_ports() -> tuple[socket.socket, Iterator[int]]:
    """The ports of this process in turn, over and over, and the socket whose name claims them until it ends."""
    for first in PORTS[::PORTS_PER_PROCESS]:
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0imagejobd-test-ports-{first}")
        except OSError:
            claim.close()
            continue
        return claim, itertools.cycle(range(first, first + PORTS_PER_PROCESS))
    raise RuntimeError("other processes have claimed all ports that tests may use")


class Peer(ABC):
    """Something that runs beside the tests, for as long as a `with` block lasts."""

    @abstractmethod
    def start(self) -> None: ...

    @abstractmethod
    def remove(self) -> None:
        """End it for good, with all that it has on disk."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


class Child(Protocol):
    """What is needed of a `subprocess.Popen`."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


class Process:
    """One child that can be started again after it ended. Output of all its lives is appended to `log_file`."""

    def __init__(self, argv: Sequence[str], *, log_file: Path, env: Mapping[str, str]) -> None:
        self.argv = list(argv)
        self.umask = -1  # the caller's
        self.log_file = log_file
        self.env = dict(env)
        self._child: Child | None = None

    @property
    def is_running(self) -> bool:
        return self._child is not None and self._child.poll() is None

    @property
    def pid(self) -> int:
        if self._child is None:
            raise RuntimeError(f"{self.argv[0]} was not started")
        return self._child.pid

    def spawn(self) -> None:
        """Start without waiting. Its own session keeps a Ctrl-C for the caller, who then stops it in order."""
        if self.is_running:
            raise RuntimeError(f"{self.argv[0]} is running already")
        with self.log_file.open("ab") as log:
            self._child = self._launch(log)

    def start(self, is_ready: Callable[[], bool], *, timeout_s: float) -> None:
        """Start and wait for `is_ready`. Raises `RuntimeError` with the end of its output if it dies before."""
        self.spawn()
        try:
            until(lambda: self._ready_or_dead(is_ready), timeout_s=timeout_s, what=f"{self.argv[0]} to be ready")
        except TimeoutError as error:
            self.kill()
            raise TimeoutError(f"{error}; its output ends:\n{self.log_tail()}") from None

    def wait(self, *, timeout_s: float) -> int:
        """Wait for it to end by itself; returns the exit code."""
        if self._child is None:
            raise RuntimeError(f"{self.argv[0]} was not started")
        return self._child.wait(timeout_s)

    def terminate(self, *, timeout_s: float = TERMINATE_TIMEOUT_S) -> Exit:
        """SIGTERM and wait; past `timeout_s` SIGKILL, which shows as exit code -9."""
        began = time.monotonic()
        if self._child is None:
            raise RuntimeError(f"{self.argv[0]} was not started")
        self._child.terminate()
        try:
            code = self._child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._child.kill()
            code = self._child.wait()
        return Exit(code, time.monotonic() - began)

    def kill(self) -> None:
        """SIGKILL, as a crash or a power cut would do it."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()

    def log_text(self) -> str:
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def log_tail(self) -> str:
        return self.log_text()[-LOG_TAIL_CHARS:]

    def _launch(self, log: BinaryIO) -> Child:
        return subprocess.Popen(
            self.argv,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            umask=self.umask,
        )

    def _ready_or_dead(self, is_ready: Callable[[], bool]) -> bool:
        if not self.is_running:
            raise RuntimeError(f"{self.argv[0]} ended before it was ready; its output ends:\n{self.log_tail()}")
        return is_ready()
