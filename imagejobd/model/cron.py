"""When something is due again and again: a cron expression in a time zone.

Where a zone's clocks are set, it goes as with Debian's cron: what is due at fixed hours comes once, at the end of a gap
where its time falls into one, and what has a star for its hours or minutes follows the elapsed time. With a field
for seconds it says what the clocks show, be that never or twice.
"""

from datetime import UTC, datetime, timedelta
from typing import Self
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from imagejobd.model.errors import invalid
from imagejobd.model.text import quoted

FORMS = "minute hour day-of-month month day-of-week, with a field for seconds before them where there are six"


class Cron:
    """All times are epoch milliseconds, of whole seconds."""

    def __init__(self, expression: str, zone: ZoneInfo) -> None:
        self._expression = expression
        self._zone = zone

    @classmethod
    def parse(cls, expression: str, timezone: str, *, cron_name: str, timezone_name: str) -> Self:
        """Raises `Permanent(invalid)` that calls the two by these names."""
        try:
            zone = ZoneInfo(timezone)
        except (KeyError, ValueError, OSError):  # unknown; no name at all; a folder
            why = "it is no time zone of this machine; write it as Europe/Berlin or UTC"
            raise invalid(f"{timezone_name}: {quoted(timezone)}: {why}") from None
        cron = cls(expression, zone)
        try:
            is_never = cron.next_after(0) is None
        except (CronSimError, ValueError) as error:  # a number of thousands of digits, too
            raise invalid(f"{cron_name}: {quoted(expression)}: {error}; the fields are {FORMS}") from None
        if is_never:
            raise invalid(f"{cron_name}: {quoted(expression)} never comes")
        return cron

    def next_after(self, at_ms: int) -> int | None:
        """The first time that comes later; None where there is none within 50 years."""
        # From within an hour that comes twice the library may name the first of the two, which is over.
        return next((tick_ms for tick in self._ticks(at_ms // 1000) if (tick_ms := _ms(tick)) > at_ms), None)

    def last_until(self, at_ms: int) -> int | None:
        """The last time that is not later; None where there is none within 50 years."""
        ticks = self._ticks(at_ms // 1000 + 1, reverse=True)
        return next((tick_ms for tick in ticks if (tick_ms := _ms(tick)) <= at_ms), None)

    def _ticks(self, from_s: int, *, reverse: bool = False) -> CronSim:
        start = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=from_s)).astimezone(self._zone)
        return CronSim(self._expression, start, reverse=reverse)


def _ms(at: datetime) -> int:
    return int(at.timestamp()) * 1000
