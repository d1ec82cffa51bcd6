"""How often values fell into which range, in the form that monitoring takes; it knows nothing of who asks."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate


class Histogram:
    """Counts of values by the upper bounds of their ranges; a value at a bound is below it. One thread adds, any may
    read: a reader may miss the value that is being added."""

    def __init__(self, bounds: Sequence[float]) -> None:
        """`bounds` ascend; beyond the last there is one more range."""
        self.bounds = tuple(bounds)
        self.sum = 0.0
        self._counts = [0] * (len(self.bounds) + 1)

    def add(self, value: float, count: int = 1) -> None:
        self._counts[bisect_left(self.bounds, value)] += count
        self.sum += value * count

    def cumulative(self) -> list[int]:
        """How many values were at each bound or below it, and last how many there were."""
        return list(accumulate(self._counts))
