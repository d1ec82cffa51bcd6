"""Followers: 500 clients on the log of one noisy build; how late an event reaches them, and what they cost.

Late is what comes after the time that the store has noted with the text, a moment before its commit.
"""

import asyncio
import sqlite3
import time
from bisect import bisect_left
from contextlib import closing
from statistics import median, quantiles
from threading import Event, Thread
from typing import Any

import uvloop

from bench.figures import Bound, Figure, say
from bench.peers import Peers
from harness.base_image import BUSYBOX
from harness.client import Client

FOLLOWERS = 500
LINES, BURST_LINES, REST_S = 20_000, 100, 0.1
CONNECT_MAX_S = 60.0
END_MAX_S = 300.0
MIB = 1024 * 1024

LATE_BOUND = Bound("≤", 50.0, "ms")
LINES_BOUND = Bound("≥", 1.0, "of 1")
MEMORY_BOUND = Bound("≤", 250.0, "MiB")


class Follower(asyncio.Protocol):
    """One stream, taken to pieces as it comes: the text, and when each event came. HTTP 1.0 has no chunks."""

    def __init__(self, path: str, begun: asyncio.Semaphore, done: asyncio.Semaphore) -> None:
        self.text: list[bytes] = []
        self.seen: list[tuple[int, float]] = []
        self._path, self._begun, self._done = path, begun, done
        self._rest = b""
        self._is_head = True

    def connection_made(self, transport: Any) -> None:
        transport.write(f"GET {self._path} HTTP/1.0\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n".encode())

    def data_received(self, data: bytes) -> None:
        now = time.time()
        self._rest += data
        if self._is_head:
            _, end, self._rest = self._rest.partition(b"\r\n\r\n")
            self._is_head = not end
            self._begun.release()
        *frames, self._rest = self._rest.split(b"\n\n")
        for frame in frames:
            if frame.startswith(b"id: "):
                number, event, lines = frame.split(b"\n", 2)
                if event == b"event: log":
                    self.seen.append((int(number[4:]), now))
                    self.text.append(lines[6:].replace(b"\ndata: ", b"\n") + b"\n")

    def connection_lost(self, exc: Exception | None) -> None:
        self._done.release()


def measure(*, quick: bool) -> list[Figure]:
    followers, lines = (50, 2_000) if quick else (FOLLOWERS, LINES)
    with Peers.running() as peers:
        client = Client(peers.daemon)
        spec = {"image": peers.fresh(), "dockerfile": dockerfile(lines)}
        job = client.submit("build", spec)
        peak, is_over = [0], Event()
        watch = Thread(target=_watch_memory, args=(peers, peak, is_over))
        watch.start()
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
                clients = loop.run(_follow(peers.daemon.port, f"/api/v2/jobs/{job}/log", followers))
        finally:
            is_over.set()
            watch.join()
        client.succeeded(job)
        log = client.log(job).encode()
        with closing(sqlite3.connect(f"file:{peers.folder}/state/imagejobd.db?mode=ro", uri=True)) as db:
            blocks = db.execute("select offset + size, at_ms from log_block order by offset").fetchall()
    whole = sum(b"".join(one.text) == log for one in clients)
    late_ms = sorted(late for one in clients for late in _late_ms(one.seen, blocks))
    p99 = quantiles(late_ms, n=100)[98]
    say(f"{len(late_ms):,} events, median {median(late_ms):.1f} ms, p99 {p99:.1f} ms, last {late_ms[-1]:.1f} ms")
    return [
        Figure(f"event to {followers} followers, p99", f"{p99:.0f} ms", "", p99, LATE_BOUND),
        Figure("followers with every line once", f"{whole}", f"{followers}", whole / followers, LINES_BOUND),
        Figure(f"memory with {followers} followers", f"{peak[0] / MIB:.0f} MiB", "", peak[0] / MIB, MEMORY_BOUND),
    ]


def dockerfile(lines: int) -> str:
    """A step that prints numbered lines in small bursts, so that there is something new ten times a second."""
    bursts = lines // BURST_LINES
    return (
        f"FROM {BUSYBOX}\nRUN sleep 5; for burst in $(seq 0 {bursts - 1}); do "
        f"seq $((burst * {BURST_LINES} + 1)) $((burst * {BURST_LINES} + {BURST_LINES})) | sed 's|.*|line & cc a.c|'; "
        f"sleep {REST_S}; done\n"
    )


async def _follow(port: int, path: str, count: int) -> list[Follower]:
    """All followers once their streams have ended."""
    loop = asyncio.get_running_loop()
    begun, done = asyncio.Semaphore(0), asyncio.Semaphore(0)
    clients = []
    async with asyncio.timeout(CONNECT_MAX_S):
        for _ in range(count):
            _, one = await loop.create_connection(lambda: Follower(path, begun, done), "127.0.0.1", port)
            clients.append(one)
        for _ in clients:
            await begun.acquire()
    say(f"{count} followers")
    async with asyncio.timeout(END_MAX_S):
        for _ in clients:
            await done.acquire()
    return clients


def _late_ms(seen: list[tuple[int, float]], blocks: list[tuple[int, int]]) -> list[float]:
    """Of each event but the first, which has what was there before: how long after its newest block it came."""
    ends = [end for end, _ in blocks]
    return [at * 1000 - blocks[min(bisect_left(ends, offset), len(ends) - 1)][1] for offset, at in seen[1:]]


def _watch_memory(peers: Peers, peak: list[int], is_over: Event) -> None:
    while not is_over.wait(0.2):
        peak[0] = max(peak[0], peers.daemon.rss_bytes())
