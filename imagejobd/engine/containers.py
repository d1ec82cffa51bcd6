"""Containers and volumes in the engine, made and removed.

Two sorts are known here: those of the sandbox, which are made here, and those of the classic builder, which makes its
own and normally takes them away itself.
"""

import io
import secrets
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from imagejobd.engine import faults
from imagejobd.engine.belongings import labels_of, remove
from imagejobd.engine.client import Engine
from imagejobd.engine.confinement import opened, with_private_ipc
from imagejobd.model.errors import ErrorCode, Permanent

# The engine copies into the volumes of an image's VOLUMEs what the image has there, before it answers.
CREATE_TIMEOUT_S = 300.0


class _Volume(msgspec.Struct, frozen=True):
    mountpoint: str = msgspec.field(name="Mountpoint", default="")


class _Created(msgspec.Struct, frozen=True):
    id: str = msgspec.field(name="Id")


class _Container(msgspec.Struct, frozen=True):
    created: datetime = msgspec.field(name="Created")


async def remove_container(engine: Engine, container: str, *, created_after: datetime) -> None:
    """Kill and remove one container, with its anonymous volumes, which nothing else could find again.

    One that is older than `created_after` is left alone: its id was read in a build's output, and a RUN step may print
    the id of somebody else's. What is gone already is no error.
    """
    path = f"containers/{quote(container, safe='')}"
    try:
        if (await engine.request_json("GET", f"{path}/json", _Container)).created > created_after:
            await engine.request("DELETE", path, params=[("force", "1"), ("v", "1")])
    except Permanent as fault:
        if fault.code is not ErrorCode.NOT_FOUND:
            raise


async def make_volume(engine: Engine, name: str, uuid: str) -> Path:
    """Returns where it is on the engine's machine."""
    body = {"Name": name, "Labels": labels_of(engine, uuid)}
    return Path((await engine.request_json("POST", "volumes/create", _Volume, body=body)).mountpoint)


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
        judge=faults.of_container,
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
            judge=faults.of_container,
        )


def _folder_for_all(path: str) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        member = tarfile.TarInfo(path)
        member.type, member.mode = tarfile.DIRTYPE, 0o777
        tar.addfile(member)
    return archive.getvalue()
