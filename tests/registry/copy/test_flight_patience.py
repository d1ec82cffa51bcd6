"""When being held up has lasted long enough."""

from imagejobd.registry.copy.patience import SOURCE_MIN_BYTES_PER_S, Credit, Patience


def test_one_long_wait() -> None:
    """An unbroken wait may last for the grace."""
    patience = Patience(2.0)
    assert patience.held(10.0) == 2.0
    assert patience.held(11.5) == 0.5
    assert patience.held(12.5) < 0


def test_short_waits_add_up() -> None:
    """Waits with hardly a pause between them count as one."""
    patience = Patience(2.0)
    for start in (0.0, 1.0, 2.0):
        patience.held(start)
        patience.freed(start + 1.0)
    assert patience.held(3.0) < 0


def test_pauses_make_up() -> None:
    """Rare waits, however many, are forgiven."""
    patience = Patience(2.0)
    for start in range(0, 1000, 10):
        assert patience.held(start) > 1.5
        patience.freed(start + 1.0)


def test_freed_twice() -> None:
    """Being free is no event of its own."""
    patience = Patience(2.0)
    patience.held(0.0)
    patience.freed(1.0)
    patience.freed(5.0)
    assert patience.held(5.0) == 2.0


def test_silence_uses_up_credit() -> None:
    """A source that sends nothing has its grace."""
    credit = Credit(10.0, 100.0)
    assert credit.left_s(104.0) == 6.0
    assert credit.left_s(111.0) < 0


def test_bytes_buy_time() -> None:
    """So much for each, and never more than the grace ahead."""
    credit = Credit(10.0, 0.0)
    credit.came(SOURCE_MIN_BYTES_PER_S, 5.0)
    assert credit.left_s(5.0) == 6.0
    credit.came(1000 * SOURCE_MIN_BYTES_PER_S, 5.0)
    assert credit.left_s(5.0) == 10.0


def test_a_long_stall_is_no_debt() -> None:
    """A source that has been silent for an hour is quick as soon as it is."""
    credit = Credit(10.0, 0.0)
    credit.came(2 * SOURCE_MIN_BYTES_PER_S, 3600.0)
    assert credit.left_s(3600.0) == 2.0


def test_trickle_uses_up_credit() -> None:
    """Half the rate lasts for twice the grace."""
    credit = Credit(10.0, 0.0)
    for second in range(1, 20):
        credit.came(SOURCE_MIN_BYTES_PER_S // 2, float(second))
        assert credit.left_s(float(second)) > 0
    assert credit.left_s(20.0) <= 0


def test_pauses_cost_nothing() -> None:
    """While others hold up the source, its time stands still."""
    credit = Credit(10.0, 0.0)
    credit.pause(4.0)
    assert credit.is_paused
    credit.resume(1000.0)
    assert not credit.is_paused
    assert credit.left_s(1000.0) == 6.0
