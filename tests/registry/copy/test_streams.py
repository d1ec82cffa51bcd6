"""How much is read from one source at once, under a clock that only tests move."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise

import pytest

from imagejobd.registry.copy.streams import (
    GAIN,
    MEASURE_S,
    SETTLE_S,
    SMALL_BLOB_MAX_BYTES,
    SMALL_STREAMS_MAX,
    WINDOW_START_BYTES,
    Source,
    Stream,
)

KIB = 1024
LARGE = SMALL_BLOB_MAX_BYTES + 1
MBIT = 125_000


async def settle() -> None:
    """Let everything run that can run without time passing."""
    for _ in range(20):
        await asyncio.sleep(0)


class Path:
    """A source with its clock, and blobs that `begin` to be read for four targets, each by a task of its own."""

    def __init__(self, streams_max: int = 8, window_max_bytes: int = 1024 * KIB) -> None:
        self.now = 100.0
        self.source = Source(streams_max, window_max_bytes, clock=lambda: self.now)
        self.reading: dict[str, Stream] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def begin(self, *names: str, owner: str = "job", size_bytes: int = LARGE, targets: int = 4) -> None:
        for name in names:
            self.tasks[name] = asyncio.create_task(self._read(name, owner, size_bytes, targets))
        await settle()
        self.source.review()

    async def end(self, *names: str) -> None:
        """End these reads, or their waiting."""
        for name in names:
            self.tasks.pop(name).cancel()
        await settle()

    async def measure(self, bytes_per_s: float) -> None:
        """As much time as it takes for a change to settle and to be measured, at this goodput of all."""
        for seconds in (SETTLE_S, MEASURE_S):
            self.now += seconds
            self.source.count(round(bytes_per_s * seconds))
        await settle()

    async def _read(self, name: str, owner: str, size_bytes: int, targets: int) -> None:
        async with self.source.stream(owner, size_bytes, targets=targets) as stream:
            self.reading[name] = stream
            try:
                await asyncio.Event().wait()
            finally:
                del self.reading[name]


@asynccontextmanager
async def path_of(streams_max: int = 8, window_max_bytes: int = 1024 * KIB) -> AsyncIterator[Path]:
    path = Path(streams_max, window_max_bytes)
    try:
        yield path
    finally:
        await path.end(*path.tasks)
        assert not path.reading


@pytest.mark.parametrize(("targets", "streams_max", "expected"), [(4, 8, 1), (1, 8, 2), (1, 1, 1)])
async def test_start(targets: int, streams_max: int, expected: int) -> None:
    """The first large blob is read alone, or two for a single target; the ceiling holds."""
    async with path_of(streams_max) as path:
        await path.begin("a", "b", "c", targets=targets)
        assert list(path.reading) == ["a", "b", "c"][:expected]
        assert path.source.window_bytes == WINDOW_START_BYTES


async def test_window_ceiling() -> None:
    """A window that is configured smaller than the one to begin with is the window."""
    async with path_of(window_max_bytes=64 * KIB) as path:
        assert path.source.window_bytes == 64 * KIB
        await path.begin("a")
        for _ in range(9):
            path.source.window_is_short()
            await path.measure(100 * MBIT)
        assert path.source.window_bytes == 64 * KIB


async def test_growth_by_goodput() -> None:
    """Where each connection is held to a rate, one stream after the other is added, up to the ceiling, in seconds."""
    async with path_of(streams_max=4) as path:
        await path.begin(*"abcdefgh")
        began = path.now
        while len(path.reading) < 4:
            assert path.now - began < 3.0
            await path.measure(100 * MBIT * len(path.reading))
        for _ in range(9):
            await path.measure(100 * MBIT * len(path.reading))
        assert sorted(path.reading) == list("abcd")


async def test_what_does_not_pay_is_taken_back() -> None:
    """A stream that brings less than `GAIN` loses its place, and the next trial comes later each time."""
    async with path_of() as path:
        await path.begin("a", "b", "c")
        trials: list[int] = []
        for number in range(40):
            before = path.source.limit
            await path.measure(800 * MBIT * (1 + GAIN * 0.9 * (path.source.limit - 1)))
            if path.source.limit > before:
                trials.append(number)
        waits = [second - first for first, second in pairwise(trials)]
        assert len(waits) >= 2
        assert waits == sorted(set(waits))
        assert "c" not in path.reading


async def test_pause() -> None:
    """The newest read pauses where streams are taken back; it goes on when an older one has ended, or it is tried
    again."""
    async with path_of() as path:
        await path.begin("a", "b")
        await path.measure(800 * MBIT)
        assert list(path.reading) == ["a", "b"]
        await path.measure(800 * MBIT)
        older, newer = (asyncio.create_task(path.reading[name].count(1)) for name in "ab")
        await settle()
        assert (older.done(), newer.done()) == (True, False)
        await path.end("a")
        assert newer.done()


async def test_small_goodput_of_a_silent_source_is_measured() -> None:
    """A blob of which nothing comes does not keep its place for itself: time that brings nothing is measured, too."""
    async with path_of() as path:
        await path.begin("silent", "next")
        assert list(path.reading) == ["silent"]
        async with asyncio.timeout(10):
            while "next" not in path.reading:
                path.now += MEASURE_S
                path.source.review()
                await settle()
        await path.measure(10 * MBIT)
        assert "next" in path.reading


async def test_waiting_is_enough_to_measure() -> None:
    """Who waits for a place sees to it by itself that time is measured."""
    async with path_of() as path:
        await path.begin("silent", "next")
        async with asyncio.timeout(10):
            while "next" not in path.reading:
                path.now += MEASURE_S
                await asyncio.sleep(0.01)


async def test_window_trial() -> None:
    """The window is doubled where quick readers wait for slow ones, while that brings goodput; else it goes
    back to what it was."""
    async with path_of(window_max_bytes=600 * KIB) as path:
        await path.begin("a")
        await path.measure(100 * MBIT)
        await path.measure(100 * MBIT)
        assert path.source.window_bytes == 256 * KIB
        seen: list[int] = []
        for goodput in (100, 150, 200, 200):
            path.source.window_is_short()
            await path.measure(goodput * MBIT)
            seen.append(path.source.window_bytes // KIB)
        assert seen == [512, 600, 600, 600]
    async with path_of(window_max_bytes=300 * KIB) as path:
        await path.begin("a")
        path.source.window_is_short()
        await path.measure(100 * MBIT)
        assert path.source.window_bytes == 300 * KIB
        await path.measure(100 * MBIT)
        assert path.source.window_bytes == 256 * KIB


async def test_owners_take_turns() -> None:
    """A job with many blobs does not keep another one waiting for all of them."""
    async with path_of(streams_max=1) as path:
        await path.begin("a1", "a2", "a3", owner="a")
        await path.begin("b1", "b2", owner="b")
        order = []
        while path.reading:
            order.extend(path.reading)
            await path.end(*path.reading)
        assert order == ["a1", "a2", "b1", "a3", "b2"]


async def test_small_blobs_do_not_wait() -> None:
    """Small blobs pass large ones that wait; there are so many of them at once, and no more."""
    async with path_of(streams_max=1) as path:
        await path.begin("large", "waiting")
        small = [f"small {number}" for number in range(SMALL_STREAMS_MAX + 1)]
        await path.begin(*small, size_bytes=SMALL_BLOB_MAX_BYTES)
        assert list(path.reading) == ["large", *small[:-1]]
        await path.end(small[0])
        assert small[-1] in path.reading


async def test_wanted_places() -> None:
    """A place is wanted by other jobs that wait, and, where that counts, by its own."""
    async with path_of(streams_max=1) as path:
        await path.begin("a1")
        place = path.reading["a1"]
        assert not place.is_wanted(by_own_job=True)
        await path.begin("a2")
        assert (place.is_wanted(by_own_job=False), place.is_wanted(by_own_job=True)) == (False, True)
        await path.begin("b1", owner="another")
        assert place.is_wanted(by_own_job=False)
        await path.end("b1")
        assert not place.is_wanted(by_own_job=False)


async def test_cancelled_waiting_loses_nothing() -> None:
    """No place is lost to one who is cancelled while waiting, or in the moment of being let in."""
    async with path_of(streams_max=1) as path:
        await path.begin("a", "b", "c", "d")
        await path.end("b")
        assert list(path.reading) == ["a"]
        path.tasks.pop("a").cancel()
        await asyncio.sleep(0)  # the place is c's now, which has not noticed
        await path.end("c")
        assert list(path.reading) == ["d"]


async def test_places_in_one_task() -> None:
    """Places are given back in any order."""
    source = Source(2, 256 * KIB, clock=lambda: 0.0)
    async with AsyncExitStack() as first, AsyncExitStack() as second:
        await first.enter_async_context(source.stream("job", LARGE, targets=1))
        await second.enter_async_context(source.stream("job", LARGE, targets=1))
        await first.aclose()
        async with asyncio.timeout(5), source.stream("job", LARGE, targets=1):
            pass
