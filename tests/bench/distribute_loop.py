"""Distribute, loop: how long others wait while one image is copied to four registries, seen from inside and outside."""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import quantiles
from typing import Any

from bench.copiers import MIB, Endpoint, daemon_copier, distribute, run_on_new
from bench.figures import Bound, Figure, say
from bench.images import Image, publish
from harness.daemon import SOURCE_ROOT, Daemon
from harness.registry import Registry
from harness.waiting import until

LAYERS = 4
LAYER_BYTES, QUICK_LAYER_BYTES = 256 * MIB, 8 * MIB
TARGETS = 4
REQUEST_INTERVAL_S = 0.005
ANSWER_TIMEOUT_S = 30.0
REPORT_TIMEOUT_S = 30.0

CALLBACK_BOUND = Bound("≤", 20.0, "ms")
ANSWER_BOUND = Bound("≤", 50.0, "ms")


def measure(*, quick: bool) -> list[Figure]:
    with Registry() as source:
        image = publish(source, layers=LAYERS, layer_bytes=QUICK_LAYER_BYTES if quick else LAYER_BYTES)
        return [_callbacks(source, image), _answers(source, image)]


class TimedDaemon(Daemon):
    """The daemon with every callback of its event loop timed, by `bench.callbacks`."""

    def __init__(self) -> None:
        super().__init__(env={"PYTHONPATH": os.pathsep.join([str(SOURCE_ROOT), str(SOURCE_ROOT / "tests")])})
        self._report_file = self.folder / "callbacks.json"
        at = self._process.argv.index("imagejobd")
        self._process.argv[at : at + 1] = ["bench.callbacks", str(self._report_file)]

    def report(self) -> Any:
        """What was measured since the last report."""
        os.kill(self.pid, signal.SIGUSR1)
        until(self._report_file.exists, timeout_s=REPORT_TIMEOUT_S, what="the report of the callbacks")
        report = json.loads(self._report_file.read_text())
        self._report_file.unlink()
        return report


def _callbacks(source: Registry, image: Image) -> Figure:
    with TimedDaemon() as daemon:
        daemon.report()  # of its start
        run_on_new(daemon_copier(daemon), source, image, TARGETS)
        report = daemon.report()
    for took_ms, cpu_ms, name in report["slowest"]:
        say(f"{took_ms:.1f} ms, {cpu_ms:.1f} of them on a processor, in {name}")
    longest_ms = report["slowest"][0][0] if report["slowest"] else report["p999_ms"]
    beside = f"p99.9 {report['p999_ms']:.1f} ms of {report['count']:,}"
    return Figure("distribute, longest callback", f"{longest_ms:.1f} ms", beside, longest_ms, CALLBACK_BOUND)


def _answers(source: Registry, image: Image) -> Figure:
    """In runs without timed callbacks; and because 200 requests a second are not free, no copy is judged by them."""
    cores = sorted(os.sched_getaffinity(0))
    near, far = (cores[: len(cores) // 2], cores[len(cores) // 2 :]) if len(cores) > 1 else (cores, cores)
    with Daemon() as daemon:
        copier = daemon_copier(daemon)

        def copy_apart(_: Endpoint, registries: Sequence[Endpoint]) -> None:
            for registry in (source, *registries):
                _pin(registry.pid, far)
            distribute(daemon, source, registries)

        shared, apart = Answers(daemon.port), Answers(daemon.port)
        with shared.asked():
            run_on_new(copier, source, image, TARGETS)
        _pin(daemon.pid, near)
        with apart.asked():
            _pin(os.getpid(), near)
            run_on_new(copier._replace(copy=copy_apart), source, image, TARGETS)
        _pin(os.getpid(), cores)
    say(f"longest answers: {apart.worst_ms:.1f} ms; {shared.worst_ms:.1f} ms with the registries on the same cores")
    what, beside = "distribute, answers meanwhile, p99", f"same cores {shared.p99_ms:.1f} ms"
    return Figure(what, f"{apart.p99_ms:.1f} ms", beside, apart.p99_ms, ANSWER_BOUND)


def _pin(pid: int, cores: Sequence[int]) -> None:
    """Let a process, with all threads that it has, run on these cores only."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), cores)


class Answers:
    """How long `GET /healthz` took each time, in ms, on a thread and a connection of its own.

    A blocked event loop answers late; so does one that got no processor, and the measurement cannot tell them apart.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._times_ms: list[float] = []
        self._error: OSError | None = None
        self._is_over = threading.Event()

    @property
    def worst_ms(self) -> float:
        return max(self._times_ms)

    @property
    def p99_ms(self) -> float:
        return quantiles(self._times_ms, n=100)[98]

    @contextmanager
    def asked(self) -> Iterator[None]:
        """Ask for as long as the block lasts. Raises `RuntimeError` where the daemon stopped answering."""
        thread = threading.Thread(target=self._ask)
        thread.start()
        try:
            yield
        finally:
            self._is_over.set()
            thread.join()
        if self._error is not None or len(self._times_ms) < 2:
            raise RuntimeError(f"GET /healthz was answered {len(self._times_ms)} times, then: {self._error}")

    def _ask(self) -> None:
        try:
            with closing(socket.create_connection(("127.0.0.1", self._port), timeout=ANSWER_TIMEOUT_S)) as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while not self._is_over.wait(REQUEST_INTERVAL_S):
                    self._times_ms.append(_request_ms(connection))
        except OSError as error:
            self._error = error


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
