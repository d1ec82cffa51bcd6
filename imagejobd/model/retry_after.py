"""The `Retry-After` header (RFC 9110 §10.2.3): how long a peer asks us to stay away, within reason."""

import datetime as dt
import email.utils

RETRY_AFTER_MAX_S = 3600.0


def parse_retry_after(value: str | None, now: dt.datetime) -> float | None:
    """The seconds that a header asks for, be it seconds or a date, bounded; None without one that can be read."""
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        wish_s = float(text[:10])
    else:
        try:
            date = email.utils.parsedate_to_datetime(text)
        except (ValueError, OverflowError):
            return None
        # The standard library calls a date in "-0000" naive.
        wish_s = ((date if date.tzinfo else date.replace(tzinfo=dt.UTC)) - now).total_seconds()
    return min(max(wish_s, 0.0), RETRY_AFTER_MAX_S)
