"""The build cache. BuildKit keeps every context and layer until it is pruned; nothing else ever removes them."""

from contextlib import aclosing

import msgspec

from imagejobd.engine.client import Engine
from imagejobd.engine.control import control
from imagejobd.engine.protobuf import as_bytes, as_int, as_text, as_time, fields

# How BuildKit calls what it took in of the folder of that name, which it uses as long as the build lasts.
_DOCKERFILE = "local source for dockerfile"


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


async def dockerfiles_in_use(engine: Engine) -> list[float]:
    """When the Dockerfiles of all builds that go on came in, in seconds since the epoch by the engine's clock.

    Raises as `control` does.
    """
    times: list[float] = []
    async with control(engine) as service, aclosing(service.call("DiskUsage")) as answers:
        async for answer in answers:
            # DiskUsageResponse: 1 is a UsageRecord, of which 3 is InUse, 6 CreatedAt, 9 the Description.
            for record in (dict(fields(as_bytes(value))) for number, value in fields(answer) if number == 1):
                if as_int(record.get(3, 0)) and as_text(record.get(9, b"")) == _DOCKERFILE:
                    times.append(as_time(record.get(6)) or 0.0)
    return times
