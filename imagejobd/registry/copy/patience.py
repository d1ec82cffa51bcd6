"""How long the quick wait for the slow before the slow are asked to step aside: slow readers, and slow sources."""

# Time without delay makes up for delay at this rate: whoever is slower by less than a fifth is waited for, for ever.
FORGIVEN_PER_S = 0.25
# A source that sends less is slow: nobody else should wait for its end.
SOURCE_MIN_BYTES_PER_S = 64 * 1024


class Patience:
    """Adds up the time of being held up: `grace_s` of it, with pauses that are not much longer, and it is used up.

    One delay alone would be a poor measure: a reader that takes a chunk every quarter of a second holds everybody up
    to its own pace, although no single wait is long.
    """

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._debt_s = 0.0
        self._held_since: float | None = None
        self._free_since = 0.0

    def held(self, now: float) -> float:
        """Somebody is held up at `now`: the seconds for which that may go on; at most 0 when patience is used up."""
        if self._held_since is None:
            self._held_since = now
            self._debt_s = max(0.0, self._debt_s - FORGIVEN_PER_S * (now - self._free_since))
        return self._grace_s - self._debt_s - (now - self._held_since)

    def freed(self, now: float) -> None:
        """Nobody is held up any more."""
        if self._held_since is not None:
            self._debt_s += now - self._held_since
            self._held_since = None
            self._free_since = now


class Credit:
    """How long a source may still be slow: bytes buy time at `SOURCE_MIN_BYTES_PER_S`, up to `grace_s` ahead.

    A source that sends more never uses it up; one that sends nothing does so in `grace_s`.
    """

    def __init__(self, grace_s: float, now: float) -> None:
        self._grace_s = grace_s
        self._until = now + grace_s
        self._paused_at: float | None = None

    @property
    def is_paused(self) -> bool:
        return self._paused_at is not None

    def came(self, size_bytes: int, now: float) -> None:
        bought = max(self._until, now) + size_bytes / SOURCE_MIN_BYTES_PER_S
        self._until = min(bought, now + self._grace_s)

    def pause(self, now: float) -> None:
        """The source is not asked for more: this time does not count."""
        self._paused_at = now

    def resume(self, now: float) -> None:
        if self._paused_at is not None:
            self._until += now - self._paused_at
            self._paused_at = None

    def left_s(self, now: float) -> float:
        """Seconds that are left without another byte; at most 0 when the credit is used up."""
        return self._until - now
