"""Time as this adapter sees it: two clocks, one way to wait, and the dice of a backoff. Tests bring their own."""

import asyncio
import datetime as dt
import random
import time
from collections.abc import Awaitable, Callable

import msgspec


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """`clock` counts seconds and never jumps; `now` is the wall's time (UTC), for dates that peers write; `chance` is
    at least 0 and below 1."""

    clock: Callable[[], float] = time.monotonic
    now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC)
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    chance: Callable[[], float] = random.random
