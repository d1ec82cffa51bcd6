"""Purging: what a job made in the engine is removed by the job's own tags, never by id or force.

Identical builds share an image id, and an operator may have tagged the same image: only names that this job put there
are taken away. Safe to repeat; what is gone already is fine.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import structlog

from imagejobd.building.tools import BuildTools
from imagejobd.engine import images
from imagejobd.engine.history import delete_history, list_history
from imagejobd.model.errors import ClaimLost, Fault
from imagejobd.model.ids import is_uuid
from imagejobd.model.reference import ImageReference
from imagejobd.model.reserved import HELD_PREFIX, JOB_PREFIX, held_repository, job_repository
from imagejobd.model.work import Work

Discard = Callable[[str, Mapping[str, Any]], Awaitable[None]]

log = structlog.get_logger("imagejobd.building")


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
    """UUIDs of all jobs that an image in the engine, or a record of a build, still belongs to."""
    await tools.leases.sweep()
    tags = await images.list_tags(tools.engine, f"{JOB_PREFIX}*", f"{HELD_PREFIX}*")
    names = [*tags, *await list_history(tools.engine)]
    named = {name.removeprefix(HELD_PREFIX).removeprefix(JOB_PREFIX).partition(":")[0] for name in names}
    return {uuid for uuid in named if is_uuid(uuid)}


async def purge(tools: BuildTools, uuid: str) -> None:
    """Remove everything of a job from the engine: the names of its image, those of bases that a crash has left held,
    and what was said as it was built."""
    for tag in await images.list_tags(tools.engine, job_repository(uuid), held_repository(uuid)):
        await images.remove(tools.engine, ImageReference.parse(tag))
    await delete_history(tools.engine, job_repository(uuid))
