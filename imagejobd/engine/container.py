"""The engine's disk, where it can be seen from here: containers fill it through their volume, which has no size.

Containers and volumes in the engine, made and removed.

Two sorts are known here: those of the sandbox, which are made here, and those of the classic builder, which makes its
own and normally takes them away itself.

The containers and volumes of a job: how they are marked, which there are, and how they go.

Name and labels must agree before one is taken for a job's. A label alone proves nothing: an image hands its labels on
to the containers that strangers make of it. Images have a name only; `building` looks after them.
"""

import io
import os
import secrets
import tarfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from imagejobd.engine import errors
from imagejobd.engine.client import Engine
from imagejobd.engine.hardening import opened, with_private_ipc
from imagejobd.model.errors import ErrorCode, NotFound, Permanent, Temporary
from imagejobd.model.ownership import INSTALLATION_LABEL, Owner, owner_of_resource


class FreeSpace(msgspec.Struct, frozen=True):
    """What is left of a file system. A file system without inodes counts as having all of them free."""

    free_bytes: int
    free_inodes_share: float = 1.0


# The space where a path is; None where it cannot be seen.
Probe = Callable[[Path], FreeSpace | None]

# Below this share of all inodes, services begin to fail that never look at bytes.
INODES_FREE_MIN_SHARE = 0.01


def free_space(path: Path) -> FreeSpace | None:
    """Of the file system at `path`, or at the nearest folder above it that we may look into.

    None where there is no such path: the engine is on another machine, or in another mount namespace.
    """
    if not path.is_absolute():
        return None  # a volume whose driver does not say where it is
    while True:
        try:
            found = os.statvfs(path)
        except PermissionError:
            path = path.parent
        except OSError:
            return None
        else:
            share = found.f_favail / found.f_files if found.f_files else 1.0
            return FreeSpace(found.f_bavail * found.f_frsize, share)


def shortage(space: FreeSpace, *, free_min_bytes: int) -> str:
    """What there is too little of, in words; empty when all is well."""
    if space.free_bytes < free_min_bytes:
        return f"{space.free_bytes} bytes are free, and {free_min_bytes} have to stay so"
    if space.free_inodes_share < INODES_FREE_MIN_SHARE:
        return f"{space.free_inodes_share:.2%} of its inodes are free, and {INODES_FREE_MIN_SHARE:.0%} have to stay so"
    return ""


# The engine copies into the volumes of an image's VOLUMEs what the image has there, before it answers.
CREATE_TIMEOUT_S = 300.0


class _NewVolume(msgspec.Struct, frozen=True):
    mountpoint: str = msgspec.field(name="Mountpoint", default="")


class _Created(msgspec.Struct, frozen=True):
    id: str = msgspec.field(name="Id")


class _NewContainer(msgspec.Struct, frozen=True):
    created: datetime = msgspec.field(name="Created")


async def remove_container(engine: Engine, container: str, *, created_after: datetime) -> None:
    """Kill and remove one container, with its anonymous volumes, which nothing else could find again.

    One that is older than `created_after` is left alone: its id was read in a build's output, and a RUN step may print
    the id of somebody else's. What is gone already is no error.
    """
    path = f"containers/{quote(container, safe='')}"
    try:
        if (await engine.request_json("GET", f"{path}/json", _NewContainer)).created > created_after:
            await engine.request("DELETE", path, params=[("force", "1"), ("v", "1")])
    except NotFound:
        pass


async def make_volume(engine: Engine, name: str, uuid: str) -> Path:
    """Returns where it is on the engine's machine."""
    body = {"Name": name, "Labels": labels_of(engine, uuid)}
    return Path((await engine.request_json("POST", "volumes/create", _NewVolume, body=body)).mountpoint)


async def make_container(engine: Engine, name: str, body: dict[str, Any]) -> str:
    """Returns its id."""
    try:
        return await _created(engine, name, body)
    except Permanent as fault:
        if fault.code is not ErrorCode.RUN_FAILED or "ipc" not in fault.message.lower():
            raise
        return await _created(engine, name, with_private_ipc(body))


async def _created(engine: Engine, name: str, body: dict[str, Any]) -> str:
    answer = await engine.request_json(
        "POST",
        "containers/create",
        _Created,
        params=[("name", name)],
        body=body,
        judge=errors.of_container,
        timeout_s=max(CREATE_TIMEOUT_S, engine.settings.request_timeout_s),
    )
    return answer.id


@asynccontextmanager
async def beside(engine: Engine, body: dict[str, Any], name: str) -> AsyncIterator[tuple[str, str]]:
    """A container beside the real one, which never starts, and the folder in its root that is the volume.

    No image can have anything there: its own /data may be a symbolic link, and so may any path that it can know of
    before. Left by an error, the container stays for `discard`.
    """
    folder = f"imagejobd-{secrets.token_hex(16)}"
    container = await make_container(engine, name, opened(body, f"/{folder}"))
    yield container, folder
    await remove(engine, container)


async def open_to_all(engine: Engine, body: dict[str, Any], name: str) -> None:
    """Let every user write to the volume's root, which belongs to the engine's root.

    The engine changes a mode only by unpacking an archive over it, for which the root must not be read-only.
    """
    async with beside(engine, body, name) as (container, folder):
        await engine.request(
            "PUT",
            f"containers/{container}/archive",
            params=[("path", "/")],
            body=_folder_for_all(folder),
            judge=errors.of_container,
        )


def _folder_for_all(path: str) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        member = tarfile.TarInfo(path)
        member.type, member.mode = tarfile.DIRTYPE, 0o777
        tar.addfile(member)
    return archive.getvalue()


LABEL = "imagejobd.job"


class _Container(msgspec.Struct, frozen=True):
    id: str = msgspec.field(name="Id")
    names: list[str] | None = msgspec.field(name="Names", default=None)
    labels: dict[str, str] | None = msgspec.field(name="Labels", default=None)


class _Volume(msgspec.Struct, frozen=True):
    name: str = msgspec.field(name="Name")
    labels: dict[str, str] | None = msgspec.field(name="Labels", default=None)


class _Volumes(msgspec.Struct, frozen=True):
    volumes: list[_Volume] | None = msgspec.field(name="Volumes", default=None)


def labels_of(engine: Engine, uuid: str) -> dict[str, str]:
    """The labels of all that is made for a job."""
    return {LABEL: uuid, INSTALLATION_LABEL: engine.installation}


async def leftovers(engine: Engine) -> set[Owner]:
    """The owners of all containers and volumes of jobs, those of other installations too."""
    return {owner for _, owner in [*await _containers(engine, LABEL), *await _volumes(engine, LABEL)]}


async def discard(engine: Engine, uuid: str) -> None:
    """Kill and remove every container of a job of ours, then its volumes. Safe to repeat; what is gone is no error.

    Raises `Temporary(engine_unavailable)`, and `Temporary(conflict)` for a volume that another container uses.
    """
    ours = ("", engine.installation)
    for container, owner in await _containers(engine, f"{LABEL}={uuid}"):
        if owner.installation in ours:
            await remove(engine, container)
    for volume, owner in await _volumes(engine, f"{LABEL}={uuid}"):
        if owner.installation in ours:
            await _absent_is_fine(engine, "DELETE", f"volumes/{volume}")


async def _containers(engine: Engine, label: str) -> list[tuple[str, Owner]]:
    """Id and owner of each; those that run no longer too."""
    params = [("all", "1"), ("filters", _filters(label))]
    listed = await engine.request_json("GET", "containers/json", list[_Container], params=params)
    owned = [(found.id, _owner(found.names or [], found.labels or {})) for found in listed]
    return [(container, owner) for container, owner in owned if owner]


async def _volumes(engine: Engine, label: str) -> list[tuple[str, Owner]]:
    """Name and owner of each."""
    listed = await engine.request_json("GET", "volumes", _Volumes, params=[("filters", _filters(label))])
    owned = [(found.name, _owner([found.name], found.labels or {})) for found in listed.volumes or ()]
    return [(volume, owner) for volume, owner in owned if owner]


def _owner(names: list[str], labels: dict[str, str]) -> Owner | None:
    """Whom name and labels agree on; None where they do not."""
    labelled = Owner(labels.get(INSTALLATION_LABEL, ""), labels.get(LABEL, ""))
    return labelled if labelled in {owner_of_resource(name.removeprefix("/")) for name in names} else None


async def remove(engine: Engine, container: str) -> None:
    """Kill and remove one container by id or name, with its anonymous volumes; one that is gone is no error."""
    path = f"containers/{container}"
    try:
        await _absent_is_fine(engine, "DELETE", path, ("force", "1"), ("v", "1"))
    except Temporary as fault:
        if fault.code is not ErrorCode.CONFLICT:
            raise
        # Somebody else is at it already; its volumes can go only after it.
        await _absent_is_fine(engine, "POST", f"{path}/wait", ("condition", "removed"))


async def _absent_is_fine(engine: Engine, method: str, path: str, *params: tuple[str, str]) -> None:
    with suppress(NotFound):
        await engine.request(method, path, params=params)


def _filters(label: str) -> str:
    return msgspec.json.encode({"label": [label]}).decode()
