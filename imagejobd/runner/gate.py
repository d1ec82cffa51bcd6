"""Whether the Docker Engine answers. While it does not, jobs that need it stay in the queue.

An engine that is restarted, upgraded or broken says nothing about any job, so no job loses an attempt or time by it.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

import structlog

from imagejobd.model.clock import now_ms as wall_clock_ms
from imagejobd.model.clock import utc
from imagejobd.model.errors import ENGINE, Fault

PROBE_EVERY_S = 3.0
# Times without the engine that are remembered one by one.
OUTAGES_MAX = 100

log = structlog.get_logger("imagejobd.engine")


class EngineGate:
    """Open while `probe` answers, closed until it first has. `probe` raises a `Fault` when it does not, within a bound
    of its own. `on_open` is called each time that the gate opens."""

    def __init__(self, probe: Callable[[], Awaitable[object]], *, now_ms: Callable[[], int] = wall_clock_ms) -> None:
        self._probe = probe
        self._now_ms = now_ms
        self._reason = ""
        self._closed_ms: int | None = None
        self._closed_at = 0.0
        self._downtime_s = 0.0
        self._outages: list[tuple[int, int]] = []
        self._doubts = asyncio.Event()
        self._probes = 0
        self.on_open: Callable[[], None] = lambda: None

    @property
    def is_open(self) -> bool:
        return self._closed_ms is None and self._probes > 0

    @property
    def waiting(self) -> str | None:
        """What jobs that need the engine wait for, and since when; None while it answers."""
        if self._closed_ms is None:
            return None
        return f"waiting for {ENGINE} since {utc(self._closed_ms)}: {self._reason}"

    def downtime_s(self) -> float:
        """Seconds in which the engine did not answer, so far."""
        return self._downtime_s + (0.0 if self._closed_ms is None else time.monotonic() - self._closed_at)

    @property
    def outages(self) -> list[tuple[int, int]]:
        """From when to when (epoch milliseconds) the engine did not answer."""
        return [*self._outages, *([] if self._closed_ms is None else [(self._closed_ms, self._now_ms())])]

    def downtime_ms(self, since_ms: int) -> int:
        """Milliseconds after `since_ms` (epoch) in which the engine did not answer."""
        return sum(max(0, end_ms - max(start_ms, since_ms)) for start_ms, end_ms in self.outages)

    async def check(self) -> bool:
        """Ask now; whether the engine answers."""
        was_open = self.is_open
        try:
            await self._probe()
        except Fault as fault:
            self._close(fault.message)
        except Exception as defect:  # a broken probe must not end its caller
            log.exception("probing the Docker Engine failed by a defect of imagejobd")
            self._close(f"{type(defect).__name__}; the daemon's log has the details")
        else:
            self._open()
        self._probes += 1
        if self.is_open and not was_open:
            self.on_open()
        return self.is_open

    def doubt(self) -> None:
        """Somebody found that the engine went away: ask now."""
        self._doubts.set()

    async def run(self) -> None:
        """Ask every few seconds, and when there is doubt, until cancelled."""
        while True:
            self._doubts.clear()
            await self.check()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PROBE_EVERY_S):
                    await self._doubts.wait()

    def _close(self, reason: str) -> None:
        self._reason = reason
        if self._closed_ms is None:
            self._closed_ms = self._now_ms()
            self._closed_at = time.monotonic()
            log.warning("the Docker Engine does not answer; jobs that need it wait", error=reason)

    def _open(self) -> None:
        if self._closed_ms is None:
            return
        seconds = time.monotonic() - self._closed_at
        self._downtime_s += seconds
        self._outages = [*self._outages, (self._closed_ms, self._now_ms())][-OUTAGES_MAX:]
        self._closed_ms = None
        log.info("the Docker Engine answers; jobs that need it go on", seconds_away=round(seconds, 1))
