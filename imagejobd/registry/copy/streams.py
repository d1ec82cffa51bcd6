"""How many large blobs are read from one source at once, and how much of each may wait in memory: as the path needs.

More in flight is not faster by itself. Each blob that is read is an upload to every target, and what these have queued
leaves the caches of a machine that carries registries too: four blobs at once to four local registries took half as
long again as one at a time. So a source begins with one large blob (two where a copy has one target), and with a small
window of memory for each. While blobs wait for a place, one more is let in, and the goodput of all is measured again:
if it rose by `GAIN`, the place stays and the next one is tried; if not, the newest read pauses until an older one has
ended, and the next trial waits twice as long. Where no blob waits, but quick readers of one do for slow ones, its
window is tried in the same way. So long round trips, or a limit for each connection, get their streams within seconds,
and fast paths are left alone. Small blobs never wait behind large ones: they fill the gaps.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager, suppress
from typing import Literal

SMALL_BLOB_MAX_BYTES = 1024 * 1024
SMALL_STREAMS_MAX = 8
WINDOW_START_BYTES = 256 * 1024
# A change has to settle before what it brought is measured.
SETTLE_S = 0.2
MEASURE_S = 0.4
GAIN = 0.1
# Measures between two trials: doubled after each that brought nothing.
TRIAL_EVERY_MAX = 64
# A read that pauses goes on with a piece now and then, so that its peers do not give it up.
PAUSE_MAX_S = 10.0


class Source:
    """The places to read in from one source: at most `streams_max` large blobs at once, `window_max_bytes` of each in
    memory, and `SMALL_STREAMS_MAX` small ones. `clock` is in seconds."""

    def __init__(self, streams_max: int, window_max_bytes: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = 1
        self.window_bytes = min(WINDOW_START_BYTES, window_max_bytes)
        self._streams_max = streams_max
        self._window_max_bytes = window_max_bytes
        self._clock = clock
        self._small = asyncio.Semaphore(SMALL_STREAMS_MAX)
        self._active: list[Stream] = []
        # By owner: a job of a thousand blobs does not keep another one waiting for all of them.
        self._waiting: dict[Hashable, deque[Stream]] = {}
        self._bytes = 0
        self._measured_at: float | None = None
        self._is_settling = True
        self._is_window_short = False
        # What was tried, and the goodput and the window before.
        self._trial: tuple[Literal["limit", "window"], float, int] | None = None
        self._measures_to_skip = 0
        self._trial_every = 1

    @asynccontextmanager
    async def stream(self, owner: Hashable, size_bytes: int, *, targets: int) -> AsyncIterator["Stream"]:
        """A place to read a blob of `size_bytes` for so many targets, held until the end of the block."""
        stream = Stream(self, owner)
        if size_bytes <= SMALL_BLOB_MAX_BYTES:
            async with self._small:
                yield stream
            return
        if targets == 1:
            self.limit = max(self.limit, min(2, self._streams_max))
        self._waiting.setdefault(owner, deque()).append(stream)
        try:
            self._admit()
            while stream not in self._active:
                await self.wait(stream)
            yield stream
        finally:
            self._remove(stream)

    def is_wanted(self, stream: "Stream", *, by_own_job: bool) -> bool:
        """Whether another owner waits for a place like that of `stream`, or any."""
        if stream not in self._active:
            return by_own_job and self._small.locked()
        return any(by_own_job or owner != stream.owner for owner in self._waiting)

    def is_over(self, stream: "Stream") -> bool:
        """Whether `stream` has to pause: older ones fill the limit."""
        return len(self._active) > self.limit and stream in self._active[self.limit :]

    async def wait(self, stream: "Stream") -> None:
        """Until something changes for `stream`, or for the time of a measure: silence is one, too."""
        stream.changed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(MEASURE_S):
                await stream.changed.wait()
        self.review()

    def count(self, size_bytes: int) -> None:
        """So many bytes have come."""
        self._bytes += size_bytes
        self.review()

    def window_is_short(self) -> None:
        """A quick reader waits for a slow one, because no more fits into memory."""
        self._is_window_short = True

    def review(self) -> None:
        """Measure, and change what the measure speaks for. May be called at any time."""
        now = self._clock()
        if self._measured_at is None:
            self._measured_at, self._bytes = now, 0
        seconds = now - self._measured_at
        if seconds < (SETTLE_S if self._is_settling else MEASURE_S):
            return
        goodput, is_settling = self._bytes / seconds, self._is_settling
        self._measured_at, self._bytes, self._is_settling = now, 0, False
        if not is_settling:
            self._judge(goodput)

    def _judge(self, goodput: float) -> None:
        if self._trial is not None:
            knob, before, window_bytes = self._trial
            self._trial = None
            if goodput < before * (1 + GAIN):
                if knob == "window":
                    self._set_window(window_bytes)
                else:
                    self._set_limit(self.limit - 1)
                self._measures_to_skip = self._trial_every
                self._trial_every = min(2 * self._trial_every, TRIAL_EVERY_MAX)
                return
            self._trial_every = 1
        elif self._measures_to_skip:
            self._measures_to_skip -= 1
            return
        is_wanted = self._waiting or len(self._active) > self.limit
        is_window_short, self._is_window_short = self._is_window_short, False
        if is_wanted and len(self._active) >= self.limit and self.limit < self._streams_max:
            self._trial = ("limit", goodput, self.window_bytes)
            self._set_limit(self.limit + 1)
        elif is_window_short and self.window_bytes < self._window_max_bytes:
            self._trial = ("window", goodput, self.window_bytes)
            self._set_window(min(2 * self.window_bytes, self._window_max_bytes))

    def _set_limit(self, limit: int) -> None:
        self.limit, self._is_settling = limit, True
        self._admit()

    def _set_window(self, window_bytes: int) -> None:
        self.window_bytes, self._is_settling = window_bytes, True

    def _admit(self) -> None:
        while self._waiting and len(self._active) < self.limit:
            owner, queue = next(iter(self._waiting.items()))
            del self._waiting[owner]
            self._active.append(queue.popleft())
            if queue:
                self._waiting[owner] = queue  # behind the other owners
        for stream in self._active[: self.limit]:
            stream.changed.set()

    def _remove(self, stream: "Stream") -> None:
        if stream in self._active:
            self._active.remove(stream)
        elif stream in self._waiting.get(stream.owner, ()):
            self._waiting[stream.owner].remove(stream)
            if not self._waiting[stream.owner]:
                del self._waiting[stream.owner]
        self._admit()


class Stream:
    """One read's place."""

    def __init__(self, source: Source, owner: Hashable) -> None:
        self.source = source
        self.owner = owner
        self.changed = asyncio.Event()

    def is_wanted(self, *, by_own_job: bool) -> bool:
        """Whether another job, or this one for another blob, waits for a place."""
        return self.source.is_wanted(self, by_own_job=by_own_job)

    async def count(self, size_bytes: int) -> None:
        """So many bytes have come; returns when the next are wanted."""
        self.source.count(size_bytes)
        if self.source.is_over(self):
            with suppress(TimeoutError):
                async with asyncio.timeout(PAUSE_MAX_S):
                    while self.source.is_over(self):
                        await self.source.wait(self)
