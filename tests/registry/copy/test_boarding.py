"""Gathering the readers of one blob: who shares a read, who waits, who does not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from imagejobd.registry.copy.boarding import Boarding

FOREVER_S = 3600.0
LEGS: tuple[Any, ...] = ("one", "two", "three")


class Reads:
    """Counts reads, and hands out readers that know whether they were closed."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.readers: list[OneReader] = []

    def open(self, readers: int) -> list[Any]:
        self.sizes.append(readers)
        new = [OneReader() for _ in range(readers)]
        self.readers += new
        return new

    @property
    def closed(self) -> int:
        return sum(reader.is_closed for reader in self.readers)


class OneReader:
    def __init__(self) -> None:
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def reads() -> Reads:
    return Reads()


def boarding(reads: Reads, legs: int, grace_s: float = FOREVER_S) -> Boarding:
    return Boarding(reads.open, LEGS[:legs], grace_s=grace_s)


async def turn_over() -> None:
    """Let every task that can go on do so."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_all_who_lack_it_share_one_read(reads: Reads) -> None:
    """Nothing is read before everybody has said whether they need it."""
    place = boarding(reads, 3)
    waiting = [asyncio.create_task(place.take(leg)) for leg in LEGS[:2]]
    await turn_over()
    assert reads.sizes == []
    place.forget(LEGS[2])
    await asyncio.gather(*waiting)
    assert reads.sizes == [2]


async def test_nothing_is_read_for_nobody(reads: Reads) -> None:
    """A blob that every target has is not read."""
    place = boarding(reads, 2)
    place.forget(LEGS[0])
    place.forget(LEGS[1])
    assert reads.sizes == []


async def test_the_late_share_the_read(reads: Reads) -> None:
    """A target that does not answer holds up the others for the grace time only; its reader is kept for it."""
    place = boarding(reads, 3, grace_s=0.01)
    first = await asyncio.gather(place.take(LEGS[0]), place.take(LEGS[1]))
    late = await place.take(LEGS[2])
    assert reads.sizes == [3]
    assert len({*map(id, first), id(late)}) == 3
    assert reads.closed == 0


async def test_the_late_who_need_nothing(reads: Reads) -> None:
    """A reader that was kept in vain is closed, for the flight waits for all its readers."""
    place = boarding(reads, 2, grace_s=0.01)
    await place.take(LEGS[0])
    place.forget(LEGS[1])
    assert (reads.sizes, reads.closed) == ([2], 1)


async def test_second_try(reads: Reads) -> None:
    """Who boards again after a failed try reads by itself."""
    place = boarding(reads, 1)
    await place.take(LEGS[0])
    await place.take(LEGS[0])
    assert reads.sizes == [1, 1]


async def test_second_try_takes_nobodys_reader(reads: Reads) -> None:
    """What is kept for one that is late stays its own."""
    place = boarding(reads, 2, grace_s=0.01)
    await place.take(LEGS[0])
    await place.take(LEGS[0])
    await place.take(LEGS[1])
    assert reads.sizes == [2, 1]


async def test_cancelled_while_waiting(reads: Reads) -> None:
    """A target that is given up while it waits leaves the others their read."""
    place = boarding(reads, 3)
    leaving, staying = (asyncio.create_task(place.take(leg)) for leg in LEGS[:2])
    await turn_over()
    leaving.cancel()
    await turn_over()
    place.forget(LEGS[2])
    await staying
    assert reads.sizes == [1]


async def test_cancelled_at_departure(reads: Reads) -> None:
    """A reader that its target cannot take any more is closed."""
    place = boarding(reads, 2)
    leaving = asyncio.create_task(place.take(LEGS[0]))
    await turn_over()
    staying = asyncio.create_task(place.take(LEGS[1]))
    asyncio.get_running_loop().call_soon(leaving.cancel)
    await asyncio.gather(leaving, staying, return_exceptions=True)
    assert (reads.sizes, reads.closed) == ([2], 1)


async def test_nobody_left_to_wait(reads: Reads) -> None:
    """When all who waited were given up before the others came, these read."""
    place = boarding(reads, 2)
    leaving = asyncio.create_task(place.take(LEGS[0]))
    await turn_over()
    leaving.cancel()
    await turn_over()
    await place.take(LEGS[1])
    assert reads.sizes == [1]
