"""What builds of the classic builder leave in the engine: containers of steps, and images without a name.

The engine removes a step's container unless it goes down meanwhile or just starts it, and keeps the images of all
stages of a build that failed, and of a good one those of all but the last. Their ids stand in nothing but a build's own
output, where a RUN step may print the id of somebody else's. So nothing goes that is older than the build, nor an image
with a name; and an image that another one was built on, or a container made of, the engine keeps itself.
"""

from datetime import datetime
from urllib.parse import quote

import msgspec
import structlog

from imagejobd.engine.classic import ClassicProgress
from imagejobd.engine.client import Engine
from imagejobd.engine.containers import remove_container
from imagejobd.model.errors import ENGINE, ErrorCode, Permanent, Temporary

# What waits to be removed, of all builds; beyond it is left.
REMAINS_MAX_COUNT = 1000

_IMAGE, _CONTAINER = "image", "container"


class _Image(msgspec.Struct, frozen=True):
    id: str = msgspec.field(name="Id")
    created: datetime = msgspec.field(name="Created")
    tags: list[str] | None = msgspec.field(name="RepoTags", default=None)


log = structlog.get_logger("imagejobd.engine")

# A sort, and a short id.
Remain = tuple[str, str]


def note_remains(engine: Engine, progress: ClassicProgress, *, began: datetime, is_built: bool) -> set[Remain]:
    """Remember what a build that is over may have left, until `remove_remains` has seen it go; returns just that."""
    images = progress.stages[:-1] if is_built else progress.stages
    found = [(_CONTAINER, progress.container), *((_IMAGE, image) for image in reversed(images))]
    noted = [remain for remain in found if remain[1]][: REMAINS_MAX_COUNT - len(engine.remains)]
    engine.remains.update(dict.fromkeys(noted, began))
    return set(noted)


async def remove_remains(engine: Engine) -> None:
    """Remove what is remembered; what is in use stays so. Raises `Temporary` when the engine is away."""
    for remain, began in list(engine.remains.items()):
        sort, short_id = remain
        try:
            if sort == _CONTAINER:
                await remove_container(engine, short_id, created_after=began)
            else:
                await _remove_image(engine, short_id, created_after=began)
        except Temporary as fault:
            if fault.peer == ENGINE:
                raise
            # In use, or in trouble: the others are not kept by it.
        except Permanent as fault:
            log.warning("cannot remove what a build has left", remain=short_id, error=fault.message)
            engine.remains.pop(remain, None)
        else:
            engine.remains.pop(remain, None)


async def _remove_image(engine: Engine, short_id: str, *, created_after: datetime) -> None:
    """By its id, for it has no name, and without force; its nameless parents go with it."""
    try:
        found = await engine.request_json("GET", f"images/{short_id}/json", _Image)
        if found.id.startswith(f"sha256:{short_id}") and not found.tags and found.created > created_after:
            await engine.request("DELETE", f"images/{quote(found.id, safe=':')}")
    except Permanent as fault:
        if fault.code is not ErrorCode.NOT_FOUND:
            raise
