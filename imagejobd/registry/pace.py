"""How fast a host is asked: as fast as it likes, learnt from its answers, the same for all who ask it.

Lanes of their own for reads, writes and small requests: a small one that waits behind a gigabyte would hold up a whole
copy, and a copy within one host reads and writes at once, so that neither may wait for the other's place. In each lane
the number of requests at once grows by one for every window of successes and halves when the host says that it is too
much (AIMD).
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from imagejobd.registry.http.timing import Timing

BULK_START, BULK_MIN, BULK_MAX = 8, 1, 32
SMALL_START, SMALL_MIN, SMALL_MAX = 8, 1, 32
# A host that wants to be left alone for longer is the retry's concern, not that of a request which waits.
PAUSE_MAX_S = 60.0
OVERLOADED = frozenset({429, 503})


class Lane:
    """At most `limit` requests at once, first come, first served."""

    def __init__(self, start: int, least: int, most: int) -> None:
        self.limit = start
        self.active = 0
        self._least = least
        self._most = most
        self._successes = 0
        self._round = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def enter(self) -> int:
        """Wait for a place; returns the round it was taken in."""
        if self.active < self.limit and not self._waiting:
            self.active += 1
            return self._round
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            self._give_up(turn)
            raise
        return self._round

    def leave(self) -> None:
        self.active -= 1
        self._admit()

    def succeeded(self) -> None:
        self._successes += 1
        if self._successes >= self.limit:
            self._successes = 0
            self.limit = min(self.limit + 1, self._most)
            self._admit()

    def overloaded(self, entered_in: int) -> None:
        """Halve, once for all that were under way together."""
        if entered_in == self._round:
            self._round += 1
            self._successes = 0
            self.limit = max(self.limit // 2, self._least)

    def _admit(self) -> None:
        while self._waiting and self.active < self.limit:
            turn = self._waiting.popleft()
            if not turn.done():
                self.active += 1
                turn.set_result(None)

    def _give_up(self, turn: asyncio.Future[None]) -> None:
        if turn in self._waiting:
            self._waiting.remove(turn)
        elif not turn.cancelled():
            self.leave()  # the place came together with the cancellation


class Permit:
    """A place in a lane, for one request."""

    def __init__(self, pace: "HostPace", lane: Lane, entered_in: int) -> None:
        self._pace = pace
        self._lane = lane
        self._entered_in = entered_in

    def heard(self, status: int, wish_s: float | None) -> None:
        """What the host answered. `wish_s` is its Retry-After; one beyond `PAUSE_MAX_S` pauses nothing."""
        if status not in OVERLOADED:
            if status < 500:
                self._lane.succeeded()
            return
        self._lane.overloaded(self._entered_in)
        if wish_s is not None and wish_s <= PAUSE_MAX_S:
            self._pace.pause(wish_s)


class HostPace:
    """The pace of one host."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._paused_until = 0.0
        self.reads = Lane(BULK_START, BULK_MIN, BULK_MAX)
        self.writes = Lane(BULK_START, BULK_MIN, BULK_MAX)
        self.small = Lane(SMALL_START, SMALL_MIN, SMALL_MAX)

    @property
    def is_idle(self) -> bool:
        active = self.reads.active + self.writes.active + self.small.active
        return not active and self._timing.clock() >= self._paused_until

    def pause(self, wish_s: float) -> None:
        """Let no request begin for `wish_s` from now."""
        self._paused_until = max(self._paused_until, self._timing.clock() + wish_s)

    @asynccontextmanager
    async def permit(self, lane: Lane) -> AsyncIterator[Permit]:
        """A place in `lane`, held until the end of the block, which begins when the host is not paused."""
        entered_in = await lane.enter()
        try:
            while (rest_s := self._paused_until - self._timing.clock()) > 0:
                await self._timing.sleep(rest_s)
            yield Permit(self, lane, entered_in)
        finally:
            lane.leave()
