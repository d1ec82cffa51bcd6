"""How fast a host is asked: as fast as it likes, learnt from its answers, the same for all who ask it.

Reads, writes and small requests have limits of their own: a small one that waits behind a gigabyte would hold up a
whole copy, and a copy within one host reads and writes at once, so that neither may wait for the other's slot. Each
limit grows by one for every window of successes and halves when the host says that it is too much (AIMD).
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
    at least 0 and below 1. Tests bring their own."""

    clock: Callable[[], float] = time.monotonic
    now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC)
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    chance: Callable[[], float] = random.random


TRIES_MAX = 3
BACKOFF_FIRST_S = 0.5
BACKOFF_FACTOR = 3.0

BULK_START, BULK_MAX = 8, 32
SMALL_START, SMALL_MAX = 8, 32
# A host that wants to be left alone for longer is the retry's concern, not that of a request which waits.
PAUSE_MAX_S = 60.0
OVERLOADED = frozenset({429, 503})


def wait_s(tries: int, wish_s: float | None, timing: Timing) -> float | None:
    """Seconds to wait after so many tries of a request; None for no further one. `wish_s` is what the peer asked for;
    a wish that is too long ends the tries."""
    if tries >= TRIES_MAX or (wish_s is not None and wish_s > PAUSE_MAX_S):
        return None
    # At least half, so that a retry is never at once; at most one and a half, so that many do not come together.
    backoff_s: float = BACKOFF_FIRST_S * BACKOFF_FACTOR ** (tries - 1) * (0.5 + timing.chance())
    return max(wish_s or 0.0, backoff_s)


class AimdLimiter:
    """At most `limit` requests at once, first come, first served."""

    def __init__(self, start: int, most: int) -> None:
        self.limit = start
        self.active = 0
        self._most = most
        self._successes = 0
        self._round = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def enter(self) -> int:
        """Wait for a slot; returns the round it was taken in."""
        if self.active < self.limit and not self._waiting:
            self.active += 1
            return self._round
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()  # the slot came together with the cancellation
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
            self.limit = max(self.limit // 2, 1)

    def _admit(self) -> None:
        while self._waiting and self.active < self.limit:
            turn = self._waiting.popleft()
            if not turn.done():
                self.active += 1
                turn.set_result(None)


class HostLimiter:
    """The limits of one host, and its pauses."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._paused_until = 0.0
        self.reads = AimdLimiter(BULK_START, BULK_MAX)
        self.writes = AimdLimiter(BULK_START, BULK_MAX)
        self.small = AimdLimiter(SMALL_START, SMALL_MAX)

    @asynccontextmanager
    async def slot(self, limiter: AimdLimiter) -> AsyncIterator[Callable[[int, float | None], None]]:
        """A slot until the end of the block, which begins when the host is not paused. What the host answers is
        reported to what this gives: the status, and its Retry-After in seconds, which pauses the host up to
        `PAUSE_MAX_S`."""
        entered_in = await limiter.enter()

        def report(status: int, wish_s: float | None) -> None:
            if status in OVERLOADED:
                limiter.overloaded(entered_in)
                if wish_s is not None and wish_s <= PAUSE_MAX_S:
                    self._paused_until = max(self._paused_until, self._timing.clock() + wish_s)
            elif status < 500:
                limiter.succeeded()

        try:
            while (rest_s := self._paused_until - self._timing.clock()) > 0:
                await self._timing.sleep(rest_s)
            yield report
        finally:
            limiter.leave()
