"""`imagejobd copy`, `run` and `dispatch`: a job is submitted, and watched to its end."""

import sys
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import click
import msgspec

from imagejobd.cli import text
from imagejobd.cli.api import Answer
from imagejobd.cli.errors import CommandError
from imagejobd.cli.session import Job, Session, connected, pairs
from imagejobd.cli.view import PlainView, view_for_stderr
from imagejobd.cli.watch import finish, watch
from imagejobd.model.errors import Fault
from imagejobd.model.reference import ImageReference, is_digest

FILE_MAX_BYTES = 16 * 1024 * 1024
_BLOCK_BYTES = 256 * 1024

Submission = dict[str, Any]


def job_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of everything that submits a job."""
    for option in (
        click.option("--wait/--no-wait", default=True, help="Watch the job to its end, or print its id and go."),
        click.option("--priority", type=click.IntRange(-100, 100), default=0, help="Higher goes first."),
        click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="Label the job (not the image)."),
        click.option("--key", help="Idempotency key: with the same one the same job is found again, not made twice."),
    ):
        command = option(command)
    return command


@click.command()
@click.argument("source")
@click.argument("targets", nargs=-1, required=True)
@click.option("--overwrite", is_flag=True, help="Move tags that name another image there.")
@click.option("--platform", "platforms", multiple=True, help="Only this platform of an index: os/arch[/variant].")
@click.option("--referrers", is_flag=True, help="Signatures, SBOMs and attestations too.")
@click.option("--tags-regex", help="Instead of one tag: all that match (RE2, the whole tag).")
@click.option("--semver", help="Instead of one tag: those in this range, as npm has it.")
@click.option("--newest", type=click.IntRange(1), help="Of those tags: the N highest versions.")
@click.option("--verify-tls/--any-tls", "verify_tls", default=None, help="Check certificates, or take any.")
@click.option("--dry-run", is_flag=True, help="Say what would be copied.")
@job_options
@connected
def copy(
    session: Session,
    source: str,
    targets: tuple[str, ...],
    overwrite: bool,
    platforms: tuple[str, ...],
    referrers: bool,
    tags_regex: str | None,
    semver: str | None,
    newest: int | None,
    verify_tls: bool | None,
    dry_run: bool,
    **options: Any,
) -> None:
    """Copy the image SOURCE to TARGETS, each a registry or a whole reference; no Docker Engine takes part.

    Logins are those that the daemon has configured.

    \b
    Example:
      imagejobd copy registry/app:1 mirror-a:5000 mirror-b:5000/team/app:stable
      imagejobd copy registry/app --semver '>=2 <3' --newest 3 mirror-a:5000
    """
    wanted = {"regex": tags_regex, "semver": semver, "newest": newest}
    tags = {name: value for name, value in wanted.items() if value is not None}
    trust = {} if verify_tls is None else {"verify_tls": verify_tls}
    origin, scheme = _reference(source)
    spec: Submission = {
        "source": {"endpoint": scheme + origin.host, "image": origin.path, **trust}
        | ({"tags": tags} if tags else {"ref": origin.digest or origin.tag}),
        "targets": [_target(name, origin, bool(tags)) | {"overwrite": overwrite, **trust} for name in targets],
        "platforms": list(platforms),
        "referrers": referrers,
        "dry_run": dry_run,
    }
    submit_and_watch(session, {"kind": "distribute", "spec": spec}, options, result=_copied)


@click.command()
@click.argument("file", type=click.File("rb"))
@job_options
@connected
def run(session: Session, file: Any, **options: Any) -> None:
    """Build the Dockerfile FILE ('-': standard input), run it in the sandbox, and print the number that it writes.

    \b
    Example:
      imagejobd run perf.Dockerfile
    """
    content = _read(file, FILE_MAX_BYTES)
    try:
        dockerfile = content.decode()
    except UnicodeDecodeError:
        raise CommandError(f"{file.name} is not UTF-8 text, and so no Dockerfile") from None
    submit_and_watch(session, {"kind": "run", "spec": {"dockerfile": dockerfile}}, options, result=_measured)


@click.command()
@click.argument("file", type=click.File("rb"))
@job_options
@connected
def dispatch(session: Session, file: Any, **options: Any) -> None:
    """Hand in FILE ('-': standard input), whatever it is: a Dockerfile or a context is built, an image archive checked,
    anything else kept. Prints where what came of it is served.

    \b
    Example:
      imagejobd dispatch context.tar.gz
    """
    pieces = iter(lambda: _read(file, _BLOCK_BYTES), b"")
    submit_and_watch(session, {"kind": "dispatch", "spec": {}}, options, pieces=pieces, result=_kept)


def submit_and_watch(
    session: Session,
    submission: Submission,
    options: dict[str, Any],
    *,
    result: Callable[[Job], str],
    pieces: Iterator[bytes] | None = None,
) -> None:
    """Submit a job, with `pieces` as its context where there are any, and end as it does. `options` are those of
    `job_options`; `result` is what to print of a job that succeeded."""
    submission = submission | {"priority": options["priority"], "labels": dict(pairs(options["labels"], "--label"))}
    receipt = _submit(session, submission, options["key"], pieces)
    job = receipt.read(Job)
    if not options["wait"]:
        if session.as_json:
            session.print_json(receipt)
        else:
            click.echo(text.line(job.id))
        return
    view = PlainView() if session.as_json else view_for_stderr()
    view.note(f"job {job.id} (number {job.number})")
    ended = watch(session, job.id, view)
    sys.exit(finish(session, ended, result))


def _submit(session: Session, submission: Submission, key: str | None, pieces: Iterator[bytes] | None) -> Answer:
    headers = {"Idempotency-Key": key} if key else {}
    if pieces is None:
        return session.api.ask("/jobs", method="POST", body=submission, headers=headers)
    boundary = f"imagejobd-{uuid4().hex}"
    body = _multipart(boundary, submission, pieces)
    return session.api.send("/jobs", f"multipart/form-data; boundary={boundary}", body, headers=headers)


def _multipart(boundary: str, submission: Submission, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The job, then the context: the daemon reads them in this order."""
    part = '\r\nContent-Disposition: form-data; name="{}"\r\nContent-Type: {}\r\n\r\n'
    yield f"--{boundary}{part.format('job', 'application/json')}".encode() + msgspec.json.encode(submission)
    yield f"\r\n--{boundary}{part.format('context', 'application/octet-stream')}".encode()
    yield from pieces
    yield f"\r\n--{boundary}--\r\n".encode()


def _reference(name: str) -> tuple[ImageReference, str]:
    """An image's name, and the scheme that stands before it."""
    scheme = next((scheme for scheme in ("http://", "https://") if name.startswith(scheme)), "")
    try:
        return ImageReference.parse(name.removeprefix(scheme)), scheme
    except Fault as fault:
        raise CommandError(fault.message) from None


def _target(name: str, origin: ImageReference, has_filter: bool) -> Submission:
    """`registry`, or `registry/path[:tag]`: what is not said is as in the source."""
    scheme = next((scheme for scheme in ("http://", "https://") if name.startswith(scheme)), "")
    rest = name.removeprefix(scheme).rstrip("/")
    if "/" not in rest:
        return {"endpoint": scheme + rest}
    place, _ = _reference(rest)
    target: Submission = {"endpoint": scheme + place.host}
    if place.path != origin.path:
        target["image"] = place.path
    has_tag = ":" in rest.rpartition("/")[2]
    if has_tag and has_filter:
        raise CommandError(f"{name!r} names a tag, but several tags are copied; leave it out")
    if place.digest or is_digest(rest.rpartition("@")[2]):
        raise CommandError(f"{name!r} names a digest; an image is given a tag")
    if has_tag:
        target["ref"] = place.tag
    return target


class _Target(msgspec.Struct, frozen=True):
    endpoint: str = ""
    image: str = ""
    digest: str | None = None
    tags: dict[str, str] = {}


class _Image(msgspec.Struct, frozen=True):
    targets: list[_Target] = []


class _Result(msgspec.Struct, frozen=True):
    images: list[_Image] = []


def _copied(job: Job) -> str:
    try:
        result = msgspec.convert(job.result or {}, _Result)
    except msgspec.ValidationError:
        return msgspec.json.encode(job.result).decode()  # of another version
    return "\n".join(
        f"{target.endpoint}/{target.image}@{target.digest} "
        + ", ".join(f"{tag} {state}" for tag, state in target.tags.items())
        for image in result.images
        for target in image.targets
    )


def _measured(job: Job) -> str:
    return str((job.result or {}).get("perf"))


def _kept(job: Job) -> str:
    return f"/images/{job.number}"


def _read(file: Any, count: int) -> bytes:
    try:
        content: bytes = file.read(count)
    except OSError as error:
        raise CommandError(f"cannot read {file.name}: {error.strerror}") from None
    return content
