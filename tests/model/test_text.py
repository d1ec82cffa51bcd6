"""Strangers' words in messages: they print, and they end."""

import pytest

from imagejobd.model.text import one_line, printable, quoted


@pytest.mark.parametrize("text", ["a\nb\x1b[1m\u202e", b"a\nb\x1b[1m\xff"], ids=["text", "bytes"])
def test_nothing_that_steers_a_terminal_is_left(text: str | bytes) -> None:
    """Line breaks, escapes and what turns the direction of writing."""
    for made in (printable(text), quoted(text)):
        assert made.isprintable()
        assert "a" in made
        assert "[1m" in made


def test_each_has_a_bound() -> None:
    """One just cuts, one shows that it does, and one leaves out the middle."""
    assert printable("ab\n" * 100, 7) == "ab?ab?a"
    assert printable("ä".encode() * 100, 3) == "äää"
    assert quoted("a'b" * 100, 4) == '''"a'ba…"'''
    assert quoted("ab", 2) == "'ab'"
    assert one_line(f"first {'x' * 100}\n\n last", 30) == f"first xxxx … {'x' * 12} last"
    assert one_line(" a \n\t b ", 30) == "a b"
