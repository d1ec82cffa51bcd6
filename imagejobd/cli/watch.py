"""Watching a job to its end: its log and progress meanwhile, and a Ctrl-C that asks what is meant by it."""

import codecs
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import click

from imagejobd.cli import text
from imagejobd.cli.api import Answer
from imagejobd.cli.errors import CommandError, Exit, Unreachable
from imagejobd.cli.follow import LogFollower
from imagejobd.cli.session import Job, Session
from imagejobd.cli.view import PlainView, headline

POLL_S = 0.5
# At most, until a Ctrl-C is answered.
HEAR_S = 0.1
# Of log lines that are shown at once.
LINES_MAX = 500


class Lines:
    """Bytes of a log as whole lines, however they were cut."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""

    def feed(self, piece: bytes) -> list[str]:
        """The lines that are whole now."""
        *lines, self._rest = (self._rest + self._decoder.decode(piece)).split("\n")
        return lines

    def end(self) -> list[str]:
        """The last line, where it has no end."""
        rest, self._rest = self._rest + self._decoder.decode(b"", final=True), ""
        return [rest] if rest else []


class _Reader(threading.Thread):
    """Follows the log in a thread of its own, so that the main one can draw, and hear a Ctrl-C."""

    def __init__(self, session: Session, job: str) -> None:
        super().__init__(daemon=True)
        # Lines, a remark, a failure, or None at the end. What is not shown yet holds the log up.
        self.messages: queue.Queue[list[str] | str | CommandError | None] = queue.Queue(maxsize=64)
        self._follower = LogFollower(session, job, on_outage=self._report)

    def run(self) -> None:
        lines = Lines()
        try:
            for piece in self._follower.texts():
                if whole := lines.feed(piece):
                    self.messages.put(whole)
            self.messages.put(lines.end())
            self.messages.put(None)
        except CommandError as error:
            self.messages.put(error)

    def _report(self, why: str | None) -> None:
        self.messages.put("the daemon is back" if why is None else f"{why}; waiting for it to come back")


def watch(session: Session, job: str, view: PlainView) -> Answer:
    """Show the job in `view` until it has ended; the job then. Raises `CommandError`, also when the user leaves."""
    reader = _Reader(session, job)
    reader.start()
    try:
        with view:
            while True:
                with _interrupts() as interrupted:
                    view.resume()
                    if _show(session, job, reader, view, interrupted):
                        return session.ask_job(job)
                _ask_why(session, job, view)
    except (KeyboardInterrupt, click.Abort, EOFError):
        raise _left(job) from None


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets, so that it cuts nothing in two that is being drawn or asked.

    Another Ctrl-C before that is answered raises `KeyboardInterrupt`.
    """
    interrupted = threading.Event()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job
        yield interrupted
        return

    def hear(_signal: int, _frame: FrameType | None) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()

    before = signal.signal(signal.SIGINT, hear)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def _show(session: Session, job: str, reader: _Reader, view: PlainView, interrupted: threading.Event) -> bool:
    """Show what comes, and the job now and then; True at the end, False when `interrupted`."""
    poll_at = time.monotonic()
    while not interrupted.is_set():
        if (now := time.monotonic()) >= poll_at:
            poll_at = now + POLL_S
            _poll(session, job, view)
        try:
            message = reader.messages.get(timeout=min(max(0.0, poll_at - now), HEAR_S))
        except queue.Empty:
            continue
        match message:
            case None:
                return True
            case CommandError():
                raise message
            case str():
                view.note(message)
            case lines:
                for start in range(0, len(lines), LINES_MAX):
                    view.lines(lines[start : start + LINES_MAX])
    return False


def _poll(session: Session, job: str, view: PlainView) -> None:
    if type(view) is PlainView:
        return
    with suppress(Unreachable):  # the log's reader says so, and waits
        view.update(session.job(job))


def _ask_why(session: Session, job: str, view: PlainView) -> None:
    """Ask what the Ctrl-C was for. Raises `CommandError` to leave, `click.Abort` for another Ctrl-C."""
    view.suspend()
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise _left(job)
    choice = click.prompt("Cancel the job (c), leave it and go (l), or keep watching (w)?", default="w", err=True)
    if choice.strip().lower().startswith("l"):
        raise _left(job)
    if choice.strip().lower().startswith("c"):
        session.api.ask(f"/jobs/{job}/cancel", method="POST")


def _left(job: str) -> CommandError:
    hints = f"look at it with: imagejobd logs -f {job}, stop it with: imagejobd cancel {job}"
    return CommandError(f"job {job} goes on; {hints}", Exit.INTERRUPTED)


def finish(session: Session, ended: Answer, result: Callable[[Job], str]) -> Exit:
    """Print what a job came to: its result to stdout, why it failed to stderr; the exit code."""
    job = ended.read(Job)
    if session.as_json:
        session.print_json(ended)
    elif job.state == "succeeded":
        click.echo(text.plain(result(job)))
    else:
        click.echo(f"imagejobd: job {text.line(job.id)} {headline(job)}", err=True)
    return job.exit_code
