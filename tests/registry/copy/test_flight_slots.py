"""Blobs that keep others waiting: slow readers and slow sources, and what they have to give up for it."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from flight_rig import (
    CHUNK,
    Clock,
    FakeSource,
    SpoolFolder,
    WatchedFlights,
    blob_of,
    data_of,
    drain,
    flights_over,
    repository,
    settle,
    until,
)
from imagejobd.registry.copy.flight import SMALL_BLOB_MAX_BYTES, SOURCE_GRACE_S, Reader
from imagejobd.registry.copy.patience import SOURCE_MIN_BYTES_PER_S

# Whoever waits longer waits for ever.
TEST_MAX_S = 10
LARGE = SMALL_BLOB_MAX_BYTES // CHUNK + 4


@pytest.fixture
def spools(tmp_path: Path) -> SpoolFolder:
    return SpoolFolder(tmp_path)


class Sources:
    """Large blobs that differ in size, each with its source."""

    def __init__(self, count: int) -> None:
        self.all = [FakeSource(data_of(LARGE + number)) for number in range(count)]

    def __call__(self, source: Any, blob: Any) -> Any:
        return next(one for one in self.all if len(one.data) == blob.size)(source, blob)

    @property
    def opened(self) -> list[int]:
        return [source.opened for source in self.all]

    def board(self, flights: WatchedFlights, number: int, host: str = "a") -> Reader:
        return flights.board(repository(host=host), blob_of(self.all[number].data), 1)[0]

    def drain(self, flights: WatchedFlights, number: int, host: str = "a") -> "asyncio.Task[bytes]":
        return asyncio.create_task(asyncio.wait_for(drain(self.board(flights, number, host)), TEST_MAX_S))


async def test_hosts_do_not_hold_up_each_other(spools: SpoolFolder) -> None:
    """Blobs of one host that stand still stop nobody who reads from another."""
    sources = Sources(3)
    sources.all[0].allow(0)
    async with flights_over(sources, spools, streams_max=1) as flights:
        tasks = [sources.drain(flights, 0, "a"), sources.drain(flights, 1, "a"), sources.drain(flights, 2, "b")]
        assert await tasks[2] == sources.all[2].data
        assert sources.opened == [1, 0, 1]
        sources.all[0].allow(100)
        assert await asyncio.gather(*tasks) == [source.data for source in sources.all]


async def test_bound_over_all_hosts(spools: SpoolFolder) -> None:
    """However many hosts there are, no more than three times as many blobs are read at once."""
    sources = Sources(5)
    for source in sources.all:
        source.allow(0)
    async with flights_over(sources, spools, streams_max=1) as flights:
        tasks = [sources.drain(flights, number, f"host{number}") for number in range(5)]
        await settle()
        assert sources.opened == [1, 1, 1, 0, 0]
        for source in sources.all:
            source.allow(100)
        assert await asyncio.gather(*tasks) == [source.data for source in sources.all]


async def test_slow_reader_gives_the_slot_free(spools: SpoolFolder) -> None:
    """A blob with one slow reader is read to its end from disk, so that the next one has its turn."""
    sources = Sources(2)
    async with flights_over(sources, spools, streams_max=1, slot_grace_s=0.01) as flights:
        slow = sources.board(flights, 0)
        first = await anext(slow)
        assert await sources.drain(flights, 1) == sources.all[1].data
        assert (spools.made, sources.all[0].closed) == (1, 1)
        assert first + await drain(slow) == sources.all[0].data
        await until(lambda: not spools.files)


async def test_slow_readers_of_other_hosts_give_their_slots_free(spools: SpoolFolder) -> None:
    """When all slots are taken, any of them is wanted."""
    sources = Sources(4)
    async with flights_over(sources, spools, streams_max=1, slot_grace_s=0) as flights:
        slow = [sources.board(flights, number, f"host{number}") for number in range(3)]
        got = [await anext(reader) for reader in slow]
        await settle()
        assert spools.made == 0
        assert await sources.drain(flights, 3, "another") == sources.all[3].data
        for source, chunk, reader in zip(sources.all, got, slow, strict=False):
            assert chunk + await drain(reader) == source.data


async def test_nobody_waits(spools: SpoolFolder) -> None:
    """A slow reader that keeps nobody waiting slows its source down, and no disk is touched."""
    sources = Sources(2)
    async with flights_over(sources, spools, streams_max=1, slot_grace_s=0) as flights:
        slow = sources.board(flights, 0, "a")
        got = [await anext(slow)]
        assert await sources.drain(flights, 1, "b") == sources.all[1].data
        await settle()
        assert b"".join(got) + await drain(slow) == sources.all[0].data
    assert spools.made == 0


async def test_grace_before_the_slot_is_given_free(spools: SpoolFolder) -> None:
    """Who has waited in vain for a slot does not count, and a slow reader may keep its own as long as is said."""
    clock = Clock()
    sources = Sources(2)
    async with flights_over(sources, spools, streams_max=1, slot_grace_s=5, clock=clock) as flights:
        slow = sources.board(flights, 0)
        got = [await anext(slow)]
        for _ in range(3):
            clock.now += 4.0
            waiting = sources.drain(flights, 1)
            await settle()
            waiting.cancel()
            await settle()
        waiting = sources.drain(flights, 1)
        await settle()
        clock.now += 4.9
        got.append(await anext(slow))
        await settle()
        assert (spools.made, waiting.done()) == (0, False)
        clock.now += 5.0
        got.append(await anext(slow))
        assert await waiting == sources.all[1].data
        assert spools.made == 1
        assert b"".join(got) + await drain(slow) == sources.all[0].data


async def test_no_room_on_disk_fails_nobody(spools: SpoolFolder) -> None:
    """A slow reader that only keeps a slot from others goes on at its pace where it cannot be spooled."""
    sources = Sources(2)
    async with flights_over(sources, spools, streams_max=1, slot_grace_s=0.001, spool_max_bytes=CHUNK) as flights:
        slow = sources.board(flights, 0)
        got = [await anext(slow)]
        waiting = sources.drain(flights, 1)
        await asyncio.sleep(0.02)
        assert (spools.made, waiting.done()) == (0, False)
        assert b"".join(got) + await drain(slow) == sources.all[0].data
        assert await waiting == sources.all[1].data
    assert spools.made == 0


async def test_room_on_disk_is_waited_for(spools: SpoolFolder) -> None:
    """When there is room again, a slow reader that keeps a slot from others gets it, without another event."""
    sources = Sources(3)
    bounds = {"spill_grace_s": 0, "slot_grace_s": 0.001, "spool_max_bytes": len(sources.all[2].data)}
    async with flights_over(sources, spools, streams_max=1, **bounds) as flights:
        spooled, quick = flights.board(repository(host="b"), blob_of(sources.all[2].data), 2)
        await drain(quick)
        slow = sources.board(flights, 0)
        first = await anext(slow)
        waiting = sources.drain(flights, 1)
        await asyncio.sleep(0.02)
        assert (spools.made, waiting.done()) == (1, False)
        spooled.close()
        assert await waiting == sources.all[1].data
        assert first + await drain(slow) == sources.all[0].data


async def test_slow_source_gives_its_slot_back(spools: SpoolFolder) -> None:
    """A source that stands still keeps its slot only while nobody wants it; then it goes on without."""
    clock = Clock()
    sources = Sources(3)
    sources.all[0].allow(1)
    async with flights_over(sources, spools, streams_max=1, clock=clock) as flights:
        stuck = sources.drain(flights, 0)
        await settle()
        clock.now = SOURCE_GRACE_S + CHUNK / SOURCE_MIN_BYTES_PER_S
        assert await sources.drain(flights, 1) == sources.all[1].data
        assert await sources.drain(flights, 2) == sources.all[2].data
        assert not stuck.done()
        sources.all[0].allow(100)
        assert await stuck == sources.all[0].data
    assert sources.opened == [1, 1, 1]


async def test_slow_source_is_noticed_by_itself(spools: SpoolFolder) -> None:
    """No event is needed for a source to be too slow."""
    sources = Sources(2)
    sources.all[0].allow(0)
    async with flights_over(sources, spools, streams_max=1, source_grace_s=0.01) as flights:
        stuck = sources.drain(flights, 0)
        await settle()
        assert await sources.drain(flights, 1) == sources.all[1].data
        assert not stuck.done()
        stuck.cancel()


async def test_source_that_keeps_up_the_least_rate(spools: SpoolFolder) -> None:
    """A source that sends as much as is asked for keeps its slot, whoever waits."""
    clock = Clock()
    sources = Sources(2)
    sources.all[0].allow(0)
    async with flights_over(sources, spools, streams_max=1, clock=clock) as flights:
        held = sources.drain(flights, 0)
        for _ in range(LARGE):
            waiting = sources.drain(flights, 1)
            await settle()
            waiting.cancel()
            await settle()
            assert sources.opened == [1, 0]
            clock.now += 0.99 * CHUNK / SOURCE_MIN_BYTES_PER_S
            sources.all[0].allow(1)
        assert await held == sources.all[0].data


async def test_waiting_for_readers_is_not_the_sources_fault(spools: SpoolFolder) -> None:
    """A source that could send more keeps its slot; it is the reader that has to step aside."""
    clock = Clock()
    sources = Sources(2)
    async with flights_over(sources, spools, streams_max=1, slot_grace_s=1000, clock=clock) as flights:
        slow = sources.board(flights, 0)
        got = [await anext(slow)]
        await settle()
        waiting = sources.drain(flights, 1)
        for _ in range(3):
            clock.now += 9 * SOURCE_GRACE_S
            got.append(await anext(slow))
            await settle()
        assert sources.opened == [1, 0]
        assert b"".join(got) + await drain(slow) == sources.all[0].data
        assert await waiting == sources.all[1].data


async def test_slow_sources_are_bounded(spools: SpoolFolder) -> None:
    """As many slow sources as there are slots go on without one; more keep theirs, and get rid of it when one ends."""
    sources = Sources(8)
    for source in sources.all:
        source.allow(0)
    async with flights_over(sources, spools, streams_max=1, source_grace_s=0.001) as flights:
        tasks = [sources.drain(flights, number) for number in range(8)]
        await until(lambda: sum(sources.opened) == 4)
        await asyncio.sleep(0.02)
        assert sources.opened == [1, 1, 1, 1, 0, 0, 0, 0]
        sources.all[1].allow(100)
        assert await tasks[1] == sources.all[1].data
        await until(lambda: sum(sources.opened) == 5)
        await asyncio.sleep(0.02)
        assert sum(sources.opened) == 5
        for task in tasks:
            task.cancel()
