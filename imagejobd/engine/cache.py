"""The build cache. BuildKit keeps every context and layer until it is pruned; nothing else ever removes them."""

import msgspec

from imagejobd.engine.client import Engine


class _Report(msgspec.Struct, frozen=True):
    freed_bytes: int = msgspec.field(name="SpaceReclaimed", default=0)


async def prune_build_cache(engine: Engine, keep_bytes: int) -> int:
    """Remove the least recently used records beyond `keep_bytes`; returns the bytes freed. What is in use stays."""
    # The same by its name up to API 1.47 and by its name from 1.48 on; what an engine does not know it ignores.
    params = [("keep-storage", str(keep_bytes)), ("reserved-space", str(keep_bytes)), ("all", "1")]
    report = await engine.request_json(
        "POST",
        "build/prune",
        _Report,
        params=params,
        timeout_s=engine.settings.prune_timeout_s,
    )
    return report.freed_bytes
