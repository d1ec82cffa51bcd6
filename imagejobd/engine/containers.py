"""Containers in the engine. Only the classic builder makes any, and normally takes them away itself."""

from datetime import datetime
from urllib.parse import quote

import msgspec

from imagejobd.engine.client import Engine
from imagejobd.model.errors import ErrorCode, Permanent


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
