"""When a job is tried again."""

import pytest

from imagejobd.model.errors import ErrorCode, Temporary
from imagejobd.runner.attempt import RETRY_AFTER_MAX_S, delay_s
from imagejobd.runner.settings import Limits

DOWN = Temporary(ErrorCode.REGISTRY_UNAVAILABLE, "down")
LIMITS = Limits(retry_for_s=86_400.0, retry_first_s=5.0, retry_max_s=300.0)


@pytest.mark.parametrize(("faults", "expected_s"), [(1, 5), (2, 10), (6, 160), (7, 300), (1025, 300), (9_999, 300)])
def test_waits_double_up_to_the_ceiling(faults: int, expected_s: float) -> None:
    """Each wait is twice the one before, and stays at the ceiling however often it was tried."""
    assert delay_s(DOWN, faults, 0.0, LIMITS, jitter=1.0) == expected_s
    assert delay_s(DOWN, faults, 0.0, LIMITS, jitter=0.0) == expected_s / 2


def test_the_last_attempt_comes_when_the_time_is_over() -> None:
    """However many there were, the number does not matter: the last wait ends with the time, and then there is none."""
    assert delay_s(DOWN, 3, 86_399.0, LIMITS, jitter=1.0) == 1.0
    assert delay_s(DOWN, 10_000, 86_000.0, LIMITS, jitter=1.0) == 300.0
    assert delay_s(DOWN, 3, 86_400.0, LIMITS) is None


@pytest.mark.parametrize(("asked_s", "expected_s"), [(1.0, 5.0), (60.0, 60.0), (1e9, RETRY_AFTER_MAX_S)])
def test_the_peers_wish_counts(asked_s: float, expected_s: float) -> None:
    """Never sooner than the peer's Retry-After, within reason."""
    fault = Temporary(ErrorCode.REGISTRY_UNAVAILABLE, "busy", retry_after_s=asked_s)
    assert delay_s(fault, 1, 0.0, LIMITS, jitter=1.0) == expected_s
