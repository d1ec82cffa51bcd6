"""Several coroutines as one step, and locks by name."""

import asyncio

import pytest

from imagejobd.model.concurrency import KeyedLock, bounded, gather_or_cancel
from imagejobd.model.errors import Permanent, invalid


async def fail() -> None:
    raise invalid("this one")


async def test_the_first_failure_is_raised_by_itself() -> None:
    """However deep it lies, who calls catches the exception and no group; what else was under way is cancelled."""
    never = asyncio.Event()
    other = never.wait()
    with pytest.raises(Permanent, match="this one"):
        await gather_or_cancel([gather_or_cancel([fail()]), other])
    assert other.cr_running is False
    assert other.cr_frame is None


async def test_bounded_keeps_its_bound_and_order() -> None:
    """Never more than `at_once` are under way, and they begin in order."""
    begun: list[int] = []
    under_way = most = 0

    async def act(item: int) -> None:
        nonlocal under_way, most
        begun.append(item)
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1

    await bounded(range(20), act, at_once=3)
    assert begun == list(range(20))
    assert most == 3


async def test_bounded_of_nothing() -> None:
    """Nothing to do is done."""
    await bounded([], lambda _: fail(), at_once=5)


async def test_a_lock_by_name() -> None:
    """One holder at a time per name; other names do not wait; who has waited long enough goes ahead without it."""
    locks = KeyedLock()
    async with locks.take("a"):
        assert locks.is_taken("a")
        assert not locks.is_taken("b")
        async with locks.take("b"), asyncio.timeout(5):
            async with locks.take("a", grace_s=0.01):
                assert locks.is_taken("a")
            assert locks.is_taken("a"), "it is still the first one's"
    assert not locks.is_taken("a")


async def test_a_lock_is_released_after_a_failure() -> None:
    """Whatever ends the block, the next one gets the lock."""
    locks = KeyedLock()
    with pytest.raises(Permanent):
        async with locks.take("a"):
            await fail()
    assert not locks.is_taken("a")
