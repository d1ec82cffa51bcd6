"""When a cron expression is due, by the clocks of a time zone."""

from datetime import UTC, datetime

import pytest

from imagejobd.model.cron import Cron
from imagejobd.model.errors import ErrorCode, Permanent


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1000


def utc(at_ms: int | None) -> str:
    return "" if at_ms is None else f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%dT%H:%M:%S}"


def cron(expression: str, timezone: str = "UTC") -> Cron:
    return Cron.parse(expression, timezone, cron_name="cron", timezone_name="timezone")


def ticks(expression: str, timezone: str, after: str, before: str) -> list[str]:
    """All that are due in between."""
    due, found, at_ms = cron(expression, timezone), [], ms(after)
    while (tick := due.next_after(at_ms)) is not None and tick < ms(before):
        found.append(utc(tick))
        at_ms = tick
    return found


@pytest.mark.parametrize(
    ("expression", "last", "following"),
    [
        ("30 2 * * *", "2026-11-22T02:30:00", "2026-11-23T02:30:00"),
        ("*/15 * * * *", "2026-11-22T12:00:00", "2026-11-22T12:15:00"),
        ("0 4 * * MON", "2026-11-16T04:00:00", "2026-11-23T04:00:00"),
        ("10 * * * * *", "2026-11-22T11:59:10", "2026-11-22T12:00:10"),
        ("0 0 29 2 *", "2024-02-29T00:00:00", "2028-02-29T00:00:00"),
    ],
)
def test_before_and_after(expression: str, last: str, following: str) -> None:
    """The time that is now was due until now, and is not what comes next."""
    noon = ms("2026-11-22T12:00:00")
    due = cron(expression)
    assert (utc(due.last_until(noon)), utc(due.next_after(noon))) == (last, following)
    assert utc(due.last_until(ms(following))) == following
    assert utc(due.next_after(ms(following) - 1)) == following


def test_clocks_go_forward() -> None:
    """What falls into the gap comes once, right behind it; the half hours follow the elapsed time."""
    night = ("Europe/Berlin", "2026-03-28T12:00:00", "2026-03-30T12:00:00")
    assert ticks("30 2 * * *", *night) == ["2026-03-29T01:00:00", "2026-03-30T00:30:00"]
    gap = ("Europe/Berlin", "2026-03-29T00:15:00", "2026-03-29T02:15:00")
    assert [tick[11:16] for tick in ticks("*/30 * * * *", *gap)] == ["00:30", "01:00", "01:30", "02:00"]


def test_clocks_go_back() -> None:
    """What is due in the hour that comes twice comes the first time alone, from wherever it is looked for."""
    night = ("Europe/Berlin", "2026-10-24T12:00:00", "2026-10-26T12:00:00")
    assert ticks("30 2 * * *", *night) == ["2026-10-25T00:30:00", "2026-10-26T01:30:00"]
    due = cron("30 2 * * *", "Europe/Berlin")
    for minute in range(30, 120, 5):
        at_ms = ms("2026-10-25T00:00:00") + minute * 60_000
        assert utc(due.next_after(at_ms)) == "2026-10-26T01:30:00"
    twice = ("Europe/Berlin", "2026-10-24T23:45:00", "2026-10-25T02:15:00")
    assert [tick[11:16] for tick in ticks("*/30 * * * *", *twice)] == ["00:00", "00:30", "01:00", "01:30", "02:00"]


def test_clocks_with_seconds() -> None:
    """An expression of six fields says what clocks show: in the gap it is left out, and what comes twice runs twice."""
    spring = ("Europe/Berlin", "2026-03-28T12:00:00", "2026-03-30T12:00:00")
    assert ticks("0 30 2 * * *", *spring) == ["2026-03-30T00:30:00"]
    autumn = ("Europe/Berlin", "2026-10-24T12:00:00", "2026-10-25T12:00:00")
    assert ticks("0 30 2 * * *", *autumn) == ["2026-10-25T00:30:00", "2026-10-25T01:30:00"]


@pytest.mark.parametrize(
    ("expression", "timezone", "words"),
    [
        ("61 * * * *", "UTC", ["cron: '61 * * * *'", "minute", "day-of-week"]),
        ("@daily", "UTC", ["cron: '@daily'", "fields"]),
        ("", "UTC", ["cron: ''"]),
        ("9" * 5000 + " * * * *", "UTC", ["cron: '999"]),
        ("0 0 31 2 *", "UTC", ["cron: '0 0 31 2 *'"]),
        ("0 0 * * *", "Europe/Berlim", ["timezone: 'Europe/Berlim'", "Europe/Berlin"]),
        ("0 0 * * *", "", ["timezone: ''"]),
        ("0 0 * * *", "../../etc/passwd", ["timezone: '../../etc/passwd'"]),
        ("0 0 * * *", "Europe", ["timezone: 'Europe'"]),
        ("0 0 * * *", "x" * 5000, ["timezone: 'xxx"]),
    ],
)
def test_what_is_none_is_refused(expression: str, timezone: str, words: list[str]) -> None:
    """With the name of what is wrong and how it is written right."""
    with pytest.raises(Permanent) as refused:
        cron(expression, timezone)
    assert refused.value.code is ErrorCode.INVALID
    assert all(word in refused.value.message for word in words)
