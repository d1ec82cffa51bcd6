"""Purging: what a job made in the engine is removed by the job's own tags, never by id or force.

Identical builds share an image id, and an operator may have tagged the same image: only names that this job put there
are taken away. Safe to repeat; what is gone already is fine.

Keeps the engine's build cache and the public bases at their configured size: without this every context, layer and
base would stay for ever.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

import structlog

from imagejobd.engine import images
from imagejobd.engine.base_images import BaseImages
from imagejobd.engine.build import prune_build_cache
from imagejobd.engine.classic import remove_remains
from imagejobd.engine.client import Engine
from imagejobd.engine.history import delete_history, list_history
from imagejobd.jobs.shared.build import BuildTools
from imagejobd.model.errors import ENGINE, ClaimLost, Fault, Temporary
from imagejobd.model.kind import JobContext
from imagejobd.model.ownership import Owner, owner_of_repository, repositories_of, repository_patterns
from imagejobd.model.reference import ImageReference

Discard = Callable[[str, Mapping[str, Any]], Awaitable[None]]

log = structlog.get_logger("imagejobd.building")


async def purge_surely(ctx: JobContext, discard: Discard, *, timeout_s: float) -> None:
    """The purging phase: a kind's own `discard`. Its failing takes nothing from a result that is proved: the sweep
    purges later."""
    try:
        async with ctx.phase("purging", timeout_s=timeout_s):
            await discard(ctx.job.uuid, ctx.checkpoint)
    except ClaimLost:
        raise
    except Fault as fault:
        log.warning("could not purge; the next sweep will", job=ctx.job.uuid, error=fault.message)


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


PRUNE_EVERY_S = 1800.0


async def build_cache_loop(engine: Engine, bases: BaseImages) -> None:
    """Prune now and every half hour; running builds keep what they use."""
    while True:
        try:
            freed_bytes = await prune_build_cache(engine, engine.settings.build_cache_keep_bytes)
            if freed_bytes:
                log.info("pruned the build cache", freed_bytes=freed_bytes)
            await bases.prune()
        except Fault as fault:
            # Of an engine that is away the daemon's log tells already.
            if not (isinstance(fault, Temporary) and fault.peer == ENGINE):
                log.warning("cannot prune the build cache and the bases now", error=fault.message)
        await asyncio.sleep(PRUNE_EVERY_S)
