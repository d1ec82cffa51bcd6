"""What a terminal shows of a job while it goes on: the log with a colour for each step, below it how far the job is.

Everything comes from strangers: programs that a build runs, names of images, a server that may not be ours. Nothing of
it reaches the terminal as control, and nothing is read as markup.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import click

from imagejobd.cli import text
from imagejobd.cli.session import Job

if TYPE_CHECKING:
    from rich.console import Group, RenderableType

STEP_COLOURS = ("cyan", "green", "yellow", "blue", "magenta", "bright_cyan", "bright_green", "bright_yellow")
BAR_CELLS = 30
_STEP = re.compile(r"#(\d{1,9}) ")


def step_colour(log_line: str) -> str | None:
    """The colour of a line that a build step has written, by the step's number."""
    match = _STEP.match(log_line)
    return STEP_COLOURS[int(match[1]) % len(STEP_COLOURS)] if match else None


def coloured(log_line: str) -> str:
    """A line of a log for a terminal: its step's mark in colour, and no control of the terminal but that."""
    bare = text.plain(log_line)
    colour = step_colour(bare)
    if colour is None:
        return bare
    mark, _, rest = bare.partition(" ")
    return f"{text.styled(mark, fg=colour)} {rest}"


class PlainView:
    """Writes the log to stderr as it comes, for what is no terminal, or a plain one."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def lines(self, lines: list[str]) -> None:
        """Whole lines of the log."""
        shown = [text.plain(line) for line in lines] if sys.stderr.isatty() else lines
        click.echo("".join(f"{line}\n" for line in shown), err=True, nl=False)

    def note(self, message: str) -> None:
        """A remark of the client's own."""
        click.echo(f"imagejobd: {text.plain(message)}", err=True)

    def update(self, job: Job) -> None:
        """How the job is now."""

    def suspend(self) -> None:
        """Leave the terminal alone, for a question."""

    def resume(self) -> None:
        """Go on after it."""


class LiveView(PlainView):
    """As `PlainView`, with a status that stays below the log."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        self._live = Live(console=self._console, transient=True, refresh_per_second=8)
        self._job: Job | None = None

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def lines(self, lines: list[str]) -> None:
        from rich.text import Text

        shown = Text()
        for line in map(text.plain, lines):
            mark, blank, rest = line.partition(" ")
            colour = step_colour(line)
            shown.append(mark, style=colour or "")
            shown.append(f"{blank}{rest}\n")
        self._console.print(shown, end="", soft_wrap=True)

    def note(self, message: str) -> None:
        self._console.print(f"imagejobd: {text.plain(message)}", style="yellow", soft_wrap=True)

    def update(self, job: Job) -> None:
        self._live.update(_status(job))

    def suspend(self) -> None:
        self._live.stop()

    def resume(self) -> None:
        self._live.start()


def view_for_stderr() -> PlainView:
    """The view that suits where stderr leads."""
    return LiveView() if sys.stderr.isatty() else PlainView()


def headline(job: Job) -> str:
    """Where a job is, in a few words: `building, step 3 of 7, 42%`."""
    if job.state == "queued":
        return ", ".join(_queue_words(job))
    if job.state == "running":
        return ", ".join(_running_words(job))
    if job.error is not None:
        return f"{text.line(job.state)}: {text.line(job.error.message)}"
    return text.line(job.state)


def _queue_words(job: Job) -> Iterator[str]:
    yield "queued"
    if job.position is not None:
        yield "next" if job.position == 0 else f"{job.position} before it"
    if job.eta_seconds is not None:
        yield f"starts in about {text.duration(job.eta_seconds)}"
    if job.waiting_for:
        yield text.line(job.waiting_for)


def _running_words(job: Job) -> Iterator[str]:
    progress = job.progress
    yield text.line(job.phase or "starting")
    step, steps = (_number(progress.get(name)) for name in ("step", "steps"))
    if step and steps and job.phase == "building":
        yield f"step {step:.0f} of {steps:.0f}"
    if (percent := _number(progress.get("percent"))) is not None:
        yield f"{percent:.0f}%"
    if job.phase == "pushing" and (current := _number(progress.get("current"))):
        total = _number(progress.get("total"))
        yield text.size(int(current)) + (f" of {text.size(int(total))}" if total else "")
    images, done = (_number(progress.get(name)) for name in ("images", "images_done"))
    if images and images > 1:
        yield f"{done or 0:.0f} of {images:.0f} images"
    if job.cancel_requested_at is not None:
        yield "is being cancelled"


def _status(job: Job) -> "Group":
    from rich.console import Group
    from rich.spinner import Spinner
    from rich.text import Text

    words = f"{headline(job)}  {text.since(job.started_at or job.created_at)}"
    parts: list[RenderableType] = [Spinner("dots", Text(words, style="bold"))]
    targets = job.progress.get("targets")
    if isinstance(targets, list) and targets:
        parts.append(_bars([target for target in targets if isinstance(target, dict)]))
    return Group(*parts)


def _bars(targets: list[dict[str, Any]]) -> "RenderableType":
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 1))
    for target in targets:
        done, total = copied_bytes(target)
        finished = bool(_number(target.get("done"))) and not total
        bar = ProgressBar(total=max(total, 1), completed=1 if finished else done, width=BAR_CELLS)
        name = "/".join(text.line(str(target[key])) for key in ("endpoint", "image") if target.get(key))
        error = target.get("error")
        figures = text.line(str(error)) if error else f"{text.size(done)} of {text.size(total)}"
        table.add_row(Text(name), bar, Text(figures, style="red" if error else "", no_wrap=True, overflow="ellipsis"))
    return table


def copied_bytes(target: dict[str, Any]) -> tuple[int, int]:
    """Bytes of a target that are there by now, in whichever way, and all of them."""
    done, total = 0.0, _number(target.get("total_bytes")) or 0.0
    for name in ("sent_bytes", "mounted_bytes", "skipped_bytes"):
        done += _number(target.get(name)) or 0.0
    return int(done), int(total)


def _number(value: object) -> float | None:
    with suppress(OverflowError):
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    return None
