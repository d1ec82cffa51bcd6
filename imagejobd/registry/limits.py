"""Time as this adapter sees it: two clocks, one way to wait, and the dice of a backoff. Tests bring their own.

How often a small request is tried, and how long is waited in between.

How fast a host is asked: as fast as it likes, learnt from its answers, the same for all who ask it.

Lanes of their own for reads, writes and small requests: a small one that waits behind a gigabyte would hold up a whole
copy, and a copy within one host reads and writes at once, so that neither may wait for the other's place. In each lane
the number of requests at once grows by one for every window of successes and halves when the host says that it is too
much (AIMD).
"""

import asyncio
import datetime as dt
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """`clock` counts seconds and never jumps; `now` is the wall's time (UTC), for dates that peers write; `chance` is
    at least 0 and below 1."""

    clock: Callable[[], float] = time.monotonic
    now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC)
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    chance: Callable[[], float] = random.random


TRIES_MAX = 4
TOTAL_MAX_S = 120.0
BACKOFF_FIRST_S = 0.25
BACKOFF_MAX_S = 5.0


class RetryBudget:
    """The tries of one request."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._began_at: float | None = None
        self._failures = 0

    def begin(self) -> None:
        """A try begins. Time that was spent in the queue before the first one is not the registry's."""
        if self._began_at is None:
            self._began_at = self._timing.clock()

    def wait_s(self, wish_s: float | None) -> float | None:
        """Seconds to wait before the next try after a failure; None for no further try.

        `wish_s` is what the peer asked for; a wish that is too long ends the tries.
        """
        self._failures += 1
        if self._failures >= TRIES_MAX or (wish_s is not None and wish_s > PAUSE_MAX_S):
            return None
        backoff_s = min(BACKOFF_FIRST_S * 2 ** (self._failures - 1), BACKOFF_MAX_S)
        # At least half, so that a retry is never at once; at most one and a half, so that many do not come together.
        wait_s = max(wish_s or 0.0, backoff_s * (0.5 + self._timing.chance()))
        spent_s = 0.0 if self._began_at is None else self._timing.clock() - self._began_at
        return wait_s if spent_s + wait_s <= TOTAL_MAX_S else None


BULK_START, BULK_MIN, BULK_MAX = 8, 1, 32
SMALL_START, SMALL_MIN, SMALL_MAX = 8, 1, 32
# A host that wants to be left alone for longer is the retry's concern, not that of a request which waits.
PAUSE_MAX_S = 60.0
OVERLOADED = frozenset({429, 503})


class AimdLimiter:
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

    def __init__(self, pace: "HostLimiter", lane: AimdLimiter, entered_in: int) -> None:
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


class HostLimiter:
    """The pace of one host."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._paused_until = 0.0
        self.reads = AimdLimiter(BULK_START, BULK_MIN, BULK_MAX)
        self.writes = AimdLimiter(BULK_START, BULK_MIN, BULK_MAX)
        self.small = AimdLimiter(SMALL_START, SMALL_MIN, SMALL_MAX)

    @property
    def is_idle(self) -> bool:
        active = self.reads.active + self.writes.active + self.small.active
        return not active and self._timing.clock() >= self._paused_until

    def pause(self, wish_s: float) -> None:
        """Let no request begin for `wish_s` from now."""
        self._paused_until = max(self._paused_until, self._timing.clock() + wish_s)

    @asynccontextmanager
    async def permit(self, lane: AimdLimiter) -> AsyncIterator[Permit]:
        """A place in `lane`, held until the end of the block, which begins when the host is not paused."""
        entered_in = await lane.enter()
        try:
            while (rest_s := self._paused_until - self._timing.clock()) > 0:
                await self._timing.sleep(rest_s)
            yield Permit(self, lane, entered_in)
        finally:
            lane.leave()
