"""A TCP relay that makes the way to a peer longer or narrower: a round trip is added, and rates are kept.

What a link does, for machines whose kernel has no netem, and for callers who are not root. It is a process of its own,
so that neither a test nor a benchmark that is busy slows the link.
"""

import asyncio
import contextlib
import math
import os
import shutil
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import uvloop

from harness.process import Peer, Process, free_port

START_TIMEOUT_S = 10.0
SAMPLE_INTERVAL_S = 0.1
# Small, so that what a rate lets through is even.
CHUNK_BYTES = 32 * 1024
# What one connection may have under way in one direction: as much as 1 Gbit/s carries in 67 ms.
WINDOW_BYTES = 8 * 1024 * 1024
# How much of a rate may be made up for at once: timers and processors are late by milliseconds, links are not.
BURST_S = 0.02
# A link waits for no processor. Where only root may ask for that, it is not asked for.
NICENESS = -10
# A connection that is closed without lingering is reset (socket(7), SO_LINGER).
RESET = struct.pack("ii", 1, 0)


class Sample(NamedTuple):
    """How many bytes all clients together had been sent; `at` is `time.monotonic()`."""

    at: float
    sent_bytes: int


class Relay(Peer):
    """Passes every connection on to `upstream` (`host:port`), whatever is spoken on it.

    `round_trip_s` is added to each exchange and to the opening of a connection, however many bytes are under way.
    `connection_bytes_per_s` bounds each connection and `link_bytes_per_s` all of them together, each way for itself.
    """

    def __init__(
        self,
        upstream: str,
        *,
        round_trip_s: float = 0.0,
        connection_bytes_per_s: float = math.inf,
        link_bytes_per_s: float = math.inf,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="imagejobd-relay-"))
        self.port = free_port()
        shape = (round_trip_s, connection_bytes_per_s, link_bytes_per_s)
        self._process = Process(
            [sys.executable, "-m", "harness.relay", str(self.port), upstream, *map(str, shape)],
            log_file=self.folder / "samples",
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        )

    @property
    def host(self) -> str:
        """`address:port`, as image references have it."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self) -> None:
        self._process.start(lambda: self.samples() != [], timeout_s=START_TIMEOUT_S)

    def remove(self) -> None:
        self._process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def samples(self) -> list[Sample]:
        """One for each tenth of a second since the start."""
        *lines, _ = self._process.log_text().split("\n")  # the last one may be half written
        pairs = (line.split() for line in lines)
        return [Sample(float(at), int(sent)) for at, sent in pairs]


class _Rate:
    """A token bucket that is empty at the start and holds `BURST_S` of its rate."""

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_at = time.monotonic()

    def wait_s(self, size: int) -> float:
        """How long to wait after `size` bytes that pass now; negative where none is due."""
        now = time.monotonic()
        self._free_at = max(self._free_at, now - BURST_S) + size / self._bytes_per_s
        return self._free_at - now


class _Link:
    """The relay's own process: what all connections share."""

    def __init__(self, upstream: str, round_trip_s: float, connection_bytes_per_s: float, link_bytes_per_s: float):
        self._upstream_host, _, port = upstream.rpartition(":")
        self._upstream_port = int(port)
        self._round_trip_s = round_trip_s
        self._connection_bytes_per_s = connection_bytes_per_s
        self._up, self._down = _Rate(link_bytes_per_s), _Rate(link_bytes_per_s)
        self.sent_bytes = 0

    async def serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        """One connection, until both sides have ended it or one has cut it."""
        to_upstream = None
        try:
            await asyncio.sleep(self._round_trip_s)  # the handshake's
            upstream, to_upstream = await asyncio.open_connection(
                self._upstream_host, self._upstream_port, limit=CHUNK_BYTES
            )
            async with asyncio.TaskGroup() as ways:
                ways.create_task(self._pass_on(client, to_upstream, self._up))
                ways.create_task(self._pass_on(upstream, to_client, self._down))
        except* OSError:
            for writer in filter(None, (to_client, to_upstream)):
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                writer.transport.abort()
        finally:
            for writer in filter(None, (to_client, to_upstream)):
                writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: _Rate) -> None:
        """One direction of a connection, until its end."""
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(WINDOW_BYTES // CHUNK_BYTES)
        async with asyncio.TaskGroup() as ends:
            ends.create_task(self._send(reader, under_way, (_Rate(self._connection_bytes_per_s), link)))
            ends.create_task(self._deliver(under_way, writer, counts=link is self._down))

    async def _send(
        self, reader: asyncio.StreamReader, under_way: asyncio.Queue[tuple[float, bytes]], rates: Sequence[_Rate]
    ) -> None:
        """Put what comes on its way as fast as the rates allow; `b""` is the end."""
        data = b"-"
        while data:
            data = await reader.read(CHUNK_BYTES)
            wait_s = max(rate.wait_s(len(data)) for rate in rates)
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            await under_way.put((time.monotonic() + self._round_trip_s / 2, data))

    async def _deliver(
        self, under_way: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter, *, counts: bool
    ) -> None:
        """Write each chunk when it has been under way for half a round trip."""
        while True:
            due, data = await under_way.get()
            early_s = due - time.monotonic()
            if early_s > 0:
                await asyncio.sleep(early_s)
            if not data:
                break
            writer.write(data)
            await writer.drain()
            self.sent_bytes += len(data) if counts else 0
        with contextlib.suppress(OSError):  # it may have been ended by the other side meanwhile
            writer.write_eof()


async def _run(port: int, link: _Link) -> None:
    async with await asyncio.start_server(link.serve, "127.0.0.1", port, limit=CHUNK_BYTES):
        while True:
            print(time.monotonic(), link.sent_bytes, flush=True)
            await asyncio.sleep(SAMPLE_INTERVAL_S)


def _main() -> None:
    port, upstream, *shape = sys.argv[1:]
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(int(port), _Link(upstream, *map(float, shape))))


if __name__ == "__main__":
    _main()
