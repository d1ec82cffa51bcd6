"""The containers and volumes of a job: how they are marked, which there are, and how they go.

Name and labels must agree before one is taken for a job's. A label alone proves nothing: an image hands its labels on
to the containers that strangers make of it. Images have a name only; `building` looks after them.
"""

import msgspec

from imagejobd.engine.client import Engine
from imagejobd.model.errors import ErrorCode, Permanent, Temporary
from imagejobd.model.reserved import INSTALLATION_LABEL, Owner, owner_of_resource

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
    try:
        await engine.request(method, path, params=params)
    except Permanent as fault:
        if fault.code is not ErrorCode.NOT_FOUND:
            raise


def _filters(label: str) -> str:
    return msgspec.json.encode({"label": [label]}).decode()
