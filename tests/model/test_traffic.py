"""Bytes by registry: a bounded number of names, whatever users name."""

from imagejobd.model.histogram import Histogram
from imagejobd.model.traffic import NAMED_MAX, OTHER, Bytes, Traffic


def test_strangers_names_are_bounded() -> None:
    """The first so many registries have names, the rest are counted together; nothing is lost."""
    traffic = Traffic()
    for number in range(3 * NAMED_MAX):
        traffic.add(f"{number}.example", sent=1, read=2)
    assert len(traffic.registries) == NAMED_MAX + 1
    assert traffic.registries["0.example"] == Bytes(read=2, sent=1)
    assert traffic.registries[OTHER] == Bytes(read=4 * NAMED_MAX, sent=2 * NAMED_MAX)


def test_configured_registries_keep_their_names() -> None:
    """However many others there are; TLS's port is no part of a name."""
    traffic = Traffic(["Own.example:443"])
    for number in range(2 * NAMED_MAX):
        traffic.add(f"{number}.example", skipped=1)
    traffic.add("own.example", mounted=5)
    assert traffic.registries["own.example"] == Bytes(mounted=5)


def test_a_name_costs_bytes() -> None:
    """Who only names a registry takes no place from others."""
    traffic = Traffic()
    traffic.add("nobody.example")
    assert set(traffic.registries) == {OTHER}


def test_a_histogram_counts_up_to_each_bound() -> None:
    """Bounds are part of their range, and what lies beyond the last counts too."""
    histogram = Histogram((1, 10))
    for value in (0.5, 1, 5, 11):
        histogram.add(value)
    histogram.add(100, count=3)
    assert histogram.cumulative() == [2, 3, 7]
    assert histogram.sum == 317.5
