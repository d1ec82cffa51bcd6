"""How a build's progress reads in the log."""

import time

import pytest

from imagejobd.engine.stream import BuildEvent, BuildWarning, Output, Step, Transfer
from imagejobd.jobs.shared.console import LINE_MAX_CHARS, Console


def rendered(*events: BuildEvent) -> str:
    console = Console()
    return "".join(map(console.render, events))


def test_steps_side_by_side() -> None:
    """Each line carries its step's number; pieces of a line are put together, and the last needs no line end."""
    text = rendered(
        Step(1, "[1/2] RUN a", "started"),
        Step(2, "[2/2] RUN b", "started"),
        Output(1, "out", "one\ntw"),
        Output(2, "err", "other"),
        Transfer(2, "layer", "", 1, 2),
        Output(1, "out", "o\n"),
        BuildWarning(0, "beware"),
        Step(1, "[1/2] RUN a", "done", 1.25),
        Step(2, "[2/2] RUN b", "failed", error="exit code: 1"),
    )
    assert text.splitlines() == [
        "#1 [1/2] RUN a",
        "#2 [2/2] RUN b",
        "#1 one",
        "#1 two",
        "WARNING: beware",
        "#1 DONE 1.2s",
        "#2 other",
        "#2 ERROR: exit code: 1",
    ]


@pytest.mark.parametrize(
    ("pieces", "lines"),
    [
        (["10%\r20%\r30%\nend\n"], ["#1 30%", "#1 end"]),
        (["10%\r", "20%\r", "30%", "\n"], ["#1 30%"]),
        (["windows\r\n", "too\r", "\n"], ["#1 windows", "#1 too"]),
        (["10%\r100%\r"], ["#1 100%"]),
    ],
)
def test_a_line_that_is_overwritten(pieces: list[str], lines: list[str]) -> None:
    """A progress bar shows what stood there last; a carriage return before a line end overwrites nothing."""
    text = rendered(*(Output(1, "out", piece) for piece in pieces), Step(1, "x", "done"))
    assert text.splitlines() == [*lines, "#1 DONE"]


def test_a_line_without_end_is_bounded() -> None:
    """It is shown in parts as it comes, loses nothing, and takes no longer the longer it is."""
    console, piece, count = Console(), "x" * 1000, 20_000
    began = time.process_time()
    shown = [console.render(Output(1, "out", piece)) for _ in range(count)]
    assert time.process_time() - began < 20
    assert max(map(len, shown)) < LINE_MAX_CHARS + 2 * len(piece)
    rest = console.render(Step(1, "x", "done"))
    assert ("".join(shown) + rest).count("x") == len(piece) * count
