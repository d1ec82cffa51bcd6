"""Purging: what a job made in the engine is removed by the job's own tags, never by id or force.

Identical builds share an image id, and an operator may have tagged the same image: only names that this job put there
are taken away. Safe to repeat; what is gone already is fine.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

import structlog

from imagejobd.building.tools import BuildTools
from imagejobd.engine import images
from imagejobd.engine.classic_remains import remove_remains
from imagejobd.engine.history import delete_history, list_history
from imagejobd.model.errors import ClaimLost, Fault
from imagejobd.model.reference import ImageReference
from imagejobd.model.reserved import Owner, owner_of_repository, repositories_of, repository_patterns
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
    """UUIDs of all jobs of ours that an image in the engine, or a record of a build, still belongs to."""
    await tools.leases.sweep()
    await remove_remains(tools.engine)
    tags = await images.list_tags(tools.engine, *repository_patterns(tools.engine.installation))
    repositories = {tag.rpartition(":")[0] for tag in tags} | await list_history(tools.engine)
    return await ours(tools, set(filter(None, map(owner_of_repository, repositories))))


async def ours(tools: BuildTools, owners: Collection[Owner]) -> set[str]:
    """The jobs among `owners` that are this installation's; where a name does not tell, those that the store knows."""
    own = {owner.uuid for owner in owners if owner.installation == tools.engine.installation}
    unmarked = {owner.uuid for owner in owners if not owner.installation} - own
    return own | (await tools.known(unmarked) if unmarked else set())


async def purge(tools: BuildTools, uuid: str) -> None:
    """Remove everything of a job from the engine: the names of its image, those of bases that a crash has left held,
    and what was said as it was built."""
    repositories = repositories_of(tools.engine.installation, uuid)
    for tag in await images.list_tags(tools.engine, *repositories):
        await images.remove(tools.engine, ImageReference.parse(tag))
    await delete_history(tools.engine, *repositories)
