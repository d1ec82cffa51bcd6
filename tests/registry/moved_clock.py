"""A clock that sleeping moves: waits cost no time and are seen."""

import asyncio
import datetime as dt

from imagejobd.registry.limits import Timing


class MovedClock:
    """Stands still but for who sleeps; `slept` keeps all waits in seconds. Dates begin at `START`.

    While it `is_held`, sleepers do not move it: they wait for `advance`.
    """

    START = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)

    def __init__(self) -> None:
        self.time_s = 1000.0
        self.slept: list[float] = []
        self.is_held = False

    @property
    def timing(self) -> Timing:
        return Timing(clock=lambda: self.time_s, now=self.now, sleep=self._sleep, chance=lambda: 0.5)

    def now(self) -> dt.datetime:
        return self.START + dt.timedelta(seconds=self.time_s - 1000.0)

    def advance(self, seconds: float) -> None:
        self.time_s += seconds

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        # Others that sleep until the same moment do not add up.
        end_s = self.time_s + seconds
        await asyncio.sleep(0)
        while self.is_held and self.time_s < end_s:
            await asyncio.sleep(0)
        self.time_s = max(self.time_s, end_s)
