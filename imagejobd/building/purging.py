"""Purging: what a job made in the engine is removed by the job's own tags, never by id or force.

Identical builds share an image id, and an operator may have tagged the same image: only names that this job put there
are taken away. Safe to repeat; what is gone already is fine.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
import structlog

from imagejobd.building.tools import BuildTools, job_repository
from imagejobd.engine import images
from imagejobd.engine.client import Engine
from imagejobd.model.errors import ClaimLost, Fault
from imagejobd.model.ids import is_uuid
from imagejobd.model.reference import ImageReference
from imagejobd.model.reserved import JOB_PREFIX
from imagejobd.model.work import Work

Discard = Callable[[str, Mapping[str, Any]], Awaitable[None]]

log = structlog.get_logger("imagejobd.building")


class Borrowed(msgspec.Struct, frozen=True):
    """A user's tag that a job uses for a push: the image it names meanwhile, and the one it named before."""

    reference: str
    image_id: str
    before_id: str | None

    def stored(self) -> dict[str, str | None]:
        return {"reference": self.reference, "image_id": self.image_id, "before_id": self.before_id}


async def purge_surely(work: Work, discard: Discard, *, timeout_s: float) -> None:
    """The purging phase: a kind's own `discard`. Its failing takes nothing from a result that is proved: the sweep
    purges later."""
    try:
        async with work.phase("purging", timeout_s=timeout_s):
            await discard(work.job.uuid, work.checkpoint)
    except ClaimLost:
        raise
    except Fault as fault:
        log.warning("could not purge; the next sweep will", job=work.job.uuid, error=fault.message)


async def leftovers(tools: BuildTools) -> set[str]:
    """UUIDs of all jobs that an image in the engine still belongs to."""
    await tools.bases.sweep()
    tags = await images.list_tags(tools.engine, JOB_PREFIX)
    named = {tag.removeprefix(JOB_PREFIX).partition(":")[0] for tag in tags}
    return {uuid for uuid in named if is_uuid(uuid)}


async def purge(tools: BuildTools, uuid: str, checkpoint: Mapping[str, Any]) -> None:
    """Remove everything of a job from the engine: the tag that it borrowed, then its own."""
    await repay(tools, checkpoint)
    for tag in await images.list_tags(tools.engine, f"{job_repository(uuid)}:"):
        await images.remove(tools.engine, ImageReference.parse(tag))


async def repay(tools: BuildTools, checkpoint: Mapping[str, Any]) -> None:
    """Give back the tag that a crash has left borrowed, unless that is done."""
    if not checkpoint.get("borrowed"):
        return
    borrowed = Borrowed(**checkpoint["borrowed"])
    # Asked before the turn is taken: another job may hold it for as long as its push lasts.
    if await _is_borrowed(tools.engine, borrowed):
        async with tools.turns.take(borrowed.reference):
            await give_back(tools.engine, borrowed)


async def give_back(engine: Engine, borrowed: Borrowed) -> None:
    """Let a user's tag name again what it named before. The caller has the turn on that tag."""
    if not await _is_borrowed(engine, borrowed):
        return
    reference = ImageReference.parse(borrowed.reference)
    if borrowed.before_id is not None and await images.inspect(engine, borrowed.before_id) is not None:
        await images.tag(engine, borrowed.before_id, reference)
    else:
        await images.remove(engine, reference)


async def _is_borrowed(engine: Engine, borrowed: Borrowed) -> bool:
    """Whether the tag names the job's image and did not before; one that somebody has moved since is left alone."""
    now = await images.inspect(engine, borrowed.reference)
    return now is not None and now.id == borrowed.image_id != borrowed.before_id
