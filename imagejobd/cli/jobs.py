"""`imagejobd jobs`, `show`, `logs`, `wait`, `cancel` and `retry`."""

import re
import sys
import time
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import click
import msgspec

from imagejobd.cli import text
from imagejobd.cli.errors import CommandError, Exit, Refused
from imagejobd.cli.follow import LogFollower
from imagejobd.cli.session import Job, Session, connected, pairs, secret_from, segment
from imagejobd.cli.table import Table
from imagejobd.cli.view import coloured, copied_bytes, headline
from imagejobd.cli.watch import Lines

STATES = ("queued", "running", "succeeded", "failed", "cancelled")
STATE_COLOURS = {"running": "cyan", "succeeded": "green", "failed": "red", "cancelled": "yellow"}
WATCH_EVERY_S = 2.0
WAIT_S = 60.0
# Between two questions to a daemon that answers before the job has ended.
ASK_AGAIN_S = 0.5
_AGO = re.compile(r"(\d+)([smhd])")
_AGO_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class _Page(msgspec.Struct, frozen=True):
    jobs: list[Job]


class _Retries(msgspec.Struct, frozen=True):
    """What became of a retry of several jobs."""

    class Retried(msgspec.Struct, frozen=True):
        id: str
        retry_of: str

    class Refusal(msgspec.Struct, frozen=True):
        id: str
        detail: str = ""

    retried: list[Retried]
    refused: list[Refusal] = []
    next: str | None = None


@click.command()
@click.option("--state", "states", multiple=True, type=click.Choice(STATES), help="Only in this state; repeatable.")
@click.option("--kind", "kinds", multiple=True, help="Only of this kind; repeatable.")
@click.option("--tenant", help="Only of this tenant.")
@click.option("--label", metavar="NAME=VALUE", help="Only with this label.")
@click.option("--submitter", help="Only of this person: e-mail address, name or subject.")
@click.option("--image", help="Only with this image as target or source.")
@click.option("--since", help="Only those made since: 90s, 30m, 1h, 7d, or a time in ISO 8601.")
@click.option("--limit", type=click.IntRange(1, 500), default=30, show_default=True, help="So many at most.")
@click.option("-w", "--watch", "is_watched", is_flag=True, help="Show the list anew every two seconds.")
@connected
def jobs(
    session: Session, states: tuple[str, ...], kinds: tuple[str, ...], since: str | None, is_watched: bool, **only: Any
) -> None:
    """List jobs from new to old.

    On a terminal as a table, else one job a line with tabs between the columns.

    \b
    Example:
      imagejobd jobs --state queued --state running --watch
      imagejobd jobs --state failed --since 1h --image registry.example/app
    """
    query = {name: str(value) for name, value in only.items() if value is not None}
    query |= {name: ",".join(values) for name, values in (("state", states), ("kind", kinds)) if values}
    if since is not None:
        query["created_after"] = _moment(since)
    while True:
        answer = session.api.ask("/jobs", query=query)
        if is_watched:
            click.clear()
        if session.as_json:
            session.print_json(answer)
        else:
            _table(answer.read(_Page).jobs).print()
        if not is_watched:
            return
        time.sleep(WATCH_EVERY_S)


@click.command()
@click.argument("job")
@connected
def show(session: Session, job: str) -> None:
    """Show JOB, by id or number: phases, progress, result.

    \b
    Example:
      imagejobd show 42
    """
    answer = session.ask_job(job)
    if session.as_json:
        session.print_json(answer)
        return
    for name, value in _details(answer.read(Job)):
        click.echo(f"{text.line(name):<12}{text.plain(value)}")


@click.command()
@click.argument("job")
@click.option("-f", "--follow", is_flag=True, help="Go on until the job has ended, through restarts of the daemon.")
@click.option("-n", "--tail", type=click.IntRange(0), help="Only the last lines, so many.")
@connected
def logs(session: Session, job: str, follow: bool, tail: int | None) -> None:
    """Print the log of JOB; on a terminal each build step has a colour.

    With --follow the exit code is as the job's end.

    \b
    Example:
      imagejobd logs -f 42
    """
    offset = 0
    if tail is not None or not follow:
        # To go on after the end, all of it is counted. Daemons before 0.2 send it whole anyway.
        query: dict[str, object] = {"tail": tail} if tail and not follow else {}
        with session.api.stream(f"/jobs/{segment(job)}/log", query=query, timeout_s=WAIT_S) as stream:
            offset = _print_whole(session, stream.blocks(), tail)
    if not follow:
        return
    follower = LogFollower(session, job, offset=offset, on_outage=_report_outage)
    _print_lines(session, follower.texts())
    sys.exit(session.job(job).exit_code)


@click.command()
@click.argument("names", metavar="JOB...", nargs=-1, required=True)
@click.option("--timeout", "timeout_s", type=click.FloatRange(0), help="Wait so many seconds at most; then exit 5.")
@connected
def wait(session: Session, names: tuple[str, ...], timeout_s: float | None) -> None:
    """Wait until all of JOB... have ended; the exit code is as their end, 1 where any failed.

    \b
    Example:
      imagejobd wait 41 42 && echo both succeeded
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    ends = []
    for name in names:
        answer, job = _wait_for(session, name, deadline)
        ends.append(job.exit_code)
        if session.as_json:
            session.print_json(answer)
        else:
            click.echo(f"{text.line(job.id)} {text.plain(headline(job))}")
    sys.exit(next((end for end in (Exit.NOT_ENDED, Exit.FAILED, Exit.CANCELLED) if end in ends), Exit.SUCCEEDED))


@click.command()
@click.argument("names", metavar="JOB...", nargs=-1, required=True)
@connected
def cancel(session: Session, names: tuple[str, ...]) -> None:
    """Cancel JOB..., waiting or running.

    \b
    Example:
      imagejobd cancel 42
    """
    for name in names:
        answer = session.api.ask(f"/jobs/{segment(name)}/cancel", method="POST")
        if session.as_json:
            session.print_json(answer)
        else:
            state = str(answer.read(dict[str, Any]).get("state"))
            click.echo(f"{name} {'is cancelled' if state == 'cancelled' else 'is being cancelled'}")


@click.command()
@click.argument("names", metavar="[JOB]...", nargs=-1)
@click.option("--secret", "secrets", multiple=True, metavar="NAME=FILE", help="A secret that was deleted, from a file.")
@click.option("--all", "is_bulk", is_flag=True, help="All jobs that these options choose:")
@click.option("--state", "states", multiple=True, type=click.Choice(["failed", "cancelled"]), help="…in this state.")
@click.option("--kind", help="…of this kind.")
@click.option("--code", help="…whose error has this code: registry_unavailable.")
@click.option("--since", help="…that ended since: 30m, 1h, 7d, or a time in ISO 8601.")
@click.option("--label", metavar="NAME=VALUE", help="…with this label.")
@click.option("--tenant", help="…of this tenant.")
@click.option("--limit", type=click.IntRange(1, 1000), help="…so many at most.")
@connected
def retry(
    session: Session,
    names: tuple[str, ...],
    secrets: tuple[str, ...],
    is_bulk: bool,
    states: tuple[str, ...],
    **only: Any,
) -> None:
    """Try JOB... again, each as a new job that does what the old one should have done.

    \b
    Example:
      imagejobd retry 42
      imagejobd retry --all --state failed --code registry_unavailable --since 1h
    """
    only = {name: value for name, value in only.items() if value is not None}
    if is_bulk == bool(names) or (names and (states or only)):
        raise click.UsageError("name jobs, or choose them: --all with --state, --code, --since and the like")
    if is_bulk:
        _retry_all(session, only | {"state": list(states) or ["failed"]})
        return
    opened = {name: secret_from(file) for name, file in pairs(secrets, "--secret")}
    for name in names:
        body = {"secrets": opened} if opened else None
        answer = session.api.ask(f"/jobs/{segment(name)}/retry", method="POST", body=body)
        if session.as_json:
            session.print_json(answer)
        else:
            click.echo(text.line(answer.read(Job).id))


def _retry_all(session: Session, which: dict[str, Any]) -> None:
    """Try again what is chosen, in as many requests as it takes, unless the user has set a limit."""
    if "since" in which:
        which["since"] = _moment(str(which["since"]))
    has_refusals = False
    while True:
        try:
            answer = session.api.ask("/jobs/retry", method="POST", body=which)
        except Refused as refusal:
            raise not_in_this_daemon(refusal, "retry several jobs at once") from None
        retries = answer.read(_Retries)
        if session.as_json:
            session.print_json(answer)
        else:
            _print_retries(retries)
        has_refusals |= bool(retries.refused)
        if retries.next is None or "limit" in which:
            break
        which["cursor"] = retries.next
    if has_refusals:
        sys.exit(Exit.FAILED)


def _print_retries(retries: _Retries) -> None:
    for retried in retries.retried:
        click.echo(f"{text.line(retried.id)} instead of {text.line(retried.retry_of)}")
    for refused in retries.refused:
        click.echo(f"imagejobd: {text.line(refused.id)}: {text.line(refused.detail)}", err=True)


def not_in_this_daemon(refusal: Refused, what: str) -> CommandError:
    """What to say where a route is missing: the daemon is older than this client."""
    if refusal.status not in (404, 405):
        return refusal
    return CommandError(f"this daemon cannot {what}: it is older than this client; upgrade it")


def _wait_for(session: Session, name: str, deadline: float | None) -> tuple[Any, Job]:
    """The job once it has ended, or at the deadline."""
    while True:
        rest_s = WAIT_S if deadline is None else max(0.0, min(WAIT_S, deadline - time.monotonic()))
        query: dict[str, object] = {"wait": f"{rest_s:.0f}"} if rest_s >= 1 else {}
        asked_at = time.monotonic()
        answer = session.ask_job(name, query=query, timeout_s=rest_s + WAIT_S)
        job = answer.read(Job)
        if job.has_ended or (deadline is not None and time.monotonic() >= deadline):
            return answer, job
        if time.monotonic() - asked_at < ASK_AGAIN_S:
            time.sleep(min(ASK_AGAIN_S, rest_s))


def _print_whole(session: Session, blocks: Iterator[bytes], tail: int | None) -> int:
    """Print a log as it is now, or its last lines; how many bytes it has."""
    if tail is None:
        return _print_lines(session, blocks)
    last: deque[bytes] = deque(maxlen=tail)
    count, rest = 0, b""
    for block in blocks:
        count += len(block)
        *lines, rest = (rest + block).split(b"\n")
        last.extend(line + b"\n" for line in lines)
    if rest:
        last.append(rest)
    _print_lines(session, iter(last))
    return count


def _print_lines(session: Session, pieces: Iterator[bytes]) -> int:
    """Print a log while it comes: for a terminal line by line, else as it is; how many bytes it has."""
    count, lines = 0, Lines()
    is_terminal = sys.stdout.isatty() and not session.as_json
    for piece in pieces:
        count += len(piece)
        if session.as_json:
            click.echo(msgspec.json.encode({"log": piece.decode(errors="replace")}))
        elif is_terminal:
            _echo(lines.feed(piece))
        else:
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
    _echo(lines.end())
    return count


def _echo(lines: list[str]) -> None:
    if lines:
        click.echo("\n".join(map(coloured, lines)))


def _report_outage(why: str | None) -> None:
    click.echo("imagejobd: the daemon is back" if why is None else f"imagejobd: {text.plain(why)}; waiting", err=True)


def _table(page: list[Job]) -> Table:
    table = Table("JOB", "KIND", "STATE", "IMAGE", "AGE", "TOOK", "WHAT")
    for job in page:
        table.add(
            str(job.number or job.id),
            job.kind,
            job.state,
            _image(job),
            text.since(job.created_at),
            text.since(job.started_at, job.finished_at),
            "" if job.state == "succeeded" else headline(job).removeprefix(f"{job.state}: ").removeprefix("queued, "),
            colour=STATE_COLOURS.get(job.state),
        )
    return table


def _image(job: Job) -> str:
    """What a job is about: its image, or the one that it copies."""
    source = job.spec.get("source")
    if not isinstance(source, dict):
        return str(job.spec.get("image") or "")
    host = str(source.get("endpoint") or "").rpartition("://")[2].rstrip("/")
    tag = f":{source['ref']}" if isinstance(source.get("ref"), str) else ""
    return f"{host}/{source.get('image') or '…'}{tag}"


def _details(job: Job) -> Iterator[tuple[str, str]]:
    yield "id", f"{job.id} (number {job.number})"
    yield "kind", job.kind
    yield "state", headline(job)
    if image := _image(job):
        yield "image", image
    for name, value in (("tenant", job.tenant), ("retry of", job.retry_of), ("attempts", job.attempt)):
        if value:
            yield name, str(value)
    if job.labels:
        yield "labels", ", ".join(f"{name}={value}" for name, value in job.labels.items())
    if job.created_at is not None:
        yield "created", f"{text.moment(job.created_at)}, {text.since(job.created_at)} ago"
    for phase in job.phases:
        yield phase.name, text.since(phase.started_at, phase.finished_at)
    targets = job.progress.get("targets")
    for target in targets if isinstance(targets, list) else ():
        if isinstance(target, dict):
            done, total = copied_bytes(target)
            error = f", {target['error']}" if target.get("error") else ""
            yield "target", f"{target.get('endpoint')} {text.size(done)} of {text.size(total)}{error}"
    if job.result is not None:
        yield "result", msgspec.json.encode(job.result).decode()


def _moment(since: str) -> str:
    """A time in ISO 8601 from `1h` (ago), or from one that has a zone."""
    if match := _AGO.fullmatch(since):
        return (datetime.now(UTC) - timedelta(seconds=int(match[1]) * _AGO_S[match[2]])).isoformat()
    try:
        moment = datetime.fromisoformat(since)
    except ValueError:
        raise CommandError(f"--since {since!r} is neither a time in ISO 8601 nor one like 90s, 30m, 1h, 7d") from None
    return (moment if moment.tzinfo else moment.astimezone()).isoformat()
