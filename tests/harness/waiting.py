"""Waiting for another process to get somewhere, with a bound."""

import time
from collections.abc import Callable

POLL_FIRST_S = 0.01
# What is slow to come is asked for less often: each question is work for a machine that has other tests to run.
POLL_MAX_S = 0.1
POLL_GROWTH = 1.2
# Time enough for whatever a test waits for, on a machine that is busy with other tests; only a failure takes that long.
END_TIMEOUT_S = 60.0


def until(reached: Callable[[], object], *, timeout_s: float = END_TIMEOUT_S, what: str | Callable[[], object]) -> None:
    """Poll `reached` until it is true. Raises `TimeoutError` that says `what` was waited for, as it is then."""
    deadline, interval_s = time.monotonic() + timeout_s, POLL_FIRST_S
    while not reached():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s:g} s in vain for {what() if callable(what) else what}")
        time.sleep(interval_s)
        interval_s = min(interval_s * POLL_GROWTH, POLL_MAX_S)
