"""When a job that waits will probably start.

Each job ahead is taken to last as long as the median of the last ones of its kind that succeeded, from first start to
end, and those that run for the rest of that. They take the kind's slots one after the other; what a tenant may have
running at once counts where that is less. Of each other tenant, for they take turns, as many go before as of its own,
and one. It is a guess: priorities that come later, retries and time-outs are not in it.
"""

from statistics import median

from imagejobd.store.protocol import Backlog


def eta_s(backlog: Backlog, slots: int, now_ms: int) -> float | None:
    """Seconds from `now_ms` until a job starts that has this backlog, on `slots` slots; None where no job of its kind
    has succeeded yet."""
    if not backlog.durations_ms:
        return None
    typical_ms = median(backlog.durations_ms)
    rests_ms = sorted(min(typical_ms, max(0.0, at_ms + typical_ms - now_ms)) for at_ms in backlog.running_since_ms)
    # All last equally long, so the slots come free again and again in the order in which they first do.
    free_ms = ([0.0] * (slots - len(rests_ms)) + rests_ms)[:slots]
    rounds, slot = divmod(backlog.ahead, slots)
    return round((free_ms[slot] + rounds * typical_ms) / 1000, 1)
