"""What the commands of the client share: which daemon, as whom, how answers are printed, and jobs as they read them."""

import datetime as dt
import functools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import click
import msgspec

from imagejobd.cli import text
from imagejobd.cli.api import DEFAULT_URL, Answer, Api
from imagejobd.cli.errors import CommandError, Exit

TOKEN_MAX_BYTES = 64 * 1024

# One without a zone cannot be compared with now.
Moment = Annotated[dt.datetime, msgspec.Meta(tz=True)]


class Failure(msgspec.Struct, frozen=True):
    """Why a job failed."""

    code: str
    message: str


class Phase(msgspec.Struct, frozen=True):
    """One step of one attempt."""

    name: str
    attempt: int = 1
    started_at: Moment | None = None
    finished_at: Moment | None = None


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A job as the daemon shows it, as far as the client reads it. Older daemons leave fields out."""

    id: str
    kind: str
    state: str
    number: int = 0
    phase: str | None = None
    tenant: str = ""
    spec: dict[str, Any] = {}
    progress: dict[str, Any] = {}
    result: dict[str, Any] | None = None
    error: Failure | None = None
    attempt: int = 0
    labels: dict[str, str] = {}
    submitter: dict[str, Any] = {}
    retry_of: str | None = None
    waiting_for: str | None = None
    position: int | None = None
    eta_seconds: float | None = None
    log_bytes: int = 0
    cancel_requested_at: Moment | None = None
    created_at: Moment | None = None
    started_at: Moment | None = None
    finished_at: Moment | None = None
    phases: list[Phase] = []

    @property
    def has_ended(self) -> bool:
        return self.state not in ("queued", "running")

    @property
    def exit_code(self) -> Exit:
        ends = {"succeeded": Exit.SUCCEEDED, "failed": Exit.FAILED, "cancelled": Exit.CANCELLED}
        return ends.get(self.state, Exit.NOT_ENDED)


class Session:
    """The daemon that a command asks, and how it prints: `as_json` for programs."""

    def __init__(self, api: Api, *, as_json: bool) -> None:
        self.api = api
        self.as_json = as_json

    def print_json(self, answer: Answer) -> None:
        """The daemon's own answer in one line, or indented on a terminal."""
        is_terminal = sys.stdout.isatty()
        value = msgspec.json.format(bytes(answer.read(msgspec.Raw)), indent=2 if is_terminal else -1).decode()
        click.echo(text.plain(value) if is_terminal else value)

    def ask_job(self, job: str, *, query: dict[str, object] | None = None, timeout_s: float = 60.0) -> Answer:
        """One job by UUID or number. Raises as `Api.ask`."""
        return self.api.ask(f"/jobs/{segment(job)}", query=query, timeout_s=timeout_s)

    def job(self, job: str) -> Job:
        return self.ask_job(job).read(Job)


def connected(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say which daemon it asks, and a `Session` as its first argument."""

    @click.option("--url", help="The daemon: http://host:port or unix:/path. [$IMAGEJOBD_URL]")
    @click.option("--token-file", help="Read the token from this file ('-': standard input). [$IMAGEJOBD_TOKEN]")
    @click.option("--json", "as_json", is_flag=True, help="Print JSON, as the daemon answers it.")
    @functools.wraps(command)
    def with_session(*args: Any, **kwargs: Any) -> None:
        url, token_file, as_json = (kwargs.pop(name) for name in ("url", "token_file", "as_json"))
        token = os.environ.get("IMAGEJOBD_TOKEN", "") if token_file is None else secret_from(str(token_file))
        api = Api(str(url or os.environ.get("IMAGEJOBD_URL") or DEFAULT_URL), token.strip())
        try:
            command(Session(api, as_json=bool(as_json)), *args, **kwargs)
        except KeyboardInterrupt:
            raise CommandError("interrupted", Exit.INTERRUPTED) from None
        except UnicodeEncodeError:
            raise CommandError("an argument is not UTF-8 text") from None

    return with_session


def secret_from(path: str) -> str:
    """What a file holds, or standard input for `-`, without the line end."""
    try:
        if path == "-":
            return sys.stdin.read(TOKEN_MAX_BYTES).rstrip("\r\n")
        with Path(path).open(encoding="utf-8") as file:
            return file.read(TOKEN_MAX_BYTES).rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise CommandError(f"cannot read {path}: {reason}") from None


def segment(job: str) -> str:
    """A job's name as one segment of a path. Raises `CommandError` for what no job is called."""
    if not job or not job.isascii() or not all(char.isalnum() or char == "-" for char in job):
        raise CommandError(f"{job!r} is no job: give its id (a UUID) or its number")
    return job


def pairs(values: tuple[str, ...], option: str) -> Iterator[tuple[str, str]]:
    """`NAME=VALUE` of a repeated option. Raises `CommandError`."""
    for pair in values:
        name, mark, value = pair.partition("=")
        if not mark or not name:
            raise CommandError(f"{option} {pair!r} is not NAME=VALUE")
        yield name, value
