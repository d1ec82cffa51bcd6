"""`imagejobd backup`: the state folder as one tar, while the daemon works on it."""

import os
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import click
import msgspec

from imagejobd.cli import text
from imagejobd.cli.errors import CommandError, Exit
from imagejobd.cli.service import config_option, load
from imagejobd.daemon import DATABASE_NAME
from imagejobd.model.errors import Fault
from imagejobd.store.files import fsync_folder
from imagejobd.store.sqlite.backup import copy_database
from imagejobd.store.vault import KEY_FILE_NAME

BLOBS_NAME = "blobs"


class Backup(msgspec.Struct, frozen=True):
    """What a backup holds."""

    jobs: int
    blobs: int
    bytes: int
    has_key: bool


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path))
@config_option
@click.option("--state-dir", type=click.Path(path_type=Path), help="The state folder, instead of server.state_dir.")
@click.option("--json", "as_json", is_flag=True, help="Print what was backed up as JSON.")
def backup(file: Path, path: Path | None, state_dir: Path | None, as_json: bool) -> None:
    """Write database, payloads and key of the state folder to FILE, a tar ('-': stdout), while the daemon runs.

    To restore, stop the daemon, unpack the tar into an empty state folder as its user, and start it.

    \b
    Example:
      imagejobd backup /var/backups/imagejobd.tar
      tar -xpf imagejobd.tar -C /var/lib/imagejobd
    """
    folder = state_dir or Path(load(path).server.state_dir)
    try:
        with _target(file) as (target, draft_folder):
            done = write_backup(folder, target, draft_folder)
    except OSError as error:
        what = error.filename or file
        raise CommandError(f"cannot back up: {what}: {error.strerror}", Exit.FAILED) from None
    except Fault as fault:
        raise CommandError(fault.message, Exit.FAILED) from None
    if as_json:
        click.echo(msgspec.json.encode(done), err=str(file) == "-")
        return
    words = f"{done.jobs} jobs, {done.blobs} payloads and contexts, {text.size(done.bytes)}"
    click.echo(f"imagejobd: backed up {folder}: {words}", err=True)
    if not done.has_key:
        click.echo(
            f"imagejobd: there is no {KEY_FILE_NAME} in it: keep the key (LoadCredential=imagejobd-key) apart, without "
            "it waiting jobs lose their passwords",
            err=True,
        )


def write_backup(state_dir: Path, target: BinaryIO, draft_folder: Path) -> Backup:
    """Write the tar to `target`; the database's copy stands in `draft_folder` meanwhile.

    The database first: whatever payload it names is there before its job is, and for days after its end. Raises OSError
    and `Permanent(invalid)`.
    """
    blobs = bytes_count = 0
    with (
        tempfile.NamedTemporaryFile(dir=draft_folder, prefix=".imagejobd-backup-") as copy,
        tarfile.open(fileobj=target, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        jobs = copy_database(state_dir / DATABASE_NAME, Path(copy.name))
        owner = (state_dir / DATABASE_NAME).stat()
        _add(tar, Path(copy.name), DATABASE_NAME, owner)
        key = state_dir / KEY_FILE_NAME
        if key.exists():
            _add(tar, key, KEY_FILE_NAME, key.stat())
        for path in _blob_tree(state_dir):
            try:
                status = path.lstat()
                _add(tar, path, path.relative_to(state_dir).as_posix(), status)
            except FileNotFoundError:  # its time was over meanwhile
                continue
            blobs += path.is_file()
            bytes_count += status.st_size if path.is_file() else 0
        bytes_count += Path(copy.name).stat().st_size
    return Backup(jobs, blobs, bytes_count, key.exists())


def _blob_tree(state_dir: Path) -> Iterator[Path]:
    """Every folder and file of the content store, folders first."""
    yield state_dir / BLOBS_NAME
    for folder, folders, files in os.walk(state_dir / BLOBS_NAME):
        folders.sort()
        yield from (Path(folder, name) for name in (*folders, *sorted(files)))


def _add(tar: tarfile.TarFile, path: Path, name: str, owner: os.stat_result) -> None:
    member = tar.gettarinfo(path, arcname=name)
    member.mode, member.uid, member.gid = owner.st_mode & 0o7777, owner.st_uid, owner.st_gid
    if not member.isreg():
        tar.addfile(member)
        return
    with path.open("rb") as file:
        tar.addfile(member, file)


@contextmanager
def _target(file: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """Where the tar goes, under its name only when it is whole; and a folder for drafts."""
    if str(file) == "-":
        yield sys.stdout.buffer, Path(tempfile.gettempdir())
        return
    folder = file.absolute().parent
    # Under a name that nobody knows before, and closed to others: who could open it first would read the key.
    descriptor, name = tempfile.mkstemp(dir=folder, prefix=".imagejobd-backup-")
    try:
        with os.fdopen(descriptor, "wb") as target:
            yield target, folder
            target.flush()
            os.fsync(target.fileno())
        Path(name).rename(file)
        fsync_folder(folder)
    finally:
        Path(name).unlink(missing_ok=True)
