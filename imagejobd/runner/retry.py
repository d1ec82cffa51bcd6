"""When to try a job again: the error's type decides whether, this decides when, and when it is enough."""

import random

from imagejobd.model.errors import Temporary
from imagejobd.model.retry_after import RETRY_AFTER_MAX_S
from imagejobd.runner.settings import Limits

# Far past any ceiling, and far from where a float ends.
DOUBLINGS_MAX = 30


def delay_s(
    fault: Temporary, faults: int, spent_s: float, limits: Limits, *, jitter: float | None = None
) -> float | None:
    """Seconds to wait after the `faults`-th temporary fault in a row, or None when there is to be no further attempt
    because the first of them is `limits.retry_for_s` ago or longer.

    Exponential with jitter over the upper half, so that jobs that failed together do not come back together; never
    sooner than the peer's Retry-After. The last attempt comes when the time is over, not before.
    """
    left_s = limits.retry_for_s - spent_s
    if left_s <= 0:
        return None
    ceiling_s = min(limits.retry_max_s, limits.retry_first_s * 2.0 ** min(faults - 1, DOUBLINGS_MAX))
    share = random.random() if jitter is None else jitter  # noqa: S311 - spreads load, guards nothing
    backoff_s = ceiling_s * (0.5 + 0.5 * share)
    return min(max(backoff_s, min(fault.retry_after_s or 0.0, RETRY_AFTER_MAX_S)), left_s)
