"""What was measured, what it was measured against, and whether the target is met."""

import sys
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Literal, NamedTuple

COLUMNS = ("measured", "imagejobd", "beside", "result", "target", "")


class Bound(NamedTuple):
    """A target: `≥ 0.5 ×`, `≤ 15 ms`."""

    sign: Literal["≥", "≤"]
    limit: float
    unit: str = "×"

    def holds(self, value: float) -> bool:
        return value >= self.limit if self.sign == "≥" else value <= self.limit

    def __str__(self) -> str:
        return f"{self.sign} {self.limit:,g} {self.unit}"


class Figure(NamedTuple):
    """One line of the table. `judged` is held against `bound`; `ours` and `beside` are for people."""

    what: str
    ours: str
    beside: str
    judged: float
    bound: Bound

    @property
    def is_met(self) -> bool:
        return self.bound.holds(self.judged)

    def row(self) -> tuple[str, ...]:
        verdict = "met" if self.is_met else "MISSED"
        return self.what, self.ours, self.beside, f"{_short(self.judged)} {self.bound.unit}", str(self.bound), verdict


def table(figures: Iterable[Figure]) -> str:
    """All figures in columns; the first column to the left, the others to the right."""
    rows = [COLUMNS, *(figure.row() for figure in figures)]
    widths = [max(map(len, column)) for column in zip_longest(*rows, fillvalue="")]
    rows.insert(1, tuple("─" * width for width in widths))
    return "\n".join(_line(row, widths) for row in rows)


def say(text: str) -> None:
    """What is going on meanwhile, apart from the table."""
    print(f"  {text}", file=sys.stderr, flush=True)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
    return "  ".join([row[0].ljust(widths[0]), *cells[1:-1], row[-1]]).rstrip()


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
