"""Keeps the engine's build cache and the public bases at their configured size: without this every context, layer and
base would stay for ever."""

import asyncio

import structlog

from imagejobd.engine.bases import Bases
from imagejobd.engine.cache import prune_build_cache
from imagejobd.engine.client import Engine
from imagejobd.model.errors import ENGINE, Fault, Temporary

PRUNE_EVERY_S = 1800.0

log = structlog.get_logger("imagejobd.cache")


async def build_cache_loop(engine: Engine, bases: Bases) -> None:
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
