"""Flights over a source that tests hold by the hand, and a folder for their spool files."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from imagejobd.registry.copy.flight import Flights, Reader

from imagejobd.registry.connection import Connection
from imagejobd.registry.manifest import Descriptor
from imagejobd.registry.repository import Repository

KIB = 1024
# Larger than what the window merges, so that chunks stay as they come.
CHUNK = 64 * KIB
WINDOW = 4 * CHUNK


def blob_of(data: bytes, algorithm: str = "sha256") -> Descriptor:
    return Descriptor(digest=f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}", size=len(data))


def data_of(chunks: int) -> bytes:
    """So many chunks, all different."""
    return b"".join(bytes([number % 251]) * CHUNK for number in range(chunks))


def repository(identity: str = "job", path: str = "team/app", host: str = "source.example") -> Repository:
    connection = SimpleNamespace(identity=identity, host=host, site=SimpleNamespace(host=host))
    return Repository(connection=cast(Connection, connection), path=path)


class FakeSource:
    """Sends `data` in chunks: all, or as many as it is allowed once `allow` was called. Raises `fault` at the end."""

    def __init__(self, data: bytes, chunk: int = CHUNK) -> None:
        self.data = data
        self.chunk = chunk
        self.opened = 0
        self.closed = 0
        self._permits: asyncio.Semaphore | None = None
        self.fault: Exception | None = None
        self.on_chunk: Callable[[], None] = lambda: None

    def allow(self, chunks: int) -> None:
        """Send so many more."""
        self._permits = self._permits or asyncio.Semaphore(0)
        for _ in range(chunks):
            self._permits.release()

    async def __call__(
        self, _source: Repository, _blob: Descriptor, *, use_mirrors: bool = True
    ) -> AsyncGenerator[bytes, None]:
        self.opened += 1
        try:
            for start in range(0, len(self.data), self.chunk):
                if self._permits is not None:
                    await self._permits.acquire()
                self.on_chunk()
                yield self.data[start : start + self.chunk]
            if self.fault is not None:
                raise self.fault
        finally:
            self.closed += 1


class Clock:
    """Seconds that tests set."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class WatchedFlights(Flights):
    """Tells what it holds, against the bounds it was given."""

    @property
    def held_bytes(self) -> int:
        """Bytes of blobs in memory."""
        return sum(flight.held_bytes for flight in self._flights)

    @property
    def spooled_bytes(self) -> int:
        """Bytes set aside for spool files."""
        return self._spool_room.reserved_bytes

    @property
    def hosts_read(self) -> int:
        """Hosts of large blobs that are known because somebody reads from them, or waits to."""
        return len(self._large._hosts)


class SpoolFolder:
    """Makes spool files, and counts them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made = 0

    @contextmanager
    def __call__(self) -> Iterator[Path]:
        self.made += 1
        path = self.folder / f"spool-{self.made}"
        path.touch(0o600)
        try:
            yield path
        finally:
            path.unlink()

    @property
    def files(self) -> list[str]:
        return [path.name for path in self.folder.iterdir()]


@asynccontextmanager
async def flights_over(source: Any, spools: Any, **bounds: Any) -> AsyncIterator[WatchedFlights]:
    """Flights with a window of 4 chunks, very patient; afterwards nothing of them may be left."""
    terms: dict[str, Any] = {"streams_max": 2, "window_bytes": WINDOW, "spool_max_bytes": 1 << 30, "spill_grace_s": 60}
    flights = WatchedFlights(spools, open_source=source, **(terms | bounds))
    try:
        yield flights
    finally:
        await flights.close()
        assert flights.held_bytes == 0
        assert flights.spooled_bytes == 0


async def drain(reader: Reader) -> bytes:
    """All its bytes."""
    try:
        return b"".join([chunk async for chunk in reader])
    finally:
        reader.close()


async def settle() -> None:
    """Let everything run that can run without time passing."""
    for _ in range(200):
        await asyncio.sleep(0)


async def until(holds: Callable[[], bool]) -> None:
    """Wait for what happens in a thread."""
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.001)
