"""`imagejobd build`."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from imagejobd.cli import text
from imagejobd.cli.errors import CommandError
from imagejobd.cli.pack import Folder
from imagejobd.cli.session import Job, Session, connected, pairs, secret_from
from imagejobd.cli.submit import job_options, submit_and_watch
from imagejobd.model.errors import Fault
from imagejobd.model.reference import ImageReference

SHOW_EVERY_S = 0.2
CLEAR_LINE = "\r\x1b[2K"


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-t", "--tag", "tags", multiple=True, required=True, help="Where to push: registry/app:1; repeatable.")
@click.option("-f", "--file", "dockerfile", type=click.Path(path_type=Path), help="The Dockerfile. [FOLDER/Dockerfile]")
@click.option(
    "--build-arg",
    "build_args",
    multiple=True,
    metavar="NAME=VALUE",
    help="A build argument; NAME alone takes it from the environment.",
)
@click.option("--image-label", "image_labels", multiple=True, metavar="NAME=VALUE", help="A label of the image.")
@click.option("--target", help="Build this stage.")
@click.option("--platform", help="Build for this platform: linux/amd64.")
@click.option(
    "--pull", type=click.Choice(["missing", "always", "never"]), default="missing", help="When to pull bases."
)
@click.option("--no-cache", "nocache", is_flag=True, help="Build every step anew.")
@click.option("--username", help="Log in to the registry as this user, with --password-file.")
@click.option("--password-file", help="Read the password from this file ('-': standard input).")
@job_options
@connected
def build(
    session: Session,
    folder: Path,
    tags: tuple[str, ...],
    dockerfile: Path | None,
    build_args: tuple[str, ...],
    image_labels: tuple[str, ...],
    target: str | None,
    platform: str | None,
    pull: str,
    nocache: bool,
    username: str | None,
    password_file: str | None,
    **options: Any,
) -> None:
    """Send FOLDER as docker does, with its .dockerignore, build it, push the image, and print its digest.

    What is printed on stdout is the result alone; log and progress go to stderr.

    \b
    Example:
      imagejobd build . -t registry.example/app:1
      imagejobd build . -t registry.example/app:1 -f docker/Dockerfile --build-arg VERSION=1 --no-wait
    """
    context = Folder(folder, dockerfile)
    image, further = _tags(tags)
    spec: dict[str, Any] = {
        "image": image,
        "tags": further,
        "build_args": _build_args(build_args),
        "labels": dict(pairs(image_labels, "--image-label")),
        "pull": pull,
        "nocache": nocache,
    }
    wanted = {"dockerfile_path": context.dockerfile_path, "target": target, "platform": platform, "username": username}
    spec |= {name: value for name, value in wanted.items() if value is not None}
    if password_file is not None:
        spec["password"] = secret_from(password_file)
    submit_and_watch(session, {"kind": "build", "spec": spec}, options, pieces=_shown(context), result=_pushed)


def _tags(references: tuple[str, ...]) -> tuple[str, list[str]]:
    """The image, and its further tags. Raises `CommandError` where they are not of one repository."""
    try:
        images = [ImageReference.parse(reference) for reference in references]
    except Fault as fault:
        raise CommandError(fault.message) from None
    for other in images[1:]:
        if other.repository != images[0].repository:
            raise CommandError(
                f"{other} is not in the repository of {images[0]}, and a build is pushed to one; copy it there "
                f"afterwards: imagejobd copy {images[0]} {other}"
            )
    return str(images[0]), [str(image.tag) for image in images[1:]]


def _build_args(values: tuple[str, ...]) -> dict[str, str]:
    """As docker has it: a name alone is taken from the environment, and left out where that has none."""
    texts = [f"{value}={os.environ[value]}" if value in os.environ else value for value in values]
    return dict(pairs(tuple(value for value in texts if "=" in value), "--build-arg"))


def _shown(context: Folder) -> Iterator[bytes]:
    """The context's tar, with how much of it has been sent on the terminal."""
    total = f"{text.size(context.size)} (entries: {len(context.members)})"
    is_terminal, sent, show_at = sys.stderr.isatty(), 0, 0.0
    for piece in context.tar():
        if is_terminal and time.monotonic() >= show_at:
            show_at = time.monotonic() + SHOW_EVERY_S
            click.echo(f"\rimagejobd: sent {text.size(sent)} of {total} ", err=True, nl=False)
        yield piece
        sent += len(piece)
    click.echo(f"{CLEAR_LINE if is_terminal else ''}imagejobd: sent {total}", err=True)


def _pushed(job: Job) -> str:
    result = job.result or {}
    return f"{result.get('image')}@{result.get('digest')}"
