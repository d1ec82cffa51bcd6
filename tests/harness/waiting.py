"""Waiting for another process to get somewhere, with a bound."""

import time
from collections.abc import Callable

POLL_INTERVAL_S = 0.02


def until(reached: Callable[[], bool], *, timeout_s: float, what: str) -> None:
    """Poll `reached` until it is true. Raises `TimeoutError` that says `what` was waited for."""
    deadline = time.monotonic() + timeout_s
    while not reached():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s:g} s in vain for {what}")
        time.sleep(POLL_INTERVAL_S)
