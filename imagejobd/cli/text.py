"""What strangers wrote, and sizes and times, as a terminal may have them."""

import datetime as dt
import os
import re
from contextlib import suppress
from typing import Any

import click

# ECMA-48: sequences that begin with ESC, or with its one-byte forms; then whatever else controls a terminal, and what
# reorders a line (Unicode's bidirectional controls).
_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]"
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_UNITS = ("B", "kB", "MB", "GB", "TB")


def plain(text: str) -> str:
    """The text without what would move a terminal's cursor, colour it or rename its window; tabs and line ends stay."""
    return _CONTROL.sub("", _SEQUENCE.sub("", text))


def line(text: str) -> str:
    """As `plain`, in one line."""
    return " ".join(plain(text).split())


def styled(text: str, **style: Any) -> str:
    """As `click.style`, unless the user wants no colours (no-color.org)."""
    return text if os.environ.get("NO_COLOR") else click.style(text, **style)


def size(count: int) -> str:
    """Bytes as people read them: `1.5 MB`, powers of 1000."""
    number, unit = float(count), _UNITS[0]
    for unit in _UNITS:
        if abs(number) < 999.5 or unit == _UNITS[-1]:
            break
        number /= 1000
    return f"{number:.0f} {unit}" if number >= 10 or unit == "B" else f"{number:.1f} {unit}"


def duration(seconds: float) -> str:
    """`0.4s`, `12s`, `3m05s`, `2h07m`, `4d03h`."""
    seconds = max(seconds, 0.0)
    if seconds < 10:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest}s"
    if minutes < 60:
        return f"{minutes}m{rest:02}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours < 48 else f"{hours // 24}d{hours % 24:02}h"


def moment(at: dt.datetime) -> str:
    """To the second, in the local zone where that has such a year."""
    with suppress(OverflowError):
        at = at.astimezone()
    return f"{at:%Y-%m-%d %H:%M:%S}"


def since(start: dt.datetime | None, end: dt.datetime | None = None) -> str:
    """How long from `start` to `end`, or to now; empty where it has not begun."""
    return "" if start is None else duration(((end or dt.datetime.now(dt.UTC)) - start).total_seconds())
