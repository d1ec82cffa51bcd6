"""`imagejobd schedules`."""

import datetime as dt

import click
import msgspec

from imagejobd.cli.errors import Refused
from imagejobd.cli.jobs import not_in_this_daemon
from imagejobd.cli.session import Session, connected
from imagejobd.cli.table import Table


class Schedule(msgspec.Struct, frozen=True):
    """A schedule, and how its last run stands."""

    name: str
    cron: str
    timezone: str
    kind: str
    next_run: dt.datetime | None = None
    last_run: dt.datetime | None = None
    job: str | None = None
    state: str | None = None


class _Schedules(msgspec.Struct, frozen=True):
    schedules: list[Schedule]


@click.command()
@connected
def schedules(session: Session) -> None:
    """Show the jobs that come by themselves: when next, and what became of the last one.

    \b
    Example:
      imagejobd schedules
    """
    try:
        answer = session.api.ask("/schedules")
    except Refused as refusal:
        raise not_in_this_daemon(refusal, "show its schedules") from None
    if session.as_json:
        session.print_json(answer)
        return
    table = Table("NAME", "KIND", "STATE", "NEXT", "LAST", "JOB", "CRON")
    for one in answer.read(_Schedules).schedules:
        cron = f"{one.cron} ({one.timezone})"
        table.add(one.name, one.kind, one.state or "", _time(one.next_run), _time(one.last_run), one.job or "", cron)
    table.print()


def _time(at: dt.datetime | None) -> str:
    """By the clock of whoever asks."""
    return "" if at is None else f"{at.astimezone():%Y-%m-%d %H:%M}"
