"""Chunks stored once, and kept as long as somebody needs them."""

from hypothesis import given
from hypothesis import strategies as st
from imagejobd.registry.copy.window import CHUNK_MIN_BYTES, MERGE_MAX_BYTES, Window

CHUNK = bytes(MERGE_MAX_BYTES)


def test_the_beginning_stays_until_room_is_needed() -> None:
    """What all have passed is kept for those who come late, as long as there is room."""
    window = Window(3 * len(CHUNK))
    window.enter()
    for number in range(3):
        assert window.make_room(len(CHUNK))
        window.append(CHUNK)
        assert window.passed(number) == (number == 0)
    assert (window.whole, window.held_bytes) == (True, 3 * len(CHUNK))
    assert window.make_room(len(CHUNK))
    assert (window.whole, window.first, window.start, window.held_bytes) == (False, 3, 3 * len(CHUNK), 0)


def test_the_slowest_keeps_chunks() -> None:
    """A chunk goes with the last reader that needs it, passing or leaving."""
    window = Window(len(CHUNK))
    window.enter()
    window.enter()
    window.append(CHUNK)
    assert not window.passed(0)
    assert not window.make_room(1)
    assert window.leave(0)
    assert window.make_room(1)


def test_late_reader_needs_all() -> None:
    """Whoever enters needs what is already here."""
    window = Window(len(CHUNK))
    window.enter()
    window.append(CHUNK)
    window.enter()
    assert not window.passed(0)
    assert window.passed(0)


def test_anything_fits_into_an_empty_window() -> None:
    """A chunk larger than the window passes through it alone."""
    window = Window(1)
    window.enter()
    assert window.make_room(len(CHUNK))
    window.append(CHUNK)
    assert not window.make_room(1)


def test_small_pieces_are_merged_until_taken() -> None:
    """Dribbles nobody has taken grow into one chunk; what was taken never changes."""
    window = Window(1000)
    window.enter()
    window.append(b"a")
    window.append(b"b")
    assert (window.end, window.held_bytes) == (1, CHUNK_MIN_BYTES)
    assert window.take(0) == b"ab"
    window.append(b"c")
    assert (window.take(0), window.take(1), window.take(2)) == (b"ab", b"c", None)
    assert window.held_bytes == 2 * CHUNK_MIN_BYTES


def test_tiny_chunks_count_with_what_they_cost() -> None:
    """A source that sends single bytes cannot fill the memory with objects."""
    window = Window(10 * CHUNK_MIN_BYTES)
    window.enter()
    taken = 0
    while window.make_room(1):
        window.append(b"x")
        window.take(taken)
        taken += 1
    assert taken == 10


@given(
    sizes=st.lists(st.integers(1, 400), max_size=60),
    speeds=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    max_bytes=st.integers(1, 4000),
)
def test_readers_of_any_speed(sizes: list[int], speeds: list[int], max_bytes: int) -> None:
    """All get all bytes in order, within the bound or one chunk."""
    window = Window(max_bytes)
    pieces = [bytes([number % 256]) * size for number, size in enumerate(sizes)]
    got = [b"" for _ in speeds]
    at = [0 for _ in speeds]
    for _ in speeds:
        window.enter()

    def read() -> None:
        for reader, speed in enumerate(speeds):
            for _ in range(speed):
                if (chunk := window.take(at[reader])) is not None:
                    got[reader] += chunk
                    window.passed(at[reader])
                    at[reader] += 1

    for piece in pieces:
        while not window.make_room(len(piece)):
            read()
        window.append(piece)
        assert window.held_bytes <= max(max_bytes, len(piece), CHUNK_MIN_BYTES)
    while any(number < window.end for number in at):
        read()
    assert got == [b"".join(pieces)] * len(speeds)
