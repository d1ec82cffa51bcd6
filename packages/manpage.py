"""Prints imagejobd(1), made from the help of the commands: `python packaging/manpage.py [DATE]`."""

import inspect
import sys
from collections.abc import Iterable, Iterator

import click

from imagejobd import __version__
from imagejobd.cli import COMMANDS, main

# What no help tells.
FILES = {
    "/etc/imagejobd/config.toml": "The configuration of the daemon. Without it, or where it is silent, defaults apply.",
    "/var/lib/imagejobd": "The state folder: database, payloads, and the key that encrypts passwords.",
}
ENVIRONMENT = {
    "IMAGEJOBD_URL": "The daemon that the client asks: http://127.0.0.1:8080 (the default), https://…, or unix:/path.",
    "IMAGEJOBD_TOKEN": "The token that the client shows.",
    "NO_COLOR": "Set to anything: no colours.",
    "DOCKER_HOST": "The Docker Engine that the daemon uses, where its configuration names none.",
}


def page(date: str) -> Iterator[str]:
    """The lines of the page."""
    context = click.Context(main, info_name="imagejobd")
    yield f'.TH IMAGEJOBD 1 "{date}" "imagejobd {__version__}" "User Commands"'
    yield from (".SH NAME", r"imagejobd \- durable image jobs: builds, runs, dispatches and copies")
    yield from (".SH SYNOPSIS", ".B imagejobd", r"\fICOMMAND\fR [\fIOPTION\fR]... [\fIARGUMENT\fR]...")
    yield from (".SH DESCRIPTION", *_paragraphs(main.help or ""))
    for heading, commands in COMMANDS.items():
        yield f".SH COMMANDS: {heading.upper()}"
        for name in commands:
            command = main.get_command(context, name)
            assert command is not None, name
            yield from _command(command, click.Context(command, info_name=f"imagejobd {name}"))
    yield from (".SH ENVIRONMENT", *_list(ENVIRONMENT.items()))
    yield from (".SH FILES", *_list(FILES.items()))
    yield from (".SH EXIT STATUS", *_paragraphs(main.epilog or ""))
    yield from (".SH SEE ALSO", r"\fBdocker\fR(1), \fBsystemctl\fR(1); the manual in /usr/share/doc/imagejobd")


def _command(command: click.Command, context: click.Context) -> Iterator[str]:
    usage = " ".join([str(context.info_name), *command.collect_usage_pieces(context)])
    yield f'.SS "{_escaped(usage)}"'
    yield from _paragraphs(command.help or "")
    records = [parameter.get_help_record(context) for parameter in command.params]
    # Arguments stand in the usage, and the help tells what they are.
    yield from _list(record for record in records if record is not None and record[1])


def _list(items: Iterable[tuple[str, str]]) -> Iterator[str]:
    for term, explanation in items:
        yield from (".TP", rf"\fB{_escaped(term)}\fR", _escaped(explanation))


def _paragraphs(text: str) -> Iterator[str]:
    """Click's help as roff. A paragraph after a line with `\\b` keeps its lines."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        yield ".PP"
        if paragraph.startswith("\b\n"):
            yield from (".nf", *map(_escaped, paragraph.splitlines()[1:]), ".fi")
        else:
            yield _escaped(" ".join(paragraph.split()))


def _escaped(text: str) -> str:
    """Text that roff prints as it is."""
    plain = text.replace("\\", r"\e").replace("-", r"\-").replace('"', r"\(dq").replace("'", r"\(aq")
    return rf"\&{plain}" if plain.startswith(".") else plain


if __name__ == "__main__":
    sys.stdout.write("\n".join(page(*(sys.argv[1:] or [""]))) + "\n")
