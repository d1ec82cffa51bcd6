"""Flights against the plain bytes, whatever the order of events."""

import asyncio
import tempfile
from pathlib import Path

from flight_rig import FakeSource, SpoolFolder, blob_of, flights_over, repository, settle
from hypothesis import example, given, settings
from hypothesis import strategies as st
from imagejobd.registry.copy.flight import Flights, Reader

from imagejobd.model.errors import Fault

READERS = 4
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(0, 6)),
        st.tuples(st.just("take"), st.integers(0, READERS - 1), st.integers(1, 6)),
        st.tuples(st.just("close"), st.integers(0, READERS - 1)),
        st.tuples(st.just("cancel"), st.integers(0, READERS - 1)),
        st.tuples(st.just("join"), st.integers(1, 2)),
        st.tuples(st.just("settle")),
    ),
    max_size=30,
)


class Eater:
    """Takes as many chunks as it may, in its own task."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.got = b""
        self.whole = False
        self.may = asyncio.Semaphore(0)
        self.task = asyncio.create_task(self._eat())

    async def _eat(self) -> None:
        try:
            await self.may.acquire()
            async for chunk in self.reader:
                self.got += chunk
                await self.may.acquire()
            self.whole = True
        finally:
            self.reader.close()

    def allow(self, chunks: int) -> None:
        for _ in range(chunks):
            self.may.release()


async def play(flights: Flights, source: FakeSource, steps: list[tuple], corrupt: bool) -> None:
    blob = blob_of(source.data + b"!" if corrupt else source.data)
    blob = type(blob)(digest=blob.digest, size=len(source.data))
    eaters = [Eater(reader) for reader in flights.board(repository(), blob, READERS)]
    leavers: set[Eater] = set()
    for step in steps:
        match step:
            case ("send", count):
                source.allow(count)
            case ("take", number, count):
                eaters[number].allow(count)
            case ("close", number):
                leavers.add(eaters[number])
                eaters[number].reader.close()
            case ("cancel", number):
                leavers.add(eaters[number])
                eaters[number].task.cancel()
            case ("join", count):
                eaters += [Eater(reader) for reader in flights.board(repository(), blob, count)]
            case _:
                await settle()
    source.allow(10_000)
    for eater in eaters:
        eater.allow(10_000)
    async with asyncio.timeout(20):
        ends = await asyncio.gather(*(eater.task for eater in eaters), return_exceptions=True)
    for eater, end in zip(eaters, ends, strict=True):
        assert source.data.startswith(eater.got)
        assert eater.whole == (end is None)
        if eater.whole:
            assert not corrupt
            assert eater.got == source.data
        elif eater not in leavers:
            assert corrupt
            assert isinstance(end, Fault)
        if corrupt and source.data:
            assert len(eater.got) < len(source.data)


# One who joins a blob that was refuted before: it is opened anew, past the mirrors.
@example(size=0, chunk=97, window=300, grace_s=0.0, corrupt=True, steps=[("take", 0, 1), ("settle",), ("join", 1)])
@settings(max_examples=100, deadline=None)
@given(
    size=st.integers(0, 5_000),
    chunk=st.sampled_from([97, 256, 1_000]),
    window=st.sampled_from([300, 1_024, 4_096]),
    grace_s=st.sampled_from([0.0, 0.001]),
    corrupt=st.booleans(),
    steps=STEPS,
)
def test_any_interleaving(size: int, chunk: int, window: int, grace_s: float, corrupt: bool, steps: list) -> None:
    """Who stays gets every byte of a true blob and never the end of a corrupt one; nothing hangs, nothing is left."""
    data = bytes(number * 31 % 251 for number in range(size))

    async def scene(folder: Path) -> None:
        spools = SpoolFolder(folder)
        source = FakeSource(data, chunk)
        source.allow(0)
        async with flights_over(source, spools, window_bytes=window, spill_grace_s=grace_s) as flights:
            await play(flights, source, steps, corrupt)
        assert spools.files == []
        assert source.opened == source.closed

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(scene(Path(folder)))
