"""Time that nobody can set."""

from imagejobd.model.clock import Clock

HOUR_MS = 3_600_000


class Watch:
    """Both clocks, moved by hand."""

    def __init__(self) -> None:
        self.wall_ms = 1_700_000_000_000
        self.steady_ms = 5_000
        self.clock = Clock(lambda: self.wall_ms, lambda: self.steady_ms)

    def pass_ms(self, by_ms: int) -> None:
        self.wall_ms += by_ms
        self.steady_ms += by_ms
        self.clock.now_ms()

    def set_by_ms(self, by_ms: int) -> None:
        self.wall_ms += by_ms
        self.clock.now_ms()


def test_time_that_the_clock_jumped_over_has_not_passed() -> None:
    """A clock that is set forward by a year makes nothing older."""
    watch = Watch()
    since_ms = watch.clock.now_ms()
    watch.pass_ms(HOUR_MS)
    watch.set_by_ms(365 * 24 * HOUR_MS)
    watch.pass_ms(HOUR_MS)
    assert watch.clock.elapsed_ms(since_ms) == 2 * HOUR_MS
    assert watch.clock.elapsed_ms(watch.wall_ms - HOUR_MS) == HOUR_MS


def test_a_duration_is_never_negative() -> None:
    """After the clock was set back, what was noted before it has taken no time, rather than less than none."""
    watch = Watch()
    since_ms = watch.clock.now_ms()
    watch.set_by_ms(-24 * HOUR_MS)
    assert watch.clock.elapsed_ms(since_ms) == 0
    watch.pass_ms(HOUR_MS)
    assert watch.clock.elapsed_ms(watch.wall_ms - HOUR_MS) == HOUR_MS
    assert watch.clock.set_back_ms == 24 * HOUR_MS


def test_a_clock_that_drifts_is_not_set() -> None:
    """Corrections little by little are no step."""
    watch = Watch()
    for _ in range(1000):
        watch.pass_ms(5_000)
        watch.set_by_ms(3)
    assert watch.clock.set_back_ms == 0
