"""`Content-Range` as it must be before bytes are joined to others."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagejobd.registry.blobs import ByteRange, parse_content_range, range_from


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "bytes 0-4/*",
        "bytes */5",
        "bytes 5-4/10",
        "bytes 0-5/5",
        "bytes 0-4/5, bytes 0-4/5",
        "bytes=0-4/5",
        "bytes 0-4",
        "bytes -1-4/5",
        "bytes +0-4/5",
        "bytes 0 - 4 / 5",
        "items 0-4/5",
        "bytes 0-4/" + "9" * 10_000,
        "bytes ٠-٤/٥",
    ],
)
def test_not_exactly_understood(value: str | None) -> None:
    """What contradicts itself, tells no full length or is written otherwise is no range."""
    assert parse_content_range(value) is None


SIZES = st.integers(0, 2**53 - 1)


@given(start=SIZES, length=SIZES, rest=SIZES, unit=st.sampled_from(["bytes", "Bytes"]))
def test_round_trip(start: int, length: int, rest: int, unit: str) -> None:
    """A range that was written is read again."""
    written = ByteRange(start, start + length, start + length + 1 + rest)
    if written.total < 10**16:
        assert parse_content_range(str(written).replace("bytes", unit)) == written


@given(st.text() | st.text("bytes 0123456789-/*"))
def test_whatever_the_peer_makes_of_it(value: str) -> None:
    """No header raises, and a range that is taken lies within its total."""
    found = parse_content_range(value)
    assert found is None or 0 <= found.start <= found.end < found.total


def test_range_from() -> None:
    """The start of a blob needs no range, all others do."""
    assert range_from(0) == {}
    assert range_from(17) == {"Range": "bytes=17-"}
