"""One read for many readers: who shares it, what they get, and what ends it."""

import asyncio
import contextlib
import traceback

import pytest
from flight_rig import CHUNK, FakeSource, SpoolFolder, blob_of, data_of, drain, flights_over, repository, settle, until
from imagejobd.registry.copy.flight import SMALL_BLOB_MAX_BYTES, Reader

from imagejobd.model.errors import ErrorCode, Permanent, Temporary
from imagejobd.registry.manifest import Descriptor

LARGE = SMALL_BLOB_MAX_BYTES // CHUNK + 4


@pytest.fixture
def spools(tmp_path) -> SpoolFolder:
    return SpoolFolder(tmp_path)


async def collect(reader: Reader, into: list[bytes]) -> None:
    async for chunk in reader:
        into.append(chunk)


@pytest.mark.parametrize("size", [0, 1, CHUNK, CHUNK + 1, 9 * CHUNK + 7])
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_all_get_the_same(spools: SpoolFolder, size: int, algorithm: str) -> None:
    """Every reader gets the blob, whatever its size, from one read of the source."""
    data = data_of(10)[:size]
    source = FakeSource(data)
    async with flights_over(source, spools) as flights:
        readers = flights.board(repository(), blob_of(data, algorithm), 4)
        assert await asyncio.gather(*map(drain, readers)) == [data] * 4
    assert (source.opened, source.closed) == (1, 1)
    assert spools.made == 0


async def test_dribbling_source(spools: SpoolFolder) -> None:
    """Tiny pieces, and empty ones, arrive as the same bytes."""
    data = data_of(1)[:3000]

    async def dribble(_source: object, _blob: object):
        for byte in data:
            yield b""
            yield bytes([byte])
        yield b""

    async with flights_over(dribble, spools) as flights:
        readers = flights.board(repository(), blob_of(data), 2)
        seen: list[list[bytes]] = [[], []]
        await asyncio.gather(*map(collect, readers, seen))
    assert [b"".join(chunks) for chunks in seen] == [data] * 2
    assert all(map(all, seen)), "an empty chunk ends a chunked body"


async def test_nothing_is_read_before_somebody_asks(spools: SpoolFolder) -> None:
    """A target that mounts the blob costs the source nothing."""
    source = FakeSource(data_of(3))
    async with flights_over(source, spools) as flights:
        (reader,) = flights.board(repository(), blob_of(source.data), 1)
        await settle()
        reader.close()
        reader.close()
    assert source.opened == 0


async def test_nobody_boards(spools: SpoolFolder) -> None:
    """A blob that nobody needs is no flight."""
    source = FakeSource(data_of(1))
    async with flights_over(source, spools) as flights:
        assert flights.board(repository(), blob_of(source.data), 0) == []


async def test_late_joiner_gets_every_byte(spools: SpoolFolder) -> None:
    """A reader that joins a running flight begins at byte 0."""
    source = FakeSource(data_of(8))
    source.allow(3)
    async with flights_over(source, spools) as flights:
        first = asyncio.create_task(drain(flights.board(repository(), blob_of(source.data), 1)[0]))
        await settle()
        late = asyncio.create_task(drain(flights.board(repository(), blob_of(source.data), 1)[0]))
        source.allow(5)
        assert await asyncio.gather(first, late) == [source.data] * 2
    assert source.opened == 1


async def test_too_late_to_join(spools: SpoolFolder) -> None:
    """When the first bytes have gone, the blob is read again for whoever wants it now."""
    source = FakeSource(data_of(8))
    source.allow(6)
    async with flights_over(source, spools) as flights:
        first = asyncio.create_task(drain(flights.board(repository(), blob_of(source.data), 1)[0]))
        await settle()
        late = asyncio.create_task(drain(flights.board(repository(), blob_of(source.data), 1)[0]))
        source.allow(10)
        assert await asyncio.gather(first, late) == [source.data] * 2
    assert source.opened == 2


@pytest.mark.parametrize(
    ("identity", "path", "size_lie"), [("other", "team/app", 0), ("job", "team/other", 0), ("job", "team/app", 1)]
)
async def test_what_never_shares(spools: SpoolFolder, identity: str, path: str, size_lie: int) -> None:
    """Another login, repository or claimed size is another flight, even for the same digest at the same time."""
    source = FakeSource(data_of(2))
    blob = blob_of(source.data)
    other = Descriptor(digest=blob.digest, size=blob.size + size_lie)
    async with flights_over(source, spools) as flights:
        readers = flights.board(repository(), blob, 1) + flights.board(repository(identity, path), other, 1)
        got = await asyncio.gather(*map(drain, readers), return_exceptions=True)
    assert got[0] == source.data
    assert source.opened == 2
    assert isinstance(got[1], Permanent) if size_lie else got[1] == source.data


@pytest.mark.parametrize("chunks", [1, 3, 9])
@pytest.mark.parametrize("position", [0, -1])
async def test_corrupt_source(spools: SpoolFolder, chunks: int, position: int) -> None:
    """One wrong byte anywhere: no reader ever sees the last chunk, and all are told what came."""
    data = data_of(chunks)
    wrong = bytearray(data)
    wrong[position] ^= 1
    async with flights_over(FakeSource(bytes(wrong)), spools) as flights:
        readers = flights.board(repository(), blob_of(data), 3)
        seen: list[list[bytes]] = [[] for _ in readers]
        ends = await asyncio.gather(*map(collect, readers, seen), return_exceptions=True)
    for end, chunks_seen in zip(ends, seen, strict=True):
        assert isinstance(end, Permanent)
        assert end.code is ErrorCode.COPY_FAILED
        assert blob_of(data).digest in end.message
        assert blob_of(bytes(wrong)).digest in end.message
        assert "source.example/team/app" in end.message
        assert len(b"".join(chunks_seen)) == (chunks - 1) * CHUNK


@pytest.mark.parametrize("difference", [-1, 1, CHUNK])
async def test_source_of_another_length(spools: SpoolFolder, difference: int) -> None:
    """A body that is shorter or longer than the manifest says is refused before its end goes out."""
    data = data_of(4)
    blob = Descriptor(digest=blob_of(data).digest, size=len(data) - difference)
    async with flights_over(FakeSource(data), spools) as flights:
        seen: list[bytes] = []
        with pytest.raises(Permanent, match="bytes"):
            await collect(flights.board(repository(), blob, 1)[0], seen)
    assert len(b"".join(seen)) < blob.size


async def test_source_fault_reaches_all(spools: SpoolFolder) -> None:
    """A source that fails in the middle fails every reader, begun or not; the next one to board tries anew."""
    data = data_of(6)
    source = FakeSource(data[: 3 * CHUNK])
    source.fault = Temporary(ErrorCode.REGISTRY_UNAVAILABLE, "gone")
    async with flights_over(source, spools) as flights:
        readers = flights.board(repository(), blob_of(data), 3)
        ends = await asyncio.gather(*map(drain, readers[:2]), return_exceptions=True)
        ends += await asyncio.gather(drain(readers[2]), return_exceptions=True)
        assert [repr(end) for end in ends] == [repr(source.fault)] * 3
        assert len({id(end) for end in ends}) == 3  # each with a traceback of its own
        source.data, source.fault = data, None
        assert await drain(flights.board(repository(), blob_of(data), 1)[0]) == data
    assert source.opened == source.closed == 2


async def test_closing_one_disturbs_nobody(spools: SpoolFolder) -> None:
    """Readers come and go; who stays gets everything."""
    source = FakeSource(data_of(8))
    async with flights_over(source, spools) as flights:
        readers = flights.board(repository(), blob_of(source.data), 3)
        assert await anext(readers[0]) == source.data[:CHUNK]
        readers[0].close()
        readers[1].close()
        assert await drain(readers[2]) == source.data
        with pytest.raises(Temporary):
            await anext(readers[0])
    assert spools.made == 0


@pytest.mark.parametrize("permits", [0, 2, 5])
@pytest.mark.parametrize("way", ["close", "cancel"])
async def test_last_reader_ends_the_read(spools: SpoolFolder, permits: int, way: str) -> None:
    """When nobody is left, the transfer ends: before its first byte, while the source is slow, behind a full window."""
    source = FakeSource(data_of(8))
    source.allow(permits)
    async with flights_over(source, spools) as flights:
        (reader,) = flights.board(repository(), blob_of(source.data), 1)
        task = asyncio.create_task(drain(reader))
        await settle()
        if way == "close":
            reader.close()
        else:
            task.cancel()
        with pytest.raises(Temporary if way == "close" else asyncio.CancelledError):
            await task
        await settle()
        assert source.closed == source.opened == 1
        assert flights.held_bytes == 0


async def test_closing_behind_a_full_window(spools: SpoolFolder) -> None:
    """A source that is waiting for its only reader is closed with it."""
    source = FakeSource(data_of(8))
    async with flights_over(source, spools) as flights:
        (reader,) = flights.board(repository(), blob_of(source.data), 1)
        await anext(reader)
        await settle()
        assert source.closed == 0
        reader.close()
        await settle()
        assert source.closed == 1


async def test_closing_flights(spools: SpoolFolder) -> None:
    """The daemon's end ends every reader with a fault that is tried again, and closes every source."""
    source = FakeSource(data_of(8))
    source.allow(5)
    async with flights_over(source, spools, spill_grace_s=0) as flights:
        readers = flights.board(repository(), blob_of(source.data), 3)
        tasks = [asyncio.create_task(drain(reader)) for reader in readers[:2]]
        await until(lambda: spools.made == 1)
        await flights.close()
        ends = await asyncio.gather(*tasks, drain(readers[2]), return_exceptions=True)
        assert [getattr(end, "code", end) for end in ends] == [ErrorCode.DRAINING] * 3
        assert source.closed == 1
        assert spools.files == []
        with pytest.raises(Temporary, match="stopping"):
            await drain(flights.board(repository(), blob_of(source.data), 1)[0])
        assert source.opened == 1


async def test_slots(spools: SpoolFolder) -> None:
    """Large blobs wait for each other; small ones do not wait for large ones."""
    first, second, small = FakeSource(data_of(LARGE)), FakeSource(data_of(LARGE + 1)), FakeSource(data_of(1))
    first.allow(1)
    by_size = {len(source.data): source for source in (first, second, small)}
    async with flights_over(lambda s, b: by_size[b.size](s, b), spools, streams_max=1) as flights:
        tasks = [
            asyncio.create_task(drain(flights.board(repository(), blob_of(source.data), 1)[0]))
            for source in (first, second, small)
        ]
        assert await tasks[2] == small.data
        await settle()
        assert (first.opened, second.opened) == (1, 0)
        first.allow(LARGE)
        assert await asyncio.gather(*tasks[:2]) == [first.data, second.data]


async def test_waiting_for_a_slot_can_be_given_up(spools: SpoolFolder) -> None:
    """A flight that ends before its turn leaves the turn to the next."""
    first, second, third = (FakeSource(data_of(LARGE + more)) for more in range(3))
    first.allow(0)
    by_size = {len(source.data): source for source in (first, second, third)}
    async with flights_over(lambda s, b: by_size[b.size](s, b), spools, streams_max=1) as flights:
        tasks = [
            asyncio.create_task(drain(flights.board(repository(), blob_of(source.data), 1)[0]))
            for source in (first, second, third)
        ]
        await settle()
        tasks[1].cancel()
        tasks[0].cancel()
        assert await tasks[2] == third.data
        for task in tasks[:2]:
            with contextlib.suppress(asyncio.CancelledError):
                await task
    assert second.opened == 0


async def test_no_deadlock_through_places_elsewhere(spools: SpoolFolder) -> None:
    """A flight whose last reader has not begun gives its slot free: that reader may wait for the next flight."""
    first, second = FakeSource(data_of(LARGE)), FakeSource(data_of(LARGE + 1))
    by_size = {len(source.data): source for source in (first, second)}
    async with flights_over(lambda s, b: by_size[b.size](s, b), spools, streams_max=1, spill_grace_s=0) as flights:
        begun, waiting = flights.board(repository(), blob_of(first.data), 2)
        (other,) = flights.board(repository(), blob_of(second.data), 1)
        await anext(begun)
        begun.close()
        assert await drain(other) == second.data
        assert await drain(waiting) == first.data


async def test_the_fault_of_many_readers_holds_no_frames_of_the_others(spools: SpoolFolder) -> None:
    """They raise one and the same, whose traceback is as long for the last as for the first."""
    source = FakeSource(data_of(1))
    source.fault = Temporary(ErrorCode.REGISTRY_UNAVAILABLE, "cut")
    lengths = []

    async def read(reader: Reader) -> None:
        try:
            await drain(reader)
        except Temporary as fault:
            lengths.append(len(traceback.extract_tb(fault.__traceback__)))

    async with flights_over(source, spools) as flights:
        blob = Descriptor(digest=blob_of(data_of(2)).digest, size=2 * CHUNK)
        await asyncio.gather(*map(read, flights.board(repository(), blob, 20)))
    assert len(lengths) == 20
    assert len(set(lengths)) == 1
