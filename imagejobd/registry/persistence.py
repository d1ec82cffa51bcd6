"""How often a small request is tried, and how long is waited in between."""

from imagejobd.registry.http.timing import Timing
from imagejobd.registry.pace import PAUSE_MAX_S

TRIES_MAX = 4
TOTAL_MAX_S = 120.0
BACKOFF_FIRST_S = 0.25
BACKOFF_MAX_S = 5.0


class Persistence:
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
