"""The notes of daemons that work on an engine, each with an installation of its own."""

from collections.abc import AsyncIterator

import pytest

from harness.engine import PrivateEngine
from imagejobd.engine.client import Engine
from imagejobd.engine.leases import ALIVE_FOR_S, Presence
from imagejobd.engine.settings import EngineSettings

ONE, TWO = "1" * 12, "2" * 12


class Clock:
    """A wall clock that only the test moves."""

    now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def presences(engine: PrivateEngine, clock: Clock) -> AsyncIterator[tuple[Presence, Presence]]:
    settings = EngineSettings(host=engine.host)
    async with Engine(settings, ONE) as one, Engine(settings, TWO) as two:
        both = Presence(one, clock), Presence(two, clock)
        yield both
        for presence in both:
            await presence.withdraw()
    assert notes(engine) == []


def notes(engine: PrivateEngine) -> list[str]:
    names = engine.docker("volume", "ls", "--quiet").split()
    return sorted(name for name in names if name.startswith((f"imagejobd-{ONE}-", f"imagejobd-{TWO}-")))


async def test_each_sees_the_other_while_it_works(presences: tuple[Presence, Presence], clock: Clock) -> None:
    """A note counts from the first look until it was not renewed for long; a clock set back makes it no younger."""
    one, two = presences
    await one.renew()
    await two.renew()
    assert (one.others, two.others) == ([], [ONE])
    await one.renew()
    assert one.others == [TWO]
    for away_s in (ALIVE_FOR_S + 1, -ALIVE_FOR_S - 1):
        clock.now_s = Clock.now_s + away_s
        await one.renew()
        assert one.others == []


async def test_each_removes_its_own_notes_only(
    presences: tuple[Presence, Presence], clock: Clock, engine: PrivateEngine
) -> None:
    """One note of each is there, the newest; an old one of another stays until its own daemon removes it."""
    one, two = presences
    await two.renew()
    clock.now_s += ALIVE_FOR_S + 1
    await one.renew()
    clock.now_s += 1
    await one.renew()
    own = f"imagejobd-{ONE}-alive-{int(clock.now_s)}"
    assert notes(engine) == [own, f"imagejobd-{TWO}-alive-{int(Clock.now_s)}"]
    await two.withdraw()
    assert notes(engine) == [own]


async def test_a_volume_that_is_only_called_so_is_no_note(
    presences: tuple[Presence, Presence], clock: Clock, engine: PrivateEngine
) -> None:
    """Name and label must agree."""
    one, _ = presences
    name = f"imagejobd-{TWO}-alive-{int(clock.now_s)}"
    engine.docker("volume", "create", "--label", f"imagejobd.installation={'3' * 12}", name)
    await one.renew()
    assert one.others == []
    engine.docker("volume", "rm", name)
