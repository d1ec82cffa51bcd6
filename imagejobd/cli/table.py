"""Rows for a person at a terminal, or for the next program of a pipe."""

import shutil
import sys

import click

from imagejobd.cli import text

GAP = "  "
# What the last column keeps on a narrow terminal.
LAST_MIN_CHARS = 16


class Table:
    """Columns as wide as they need, the last as wide as there is room; in a pipe tabs, and no headings."""

    def __init__(self, *headings: str) -> None:
        self._headings = headings
        self._rows: list[tuple[list[str], str | None]] = []

    def add(self, *cells: str, colour: str | None = None) -> None:
        """One row, whose third column may have a colour."""
        self._rows.append(([text.line(cell) for cell in cells], colour))

    def print(self) -> None:
        if not sys.stdout.isatty():
            click.echo("".join("\t".join(cells) + "\n" for cells, _ in self._rows), nl=False)
            return
        rows = [cells for cells, _ in self._rows]
        widths = [max(map(len, column)) for column in zip(self._headings, *rows, strict=True)]
        room = shutil.get_terminal_size().columns - sum(len(GAP) + width for width in widths[:-1])
        widths[-1] = max(LAST_MIN_CHARS, room)
        click.echo(text.styled(_line(self._headings, widths), bold=True))
        for cells, colour in self._rows:
            click.echo(_line(cells, widths, colour))


def _line(cells: "list[str] | tuple[str, ...]", widths: list[int], colour: str | None = None) -> str:
    shown = []
    for number, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        fitted = cell if len(cell) <= width else f"{cell[: width - 1]}…"
        padded = fitted if number == len(cells) - 1 else f"{fitted:<{width}}"
        shown.append(text.styled(padded, fg=colour) if colour and number == 2 else padded)
    return GAP.join(shown)
