"""Slots by host and in all: who reads next, and what is left when nobody does."""

import asyncio
from collections.abc import Callable
from functools import partial

from flight_rig import Clock, settle
from imagejobd.registry.copy.slots import STREAMS_TOTAL_FACTOR, Slots

Ends = dict[str, asyncio.Event]


def slots_of(host_max: int, admitted: Callable[[], None] = lambda: None) -> Slots:
    return Slots(host_max, source_grace_s=10, clock=Clock(), admitted=admitted)


async def read(slots: Slots, name: str, inside: list[str], ends: Ends) -> None:
    """Hold a slot of the host that `name` begins with, until told otherwise."""
    async with slots.slot(name[0]):
        inside.append(name)
        await ends.setdefault(name, asyncio.Event()).wait()
        inside.remove(name)


async def start(slots: Slots, names: str) -> tuple[list[str], Ends, dict[str, asyncio.Task[None]]]:
    inside: list[str] = []
    ends: Ends = {}
    tasks = {name: asyncio.create_task(read(slots, name, inside, ends)) for name in names.split()}
    await settle()
    return inside, ends, tasks


async def test_each_host_has_its_own() -> None:
    """Slow blobs of one host do not hold up another's."""
    inside, ends, tasks = await start(slots_of(2), "a1 a2 a3 b1 b2 b3")
    assert inside == ["a1", "a2", "b1", "b2"]
    ends["a1"].set()
    await settle()
    assert inside == ["a2", "b1", "b2", "a3"]
    await give_up(tasks)


async def test_no_more_in_all() -> None:
    """Many hosts together have a bound too, and first come is first served beyond it."""
    assert STREAMS_TOTAL_FACTOR == 3
    inside, ends, tasks = await start(slots_of(1), "a1 b1 c1 d1 e1 d2")
    assert inside == ["a1", "b1", "c1"]
    for name, expected in (("b1", "d1"), ("a1", "e1"), ("d1", "d2")):
        ends[name].set()
        await settle()
        assert inside[-1] == expected
    await give_up(tasks)


async def test_a_host_with_many_blobs_does_not_fill_the_queue() -> None:
    """Whoever comes after a hundred blobs of one host waits for its first few only."""
    inside, ends, tasks = await start(slots_of(1), "a1 b1 c1 d1 d2 d3 e1")
    for name in ("a1", "b1"):
        ends[name].set()
    await settle()
    assert inside == ["c1", "d1", "e1"]
    await give_up(tasks)


async def give_up(tasks: dict[str, asyncio.Task[None]]) -> None:
    for task in tasks.values():
        task.cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)


async def test_a_place_that_comes_with_the_cancellation_is_passed_on() -> None:
    """No slot is lost to a flight that ends in the moment it is let in."""
    slots = slots_of(1)
    inside, ends, tasks = await start(slots, "a1 a2 a3")
    ends["a1"].set()
    while "a1" in inside:
        await asyncio.sleep(0)
    tasks["a2"].cancel()
    await settle()
    assert inside == ["a3"]
    await give_up(tasks)


async def test_hosts_are_forgotten() -> None:
    """Nothing is kept about hosts that nobody reads from, however their readers ended; others stay known."""
    slots = slots_of(1)
    _, ends, tasks = await start(slots, "a1 a2 b1 c1 d1 e1")
    tasks["e1"].cancel()
    ends["b1"].set()
    await settle()
    assert sorted(slots._hosts) == ["a", "c", "d"]
    await give_up(tasks)
    assert not slots._hosts


async def test_a_host_is_known_while_a_place_changes_hands() -> None:
    """Who comes between a leave and the next one's turn finds the same bound."""
    slots = slots_of(1)
    first, second, third = (slots.slot("a") for _ in range(3))
    await first.__aenter__()
    entering = asyncio.create_task(second.__aenter__())
    await settle()
    await first.__aexit__(None, None, None)
    late = asyncio.create_task(third.__aenter__())
    await settle()
    assert (entering.done(), late.done()) == (True, False)
    await second.__aexit__(None, None, None)
    await late
    await third.__aexit__(None, None, None)
    assert not slots._hosts


async def test_holders_learn_who_waits() -> None:
    """A slot is wanted while somebody waits for one of its host, or for one at all."""
    slots = slots_of(1)
    told: list[tuple[str, bool]] = []
    held = {host: slots.slot(host) for host in "abc"}
    for host, slot in held.items():
        slot.reviewed = partial(lambda host, slot: told.append((host, slot.is_wanted)), host, slot)
        await slot.__aenter__()
    assert not any(slot.is_wanted for slot in held.values())
    inside, _, tasks = await start(slots, "a1")
    assert [host for host, slot in held.items() if slot.is_wanted] == ["a"]
    assert told == [("a", True)]
    more = await start(slots, "d1")
    assert all(slot.is_wanted for slot in held.values())
    await give_up(tasks | more[2])
    assert not any(slot.is_wanted for slot in held.values())
    assert {host for host, wanted in told if not wanted} == set("abc")
    assert inside == []
    for slot in held.values():
        await slot.__aexit__(None, None, None)
