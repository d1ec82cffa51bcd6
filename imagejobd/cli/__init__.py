"""The command line: `imagejobd serve` is the daemon, most other commands are its client.

Each command is imported when it is called, and named here until then: the help, and the completion at each press of a
key, take a tenth of a second with click alone, and a second with all that the daemon needs.
"""

import importlib
from typing import Any

import click

from imagejobd import __version__

# By heading of the help: the commands, each with its module and what it does.
COMMANDS: dict[str, dict[str, tuple[str, str]]] = {
    "Jobs": {
        "build": ("build", "Build a folder and push the image."),
        "copy": ("submit", "Copy an image from one registry to others."),
        "run": ("submit", "Build a Dockerfile, run it in the sandbox, show its number."),
        "dispatch": ("submit", "Hand in a payload: a Dockerfile, a context, an image, any file."),
        "jobs": ("jobs", "List jobs."),
        "show": ("jobs", "Show one job."),
        "logs": ("jobs", "Print a job's log."),
        "wait": ("jobs", "Wait until jobs have ended."),
        "cancel": ("jobs", "Cancel jobs."),
        "retry": ("jobs", "Try failed or cancelled jobs again."),
    },
    "Queue": {
        "queue": ("queue", "Show what waits and runs, by kind."),
        "pause": ("queue", "Start no more jobs of a kind, or of any."),
        "resume": ("queue", "Start jobs again."),
        "schedules": ("schedules", "Show the jobs that come by themselves."),
    },
    "Daemon": {
        "serve": ("service", "Run the daemon in the foreground."),
        "check-config": ("service", "Check the configuration and print it."),
        "token": ("service", "Mint a token and print it, for tests and scripts."),
        "doctor": ("doctor", "Look for what is wrong on this machine."),
        "backup": ("backup", "Back up the state folder while the daemon runs."),
        "completion": ("completion", "Print the completion for a shell."),
    },
}
_MODULES = {name: module for group in COMMANDS.values() for name, (module, _) in group.items()}


class _Commands(click.Group):
    """Commands that are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _MODULES:
            return None
        module = importlib.import_module(f"imagejobd.cli.{_MODULES[cmd_name]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for heading, commands in COMMANDS.items():
            with formatter.section(heading):
                formatter.write_dl([(name, summary) for name, (_, summary) in commands.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        summaries = {name: summary for group in COMMANDS.values() for name, (_, summary) in group.items()}
        commands = [CompletionItem(name, help=summary) for name, summary in summaries.items()]
        options = click.Command.shell_complete(self, ctx, incomplete)
        return [item for item in commands if item.value.startswith(incomplete)] + options


@click.command(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 the job succeeded, 1 it failed, 2 wrong usage or refused, 3 it was cancelled, 4 the daemon "
    "cannot be reached, 5 it has not ended yet, 130 Ctrl-C while the job goes on.",
)
@click.version_option(__version__, prog_name="imagejobd")
def main() -> None:
    """A daemon for image jobs: builds, runs, dispatches and distributions, kept in a durable queue; and its client.

    The client asks the daemon at $IMAGEJOBD_URL (http://127.0.0.1:8080, or unix:/path) with the token $IMAGEJOBD_TOKEN.
    """
