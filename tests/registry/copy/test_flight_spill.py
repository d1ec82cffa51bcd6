"""Readers that lag: who goes to disk, when, and what the others notice of it."""

import asyncio
import errno
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from flight_rig import (
    CHUNK,
    WINDOW,
    Clock,
    FakeSource,
    SpoolFolder,
    blob_of,
    data_of,
    drain,
    flights_over,
    repository,
    settle,
    until,
)
from imagejobd.registry.copy.flight import SMALL_BLOB_MAX_BYTES, Reader

from imagejobd.model.errors import ErrorCode, Fault, Temporary
from imagejobd.registry.copy import spool as spool_module

LARGE = SMALL_BLOB_MAX_BYTES // CHUNK + 4


@pytest.fixture
def spools(tmp_path: Path) -> SpoolFolder:
    return SpoolFolder(tmp_path)


@pytest.fixture
def source() -> FakeSource:
    return FakeSource(data_of(40))


@pytest.mark.parametrize("taken", [0, 1, 3])
async def test_slow_beside_fast(spools: SpoolFolder, source: FakeSource, taken: int) -> None:
    """The fast end while the slow one is held, whether it has begun or not; it gets the rest from disk, and the file
    goes."""
    async with flights_over(source, spools, spill_grace_s=0) as flights:
        peaks: list[int] = []
        source.on_chunk = lambda: peaks.append(flights.held_bytes)
        slow, *fast = flights.board(repository(), blob_of(source.data), 4)
        got = [await anext(slow) for _ in range(taken)]
        assert await asyncio.gather(*map(drain, fast)) == [source.data] * 3
        assert (source.opened, source.closed, spools.made) == (1, 1, 1)
        assert len(spools.files) == 1
        assert b"".join(got) + await drain(slow) == source.data
        await until(lambda: not spools.files)
        assert max(peaks) <= WINDOW


async def test_all_equally_slow(spools: SpoolFolder, source: FakeSource) -> None:
    """Nobody is held up by readers that keep step: the source waits, and no disk is touched."""
    async with flights_over(source, spools, spill_grace_s=0) as flights:
        readers = flights.board(repository(), blob_of(source.data), 3)
        got: list[list[bytes]] = [[] for _ in readers]
        for _ in range(40):
            for reader, chunks in zip(readers, got, strict=True):
                chunks.append(await anext(reader))
            await settle()
            assert flights.held_bytes <= WINDOW
        assert [b"".join(chunks) for chunks in got] == [source.data] * 3
    assert spools.made == 0


async def test_grace(spools: SpoolFolder, source: FakeSource) -> None:
    """A quick reader waits for a slow one as long as is said, and no longer."""
    clock = Clock()
    async with flights_over(source, spools, spill_grace_s=30, clock=clock) as flights:
        slow, quick = flights.board(repository(), blob_of(source.data), 2)
        await anext(slow)
        task = asyncio.create_task(drain(quick))
        await settle()
        clock.now = 29.0
        await anext(slow)
        await settle()
        assert spools.made == 0
        clock.now = 30.0
        await anext(slow)
        assert await task == source.data
        assert spools.made == 1


async def test_grace_passes_by_itself(spools: SpoolFolder, source: FakeSource) -> None:
    """No event is needed for patience to end."""
    async with flights_over(source, spools, spill_grace_s=0.01) as flights:
        _, quick = flights.board(repository(), blob_of(source.data), 2)
        assert await drain(quick) == source.data


async def test_trickling_reader_does_not_set_the_pace(spools: SpoolFolder, source: FakeSource) -> None:
    """Many waits, each shorter than the grace, use it up too."""
    clock = Clock()
    async with flights_over(source, spools, spill_grace_s=0.5, clock=clock) as flights:
        slow, quick = flights.board(repository(), blob_of(source.data), 2)
        task = asyncio.create_task(drain(quick))
        for _ in range(8):
            await anext(slow)
            await settle()
            clock.now += 0.25
        assert await task == source.data


async def collect(reader: Reader, into: list[bytes]) -> None:
    async for chunk in reader:
        into.append(chunk)


async def keep_step(source: FakeSource, reader: Reader, chunks: int) -> list[bytes]:
    """Let the source send so many chunks, one when `reader` has had the one before."""
    got = []
    for _ in range(chunks):
        source.allow(1)
        got.append(await anext(reader))
        await settle()
    return got


async def test_later_laggards_join_the_file(spools: SpoolFolder, source: FakeSource) -> None:
    """One file serves all slow readers of a flight, wherever they fell back."""
    source.allow(0)
    async with flights_over(source, spools, spill_grace_s=0) as flights:
        never, later, quick = flights.board(repository(), blob_of(source.data), 3)
        task = asyncio.create_task(drain(quick))
        got = await keep_step(source, later, 8)
        assert (later.spill, never.spill is None, spools.made) == (None, False, 1)
        source.allow(40)
        assert await task == source.data
        assert later.spill is never.spill
        assert b"".join(got) + await drain(later) == source.data
        assert len(spools.files) == 1
        assert await drain(never) == source.data
        assert spools.made == 1


async def test_leaving_the_file(spools: SpoolFolder, source: FakeSource) -> None:
    """The file goes with its last reader, even in mid-flight; the next laggard gets a new one."""
    source.allow(0)
    async with flights_over(source, spools, spill_grace_s=0) as flights:
        gone, second, quick = flights.board(repository(), blob_of(source.data), 3)
        task = asyncio.create_task(drain(quick))
        got = await keep_step(source, second, 8)
        assert len(spools.files) == 1
        gone.close()
        await until(lambda: not spools.files)
        source.allow(40)
        assert await task == source.data
        assert b"".join(got) + await drain(second) == source.data
        assert spools.made == 2


async def test_spool_bound(spools: SpoolFolder, source: FakeSource) -> None:
    """A laggard beyond the bound is dropped with a fault that may be tried again; the others go on; alone it works."""
    async with flights_over(source, spools, spill_grace_s=0, spool_max_bytes=len(source.data) - 1) as flights:
        slow, *fast = flights.board(repository(), blob_of(source.data), 3)
        assert await asyncio.gather(*map(drain, fast)) == [source.data] * 2
        with pytest.raises(Temporary) as full:
            await drain(slow)
        assert full.value.code is ErrorCode.STORAGE_FULL
        assert await drain(flights.board(repository(), blob_of(source.data), 1)[0]) == source.data
    assert spools.made == 0


async def test_spool_bound_is_over_all_flights(spools: SpoolFolder, source: FakeSource) -> None:
    """What one flight has on disk, another cannot have; it is given back with the file."""
    blob = blob_of(source.data)
    async with flights_over(source, spools, spill_grace_s=0, spool_max_bytes=len(source.data)) as flights:
        held, quick = flights.board(repository("one"), blob, 2)
        await drain(quick)
        assert flights.spooled_bytes == len(source.data)
        dropped, quick = flights.board(repository("two"), blob, 2)
        await drain(quick)
        with pytest.raises(Temporary):
            await drain(dropped)
        assert await drain(held) == source.data
        await until(lambda: flights.spooled_bytes == 0)
        kept, quick = flights.board(repository("two"), blob, 2)
        await drain(quick)
        assert await drain(kept) == source.data


@contextmanager
def _full_disk() -> Iterator[Path]:
    yield Path("/dev/full")


@contextmanager
def _no_inode() -> Iterator[Path]:
    raise OSError(errno.ENOSPC, "No space left on device", "/secret/place")
    yield Path()


@contextmanager
def _refused() -> Iterator[Path]:
    raise Temporary(ErrorCode.STORAGE_FULL, "the disk is full")
    yield Path()


@pytest.mark.parametrize("spool_file", [_full_disk, _no_inode, _refused])
async def test_full_disk(source: FakeSource, spool_file: object) -> None:
    """No room on the disk costs the slow reader its place, and nobody else anything."""
    async with flights_over(source, spool_file, spill_grace_s=0) as flights:
        slow, *fast = flights.board(repository(), blob_of(source.data), 3)
        assert await asyncio.gather(*map(drain, fast)) == [source.data] * 2
        with pytest.raises(Temporary) as full:
            await drain(slow)
        assert full.value.code is ErrorCode.STORAGE_FULL
        assert "secret" not in full.value.message


async def test_disk_fills_up_in_the_middle(
    spools: SpoolFolder, source: FakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fails after some bytes: the reader has had only right ones, and the file is gone."""
    written = 0

    def writev(fd: int, pieces: list[memoryview]) -> int:
        nonlocal written
        if written > 8 * CHUNK:
            raise OSError(errno.ENOSPC, "full")
        written += (done := os.write(fd, pieces[0][: CHUNK // 3]))
        return done

    monkeypatch.setattr(spool_module.os, "writev", writev)
    source.allow(8)
    async with flights_over(source, spools, spill_grace_s=0) as flights:
        slow, quick = flights.board(repository(), blob_of(source.data), 2)
        task = asyncio.create_task(drain(quick))
        got = [await anext(slow) for _ in range(2)]
        await until(lambda: spools.made == 1)
        source.allow(40)
        assert await task == source.data
        with pytest.raises(Fault) as full:
            await collect(slow, got)
        assert full.value.code is ErrorCode.STORAGE_FULL
        assert source.data.startswith(b"".join(got))
        await until(lambda: not spools.files)


async def test_corrupt_source_with_a_spooled_reader(spools: SpoolFolder, source: FakeSource) -> None:
    """The last chunk never reaches the disk either."""
    blob = blob_of(source.data[:-1] + b"!")
    async with flights_over(source, spools, spill_grace_s=0) as flights:
        slow, quick = flights.board(repository(), blob, 2)
        got = [await anext(slow)]
        with pytest.raises(Fault):
            await drain(quick)
        with pytest.raises(Fault) as corrupt:
            got.append(await anext(slow))
        assert corrupt.value.code is ErrorCode.COPY_FAILED
        await until(lambda: not spools.files)


async def test_source_fault_with_a_spooled_reader(spools: SpoolFolder, source: FakeSource) -> None:
    """A source that fails ends spooled readers too."""
    blob = blob_of(source.data + b"more")
    source.fault = Temporary(ErrorCode.REGISTRY_UNAVAILABLE, "gone")
    async with flights_over(source, spools, spill_grace_s=0) as flights:
        slow, quick = flights.board(repository(), blob, 2)
        ends = await asyncio.gather(drain(quick), drain(slow), return_exceptions=True)
        assert [repr(end) for end in ends] == [repr(source.fault)] * 2
        await until(lambda: not spools.files)


@pytest.mark.parametrize("way", ["close", "cancel"])
async def test_spooled_reader_gives_up(spools: SpoolFolder, source: FakeSource, way: str) -> None:
    """Ending while it reads the file, or waits for it to grow, is clean."""
    source.allow(20)
    async with flights_over(source, spools, spill_grace_s=0) as flights:
        slow, quick = flights.board(repository(), blob_of(source.data), 2)
        task = asyncio.create_task(drain(quick))
        await until(lambda: spools.made == 1)
        reading = asyncio.create_task(drain(slow))
        await asyncio.sleep(0)
        if way == "close":
            slow.close()
        else:
            reading.cancel()
        with pytest.raises(Temporary if way == "close" else asyncio.CancelledError):
            await reading
        await until(lambda: not spools.files)
        source.allow(40)
        assert await task == source.data


async def test_slot_is_free_while_a_laggard_drains(spools: SpoolFolder) -> None:
    """The next blob does not wait for the slow readers of the last one."""
    first, second = FakeSource(data_of(LARGE)), FakeSource(data_of(LARGE + 1))
    by_size = {len(source.data): source for source in (first, second)}
    async with flights_over(lambda s, b: by_size[b.size](s, b), spools, streams_max=1, spill_grace_s=0) as flights:
        slow, quick = flights.board(repository(), blob_of(first.data), 2)
        assert await drain(quick) == first.data
        assert await drain(flights.board(repository(), blob_of(second.data), 1)[0]) == second.data
        assert await drain(slow) == first.data


async def test_slow_readers_do_not_pile_up_in_memory(spools: SpoolFolder) -> None:
    """Many small blobs that one target has not come to yet: beyond a bound they wait on disk."""
    data = [data_of(3)[number:] for number in range(40)]
    by_size = {len(one): FakeSource(one) for one in data}
    async with flights_over(lambda s, b: by_size[b.size](s, b), spools, streams_max=2) as flights:
        waiting = []
        for one in data:
            slow, quick = flights.board(repository(), blob_of(one), 2)
            assert await drain(quick) == one
            waiting.append(slow)
        await until(lambda: flights.held_bytes <= 3 * WINDOW)
        assert spools.made > 30
        assert [await drain(reader) for reader in waiting] == data
        await until(lambda: not spools.files)


async def test_file_that_cannot_be_removed(spools: SpoolFolder, source: FakeSource) -> None:
    """A disk that does not even let go of a file costs nobody the room of it, and nothing is left unsaid."""

    @contextmanager
    def stuck() -> Iterator[Path]:
        with spools() as path:
            yield path
        raise OSError(errno.EROFS, "Read-only file system")

    lost: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: lost.append(context))
    async with flights_over(source, stuck, spill_grace_s=0, spool_max_bytes=len(source.data)) as flights:
        for _ in range(2):
            slow, quick = flights.board(repository(), blob_of(source.data), 2)
            assert await drain(quick) == source.data
            assert await drain(slow) == source.data
            await until(lambda: flights.spooled_bytes == 0)
    gc.collect()
    await settle()
    assert lost == []
    assert spools.made == 2
