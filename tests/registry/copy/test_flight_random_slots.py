"""Many flights and few slots, whatever the order of events: all end, and the bounds hold at every moment."""

import asyncio
import tempfile
from pathlib import Path

from flight_rig import CHUNK, KIB, FakeSource, SpoolFolder, blob_of, data_of, flights_over, repository, settle
from hypothesis import given, settings
from hypothesis import strategies as st
from imagejobd.registry.copy.flight import SMALL_BLOB_MAX_BYTES
from imagejobd.registry.copy.slots import STREAMS_TOTAL_FACTOR
from test_flight_random import Eater

BLOBS = 9
HOSTS = 5
LARGE = SMALL_BLOB_MAX_BYTES // CHUNK + 1
WINDOW = 256 * KIB
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(0, BLOBS - 1), st.integers(1, 40)),
        st.tuples(st.just("take"), st.integers(0, 2 * BLOBS - 1), st.integers(1, 40)),
        st.tuples(st.just("close"), st.integers(0, 2 * BLOBS - 1)),
        st.tuples(st.just("cancel"), st.integers(0, 2 * BLOBS - 1)),
        st.tuples(st.just("settle")),
    ),
    max_size=60,
)


class Scene:
    """Large blobs with two readers each, of a few hosts, and what is read of them at once."""

    def __init__(self, folder: Path) -> None:
        self.spools = SpoolFolder(folder)
        self.sources = [FakeSource(data_of(LARGE + number)) for number in range(BLOBS)]
        for source in self.sources:
            source.allow(0)

    def open_source(self, source, blob):
        return next(one for one in self.sources if len(one.data) == blob.size)(source, blob)

    def check(self, flights) -> None:
        reading = sum(source.opened - source.closed for source in self.sources)
        assert reading <= 2 * STREAMS_TOTAL_FACTOR
        assert flights.held_bytes <= (2 * STREAMS_TOTAL_FACTOR + 1) * WINDOW

    async def play(self, flights, steps) -> None:
        eaters: list[Eater] = []
        for number, source in enumerate(self.sources):
            place = repository(host=f"host{number % HOSTS}")
            eaters += [Eater(reader) for reader in flights.board(place, blob_of(source.data), 2)]
        leavers = self.act(flights, eaters, steps)
        left = {eater async for eater in leavers}
        for source in self.sources:
            source.allow(1_000)
        for eater in eaters:
            eater.allow(1_000)
        async with asyncio.timeout(20):
            await asyncio.gather(*(eater.task for eater in eaters), return_exceptions=True)
        for number, eater in enumerate(eaters):
            eater.reader.close()  # one that was cancelled before its first step has not done so itself
            assert eater.whole or eater in left
            if eater.whole:
                assert eater.got == self.sources[number // 2].data

    async def act(self, flights, eaters, steps):
        """The readers that leave early."""
        for step in steps:
            match step:
                case ("send", number, count):
                    self.sources[number].allow(count)
                case ("take", number, count):
                    eaters[number].allow(count)
                case ("close", number):
                    yield eaters[number]
                    eaters[number].reader.close()
                case ("cancel", number):
                    yield eaters[number]
                    eaters[number].task.cancel()
                case _:
                    await settle()
            self.check(flights)


@settings(max_examples=60, deadline=None)
@given(slot_grace_s=st.sampled_from([0.0, 0.001]), source_grace_s=st.sampled_from([0.001, 60.0]), steps=STEPS)
def test_any_interleaving(slot_grace_s: float, source_grace_s: float, steps: list) -> None:
    """Who stays gets every byte, nobody waits for ever, no slot is lost, and no more is read at once than is said."""

    async def run(folder: Path) -> None:
        scene = Scene(folder)
        graces = {"spill_grace_s": 0.001, "slot_grace_s": slot_grace_s, "source_grace_s": source_grace_s}
        async with flights_over(
            scene.open_source, scene.spools, streams_max=1, window_bytes=WINDOW, **graces
        ) as flights:
            await scene.play(flights, steps)
            await settle()
            assert flights.hosts_read == 0
        assert scene.spools.files == []

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(Path(folder)))
