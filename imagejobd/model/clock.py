"""Wall time in milliseconds, and how far that clock was set while this process ran.

What people read and what survives a restart is wall time; how long something took, or may wait, must not follow a clock
that somebody corrects.
"""

import time
from collections.abc import Callable

# Less than this is the rate of a clock that is being corrected little by little, and not a step.
STEP_MIN_MS = 1000


def now_ms() -> int:
    """Milliseconds since the epoch, UTC. Passed in wherever a test wants its own time."""
    return time.time_ns() // 1_000_000


def utc(at_ms: int) -> str:
    """An epoch millisecond as people read it: ISO 8601, UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at_ms / 1000))


def _steady_ms() -> int:
    return time.monotonic_ns() // 1_000_000


class Clock:
    """The wall clock, beside one that nobody sets. It has to be asked now and then to notice a step."""

    def __init__(self, wall_ms: Callable[[], int] = now_ms, steady_ms: Callable[[], int] = _steady_ms) -> None:
        self._wall_ms = wall_ms
        self._steady_ms = steady_ms
        self._offset_ms = wall_ms() - steady_ms()
        # When a step was noticed, and by how much the clock was set forward or (negative) back.
        self._steps: list[tuple[int, int]] = []

    @property
    def set_back_ms(self) -> int:
        """By how much the clock was set back so far, in all."""
        self.now_ms()
        return -sum(step_ms for _, step_ms in self._steps if step_ms < 0)

    def now_ms(self) -> int:
        """Milliseconds since the epoch."""
        now = self._wall_ms()
        offset_ms = now - self._steady_ms()
        step_ms = offset_ms - self._offset_ms
        self._offset_ms = offset_ms
        if abs(step_ms) >= STEP_MIN_MS:
            self._steps.append((now, step_ms))
        return now

    def elapsed_ms(self, since_ms: int) -> int:
        """How long ago `since_ms` was, whatever the clock was set to in between; never negative."""
        now = self.now_ms()
        return max(0, now - since_ms - sum(step_ms for at_ms, step_ms in self._steps if since_ms < at_ms))
