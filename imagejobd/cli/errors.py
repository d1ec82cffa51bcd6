"""How a command of the client ends when it does not do what it was asked."""

from enum import IntEnum
from typing import IO, Any

import click


class Exit(IntEnum):
    """Exit codes, as the job's end where there is one."""

    SUCCEEDED = 0
    FAILED = 1
    USAGE = 2
    CANCELLED = 3
    UNREACHABLE = 4
    NOT_ENDED = 5
    INTERRUPTED = 130


class CommandError(click.ClickException):
    """One line or several for stderr, and the exit code."""

    def __init__(self, message: str, exit_code: Exit = Exit.USAGE) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click declares that of the class

    def show(self, file: IO[Any] | None = None) -> None:
        from imagejobd.cli.text import plain

        for line in self.message.splitlines():
            click.echo(f"imagejobd: {plain(line)}", err=True)


class Unreachable(CommandError):
    """Nobody answers, or not as imagejobd does."""

    def __init__(self, message: str) -> None:
        super().__init__(message, Exit.UNREACHABLE)


class Refused(CommandError):
    """The daemon has refused the request: the HTTP status, the stable `code` of its problem document, and its words."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
