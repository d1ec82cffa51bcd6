"""When a job is tried again."""

import pytest

from imagejobd.model.errors import ErrorCode, Temporary
from imagejobd.runner.retry import RETRY_AFTER_MAX_S, delay_s
from imagejobd.runner.settings import Limits

DOWN = Temporary(ErrorCode.REGISTRY_UNAVAILABLE, "down")
LIMITS = Limits(max_attempts=10_000, retry_first_s=5.0, retry_max_s=300.0)


@pytest.mark.parametrize(("attempt", "expected_s"), [(1, 5), (2, 10), (6, 160), (7, 300), (1025, 300), (9_999, 300)])
def test_waits_double_up_to_the_ceiling(attempt: int, expected_s: float) -> None:
    """Each wait is twice the one before, and stays at the ceiling however often it was tried."""
    assert delay_s(DOWN, attempt, LIMITS, jitter=1.0) == expected_s
    assert delay_s(DOWN, attempt, LIMITS, jitter=0.0) == expected_s / 2


def test_the_last_attempt_is_the_last() -> None:
    """After `max_attempts` there is no next one."""
    assert delay_s(DOWN, 10_000, LIMITS) is None


@pytest.mark.parametrize(("asked_s", "expected_s"), [(1.0, 5.0), (60.0, 60.0), (1e9, RETRY_AFTER_MAX_S)])
def test_the_peers_wish_counts(asked_s: float, expected_s: float) -> None:
    """Never sooner than the peer's Retry-After, within reason."""
    fault = Temporary(ErrorCode.REGISTRY_UNAVAILABLE, "busy", retry_after_s=asked_s)
    assert delay_s(fault, 1, LIMITS, jitter=1.0) == expected_s
