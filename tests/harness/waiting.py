"""Waiting for another process to get somewhere, with a bound."""

import time
from collections.abc import Callable

POLL_INTERVAL_S = 0.02
# Time enough for whatever a test waits for, on a machine that is busy with other tests; only a failure takes that long.
END_TIMEOUT_S = 60.0


def until(reached: Callable[[], object], *, timeout_s: float = END_TIMEOUT_S, what: str) -> None:
    """Poll `reached` until it is true. Raises `TimeoutError` that says `what` was waited for."""
    deadline = time.monotonic() + timeout_s
    while not reached():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s:g} s in vain for {what}")
        time.sleep(POLL_INTERVAL_S)
