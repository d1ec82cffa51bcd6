"""Followers: 500 clients on the log of one noisy build; how late an event reaches them, and what they cost.

Late is what comes after the time that the store has noted with the text, a moment before its commit.
"""

import asyncio
import sqlite3
import time
from bisect import bisect_left
from collections.abc import Iterator
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
LINES, BURST_LINES, REST_S = 10_000, 100, 0.1
CONNECT_MAX_S = 60.0
END_MAX_S = 300.0
MIB = 1024 * 1024

LATE_BOUND = Bound("≤", 50.0, "ms")
LINES_BOUND = Bound("≥", 1.0, "of 1")
MEMORY_BOUND = Bound("≤", 250.0, "MiB")


class Follower(asyncio.Protocol):
    """One stream, kept as it comes with the times: to take it apart meanwhile would keep the others waiting."""

    def __init__(self, path: str, begun: asyncio.Semaphore, done: asyncio.Semaphore) -> None:
        self._path, self._begun, self._done = path, begun, done
        self._received: list[tuple[float, bytes]] = []

    def connection_made(self, transport: Any) -> None:
        transport.write(f"GET {self._path} HTTP/1.0\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n".encode())

    def data_received(self, data: bytes) -> None:
        if not self._received:
            self._begun.release()
        self._received.append((time.time(), data))

    def connection_lost(self, exc: Exception | None) -> None:
        self._done.release()

    def events(self) -> Iterator[tuple[float, int, bytes]]:
        """When each event of the log came, its id and its text. HTTP 1.0 has no chunks; what it has before the body is
        no event."""
        rest = b""
        for at, data in self._received:
            *frames, rest = (rest + data).split(b"\n\n")
            for frame in frames:
                if frame.startswith(b"id: ") and b"\nevent: log\n" in frame:
                    number, _, lines = frame.split(b"\n", 2)
                    yield at, int(number[4:]), lines[6:].replace(b"\ndata: ", b"\n") + b"\n"


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
    whole, late_ms = 0, []
    for one in clients:
        events = list(one.events())
        whole += b"".join(text for *_, text in events) == log
        late_ms += _late_ms(events, blocks)
    late_ms.sort()
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


def _late_ms(events: list[tuple[float, int, bytes]], blocks: list[tuple[int, int]]) -> list[float]:
    """Of each event but the first, which has what was there before: how long after its newest block it came."""
    ends = [end for end, _ in blocks]
    return [at * 1000 - blocks[bisect_left(ends, offset)][1] for at, offset, _ in events[1:]]


def _watch_memory(peers: Peers, peak: list[int], is_over: Event) -> None:
    while not is_over.wait(0.2):
        peak[0] = max(peak[0], peers.daemon.rss_bytes())
