"""Promises of reading Retry-After."""

import datetime as dt

import pytest

from imagejobd.model.errors import RETRY_AFTER_MAX_S, parse_retry_after

NOW = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("value", "expected_s"),
    [
        (None, None),
        ("7", 7.0),
        (" 0 ", 0.0),
        ("Fri, 02 Jan 2026 03:05:05 GMT", 60.0),
        ("Fri, 02 Jan 2026 03:05:05 +0200", 0.0),
        ("Fri, 02 Jan 2026 03:03:05 GMT", 0.0),
        ("999999999999999999999", RETRY_AFTER_MAX_S),
        ("Fri, 02 Jan 2099 03:03:05 GMT", RETRY_AFTER_MAX_S),
        ("soon", None),
        ("-1", None),
        ("٧", None),
        ("", None),
    ],
)
def test_retry_after(value: str | None, expected_s: float | None) -> None:
    """Seconds or a date, never negative, never for ever."""
    assert parse_retry_after(value, NOW) == expected_s
