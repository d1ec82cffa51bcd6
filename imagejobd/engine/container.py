"""The containers and volumes of jobs in the engine: made with a job's mark on them, found again by it, removed.

Name and labels must agree before one is taken for a job's. A label alone proves nothing: an image hands its labels on
to the containers that strangers make of it. What a container may do is decided elsewhere (`hardening`).
"""

import io
import secrets
import tarfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import quote

import msgspec

from imagejobd.engine import errors
from imagejobd.engine.client import Engine, filters
from imagejobd.engine.hardening import volume_access, with_private_ipc
from imagejobd.model.errors import ErrorCode, NotFound, Permanent, Temporary
from imagejobd.model.ownership import INSTALLATION_LABEL, Owner, owner_of_resource

JOB_LABEL = "imagejobd.job"
# The engine copies into the volumes of an image's VOLUMEs what the image has there, before it answers.
CREATE_TIMEOUT_S = 300.0
# Anonymous volumes go with their container: nothing else could find them again.
FORCE_WITH_VOLUMES = [("force", "1"), ("v", "1")]


class Volume(msgspec.Struct, frozen=True):
    """A volume; `mountpoint` is where it is on the engine's machine."""

    name: str = msgspec.field(name="Name", default="")
    labels: dict[str, str] | None = msgspec.field(name="Labels", default=None)
    mountpoint: str = msgspec.field(name="Mountpoint", default="")

    def label(self, name: str) -> str:
        return (self.labels or {}).get(name, "")


class _Volumes(msgspec.Struct, frozen=True):
    volumes: list[Volume] | None = msgspec.field(name="Volumes", default=None)


class _NewContainer(msgspec.Struct, frozen=True):
    id: str = msgspec.field(name="Id")


class _Container(msgspec.Struct, frozen=True):
    id: str = msgspec.field(name="Id")
    names: list[str] | None = msgspec.field(name="Names", default=None)
    labels: dict[str, str] | None = msgspec.field(name="Labels", default=None)


def job_labels(engine: Engine, uuid: str) -> dict[str, str]:
    """The labels of all that is made for a job."""
    return {JOB_LABEL: uuid, INSTALLATION_LABEL: engine.installation}


async def list_volumes(engine: Engine, label: str) -> list[Volume]:
    """All volumes with that label, which may be `name=value`."""
    return (await engine.request_json("GET", "volumes", _Volumes, params=[filters(label=[label])])).volumes or []


async def make_volume(engine: Engine, name: str, labels: Mapping[str, str]) -> Volume:
    """Make a volume that is marked as this installation's."""
    body = {"Name": name, "Labels": {**labels, INSTALLATION_LABEL: engine.installation}}
    return await engine.request_json("POST", "volumes/create", Volume, body=body)


async def remove_volume(engine: Engine, name: str) -> None:
    """One that is not there is no error."""
    with suppress(NotFound):
        await engine.request("DELETE", f"volumes/{quote(name, safe='')}")


async def make_container(engine: Engine, name: str, body: dict[str, Any]) -> str:
    """Returns its id."""
    try:
        return await _create(engine, name, body)
    except Permanent as fault:
        if fault.code is not ErrorCode.RUN_FAILED or "ipc" not in fault.message.lower():
            raise
        return await _create(engine, name, with_private_ipc(body))


@asynccontextmanager
async def volume_container(engine: Engine, body: dict[str, Any], name: str) -> AsyncIterator[tuple[str, str]]:
    """A container that never starts, made as `body` says, and the folder in its root that is the job's volume.

    No image can have anything there: its own /data may be a symbolic link, and so may any path that it can know of
    before. After an error in the block the container stays for `discard`.
    """
    folder = f"imagejobd-{secrets.token_hex(16)}"
    container = await make_container(engine, name, volume_access(body, f"/{folder}"))
    yield container, folder
    await _remove(engine, container)


async def let_all_users_write(engine: Engine, body: dict[str, Any], name: str) -> None:
    """Let every user write to the volume's root, which belongs to the engine's root.

    The engine changes a mode only by unpacking an archive over it, for which the root must not be read-only.
    """
    async with volume_container(engine, body, name) as (container, folder):
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            member = tarfile.TarInfo(folder)
            member.type, member.mode = tarfile.DIRTYPE, 0o777
            tar.addfile(member)
        path, tree = f"containers/{container}/archive", archive.getvalue()
        await engine.request("PUT", path, params=[("path", "/")], body=tree, judge=errors.of_container)


async def leftovers(engine: Engine) -> set[Owner]:
    """The owners of all containers and volumes of jobs, those of other installations too."""
    return {owner for _, owner in [*await _containers(engine, JOB_LABEL), *await _volumes(engine, JOB_LABEL)]}


async def discard(engine: Engine, uuid: str) -> None:
    """Kill and remove every container of a job of ours, then its volumes. Safe to repeat; what is gone is no error.

    Raises `Temporary(engine_unavailable)`, and `Temporary(conflict)` for a volume that another container uses.
    """
    ours = ("", engine.installation)
    for container, owner in await _containers(engine, f"{JOB_LABEL}={uuid}"):
        if owner.installation in ours:
            await _remove(engine, container)
    for volume, owner in await _volumes(engine, f"{JOB_LABEL}={uuid}"):
        if owner.installation in ours:
            await remove_volume(engine, volume)


async def _create(engine: Engine, name: str, body: dict[str, Any]) -> str:
    answer = await engine.request_json(
        "POST",
        "containers/create",
        _NewContainer,
        params=[("name", name)],
        body=body,
        judge=errors.of_container,
        timeout_s=max(CREATE_TIMEOUT_S, engine.settings.request_timeout_s),
    )
    return answer.id


async def _containers(engine: Engine, label: str) -> list[tuple[str, Owner]]:
    """Id and owner of each; those that run no longer too."""
    params = [("all", "1"), filters(label=[label])]
    listed = await engine.request_json("GET", "containers/json", list[_Container], params=params)
    return [(one.id, owner) for one in listed if (owner := _owner(one.names or [], one.labels or {}))]


async def _volumes(engine: Engine, label: str) -> list[tuple[str, Owner]]:
    """Name and owner of each."""
    volumes = await list_volumes(engine, label)
    return [(one.name, owner) for one in volumes if (owner := _owner([one.name], one.labels or {}))]


def _owner(names: list[str], labels: dict[str, str]) -> Owner | None:
    """Whom name and labels agree on; None where they do not."""
    labelled = Owner(labels.get(INSTALLATION_LABEL, ""), labels.get(JOB_LABEL, ""))
    return labelled if labelled in {owner_of_resource(name.removeprefix("/")) for name in names} else None


async def _remove(engine: Engine, container: str) -> None:
    path = f"containers/{container}"
    try:
        with suppress(NotFound):
            await engine.request("DELETE", path, params=FORCE_WITH_VOLUMES)
    except Temporary as fault:
        if fault.code is not ErrorCode.CONFLICT:
            raise
        # Somebody else is at it already; its volumes can go only after it.
        with suppress(NotFound):
            await engine.request("POST", f"{path}/wait", params=[("condition", "removed")])
