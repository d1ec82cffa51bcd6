"""Exporting an image as the tar that `docker save` gives.

By id, so that the archive names none of the engine's own tags. The engine reports a failure in the middle by an error
behind what it has sent, or just ends: only a tar with its end is whole.
"""

import re
from collections.abc import AsyncGenerator

import msgspec

from imagejobd.engine import faults
from imagejobd.engine.client import Engine
from imagejobd.engine.images import image_path
from imagejobd.model.errors import ErrorCode, Fault, Permanent

# POSIX pax: two blocks of zeros.
_END_BYTES = 1024
# With status 500 and the path of a file, when an id is asked for (read on 20.10).
_ABSENT = re.compile(r"failed to get digest sha256:[0-9a-f]{64}: .*no such file")


class _Error(msgspec.Struct, frozen=True):
    """What the engine appends when it fails after the beginning."""

    error: str = ""


async def export(engine: Engine, image_id: str) -> AsyncGenerator[bytes, None]:
    """The blocks of the tar as they arrive; the image was whole when the iteration ends.

    Read it under `contextlib.aclosing`: closing it ends the export. Raises `Permanent(not_found)` when there is no such
    image, and `Temporary(engine_unavailable)`, also after `idle_timeout_s` of silence and for a tar without its end.
    """
    tail = b""
    idle_timeout_s = engine.settings.idle_timeout_s
    path = f"{image_path(image_id)}/get"
    async with engine.exchange("GET", path, judge=_judge, idle_timeout_s=idle_timeout_s) as reply:
        async for block in reply.blocks:
            tail = (tail + block[-_END_BYTES:])[-_END_BYTES:]
            yield block
    if tail != bytes(_END_BYTES):
        raise faults.ended_early(f"the export of {image_id} has no end{_told(tail)}")


def _judge(status: int, message: str) -> Fault:
    if _ABSENT.search(message):
        return Permanent(ErrorCode.NOT_FOUND, "the Docker Engine does not have that image")
    return faults.of_engine(status, message)


def _told(tail: bytes) -> str:
    """What the engine says of why, where it does."""
    try:
        said = msgspec.json.decode(tail[tail.rfind(b'{"errorDetail"') :].strip(), type=_Error)
    except faults.UNDECODABLE:
        return ""
    return f": {said.error[: faults.MESSAGE_MAX_CHARS]}"
