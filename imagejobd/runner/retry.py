"""When to try a job again: the error's type decides whether, this decides when."""

import random

from imagejobd.model.errors import Temporary
from imagejobd.model.retry_after import RETRY_AFTER_MAX_S
from imagejobd.runner.settings import Limits

# Far past any ceiling, and far from where a float ends.
DOUBLINGS_MAX = 30


def delay_s(fault: Temporary, attempt: int, limits: Limits, *, jitter: float | None = None) -> float | None:
    """Seconds to wait before attempt `attempt` + 1, or None when there is to be none.

    Exponential with jitter over the upper half, so that jobs that failed together do not come back together; never
    sooner than the peer's Retry-After.
    """
    if attempt >= limits.max_attempts:
        return None
    ceiling_s = min(limits.retry_max_s, limits.retry_first_s * 2.0 ** min(attempt - 1, DOUBLINGS_MAX))
    share = random.random() if jitter is None else jitter  # noqa: S311 - spreads load, guards nothing
    backoff_s = ceiling_s * (0.5 + 0.5 * share)
    return max(backoff_s, min(fault.retry_after_s or 0.0, RETRY_AFTER_MAX_S))
