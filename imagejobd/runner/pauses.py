"""Which kinds are paused, as far as the runner has to know it.

That none of their jobs is started is the store's own doing, with each claim. Here is why a job waits, and for how long
a kind was paused: that is no time in which its jobs have waited in the queue.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping

import structlog

from imagejobd.model.clock import utc
from imagejobd.model.errors import Temporary
from imagejobd.store.protocol import PAUSE_TOPIC, Pause, Store

REFRESH_S = 60.0
RETRY_S = 1.0
# Of each kind, the pauses that are over and are remembered.
PAUSES_MAX = 100

Interval = tuple[int, int]

log = structlog.get_logger("imagejobd.runner")


class Pauses:
    """What the store says of pauses, a moment later; `now_ms` is the wall clock. `on_resume` is called when a kind goes
    on."""

    def __init__(self, store: Store, now_ms: Callable[[], int], on_resume: Callable[[], None]) -> None:
        self._store = store
        self._now_ms = now_ms
        self._on_resume = on_resume
        self._paused: Mapping[str, Pause] = {}
        self._over: dict[str, deque[Interval]] = {}

    def get(self, kind: str) -> Pause | None:
        """The pause of a kind, if it is paused."""
        return self._paused.get(kind)

    def intervals(self, kind: str) -> list[Interval]:
        """From when to when (epoch milliseconds) the kind was paused, as far as this process has seen."""
        pause = self._paused.get(kind)
        return [*self._over.get(kind, ()), *([(pause.since_ms, self._now_ms())] if pause else [])]

    async def run(self) -> None:
        """Follow the store until cancelled."""
        with self._store.watch(PAUSE_TOPIC) as changes:
            while True:
                try:
                    self._use(await self._store.pauses())
                except Temporary as fault:
                    log.error("cannot read which kinds of jobs are paused", error=fault.message)
                    await changes.changed(RETRY_S)
                else:
                    await changes.changed(REFRESH_S)

    def _use(self, paused: Mapping[str, Pause]) -> None:
        before, self._paused = self._paused, paused
        for kind, pause in paused.items():
            if before.get(kind) != pause:
                since = utc(pause.since_ms)
                log.warning("paused: no job is started", kind=kind, reason=pause.reason, by=pause.by, since=since)
        for kind, pause in before.items():
            if kind not in paused:
                self._over.setdefault(kind, deque(maxlen=PAUSES_MAX)).append((pause.since_ms, self._now_ms()))
                log.info("resumed: jobs are started again", kind=kind)
                self._on_resume()


def covered_ms(intervals: Iterable[Interval], since_ms: int) -> int:
    """Milliseconds after `since_ms` that lie in one of the intervals at least."""
    covered, end_ms = 0, since_ms
    for first_ms, last_ms in sorted(intervals):
        covered += max(0, last_ms - max(first_ms, end_ms))
        end_ms = max(end_ms, last_ms)
    return covered
