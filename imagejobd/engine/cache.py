"""The build cache. BuildKit keeps every context and layer until it is pruned; nothing else ever removes them."""

import msgspec

from imagejobd.engine.client import Engine


class _Report(msgspec.Struct, frozen=True):
    freed_bytes: int = msgspec.field(name="SpaceReclaimed", default=0)


async def prune_build_cache(engine: Engine, keep_bytes: int) -> int:
    """Remove the least recently used records beyond `keep_bytes`; returns the bytes freed. Running builds keep theirs.

    `keep-storage` is the parameter's name up to API 1.47, beyond which this service does not go.
    """
    report = await engine.request_json(
        "POST",
        "build/prune",
        _Report,
        params=[("keep-storage", str(keep_bytes)), ("all", "1")],
        timeout_s=engine.settings.prune_timeout_s,
    )
    return report.freed_bytes
