"""`imagejobd queue`, `pause` and `resume`."""

import datetime as dt

import click
import msgspec

from imagejobd.cli import text
from imagejobd.cli.api import Answer
from imagejobd.cli.errors import Refused
from imagejobd.cli.jobs import not_in_this_daemon
from imagejobd.cli.session import Session, connected
from imagejobd.cli.table import Table


class Pause(msgspec.Struct, frozen=True):
    """Why a kind starts no jobs."""

    reason: str = ""
    since: dt.datetime | None = None
    by: str | None = None


class KindQueue(msgspec.Struct, frozen=True):
    """How many jobs of a kind wait and run."""

    queued: int
    running: int
    slots: int | None = None
    oldest_queued_at: dt.datetime | None = None
    waiting_for: str | None = None
    paused: Pause | None = None


class _Queue(msgspec.Struct, frozen=True):
    kinds: dict[str, KindQueue]


@click.command()
@connected
def queue(session: Session) -> None:
    """Show how many jobs of each kind wait and run, and what keeps them.

    \b
    Example:
      imagejobd queue
    """
    _ask(session, "", None)


@click.command()
@click.argument("kind", required=False)
@click.option("--reason", required=True, help="Why; shown with every job that waits.")
@connected
def pause(session: Session, kind: str | None, reason: str) -> None:
    """Start no more jobs of KIND, or none at all; those that run go on, and new ones are accepted.

    \b
    Example:
      imagejobd pause build --reason 'the engine is upgraded'
    """
    _ask(session, "/pause", {"kind": kind, "reason": reason})


@click.command()
@click.argument("kind", required=False)
@connected
def resume(session: Session, kind: str | None) -> None:
    """Start jobs of KIND again, or of all kinds.

    \b
    Example:
      imagejobd resume build
    """
    _ask(session, "/resume", {"kind": kind})


def _ask(session: Session, path: str, body: dict[str, str | None] | None) -> None:
    try:
        answer = session.api.ask(f"/queue{path}", method="POST" if path else "GET", body=body)
    except Refused as refusal:
        raise not_in_this_daemon(refusal, "show, pause or resume its queue") from None
    if session.as_json:
        session.print_json(answer)
    else:
        _print(answer)


def _print(answer: Answer) -> None:
    table = Table("KIND", "QUEUED", "RUNNING", "SLOTS", "OLDEST", "WHAT")
    for name, kind in answer.read(_Queue).kinds.items():
        what = kind.waiting_for or ""
        if kind.paused is not None:
            by = f" by {kind.paused.by}" if kind.paused.by else ""
            what = f"paused{by} for {text.since(kind.paused.since)}: {kind.paused.reason}"
        oldest = text.since(kind.oldest_queued_at)
        table.add(name, str(kind.queued), str(kind.running), str(kind.slots or ""), oldest, what)
    table.print()
