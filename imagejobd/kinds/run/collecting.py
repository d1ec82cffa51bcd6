"""The collecting phase: the file that the container left, read without unpacking, kept in the checkpoint."""

import asyncio

import msgspec

from imagejobd.engine.sandbox import DATA_PATH, Sandbox
from imagejobd.kinds.run import perf
from imagejobd.kinds.run.perf import Result
from imagejobd.kinds.run.tools import Tools
from imagejobd.model.errors import ErrorCode, Permanent
from imagejobd.model.failpoint import failpoint
from imagejobd.model.work import Work

LOOKS = 2
SECOND_LOOK_S = 0.5


async def collect(tools: Tools, work: Work, container: Sandbox) -> None:
    """Save the result of the ended container. Raises `Permanent(result_missing | result_invalid)`."""
    settings = tools.settings
    async with work.phase("collecting", timeout_s=settings.collect_timeout_s):
        result = await _read(container, work.job.uuid, max_bytes=settings.perf_max_bytes)
        await work.save(collected=msgspec.to_builtins(result))
    failpoint("after_collect")


async def _read(container: Sandbox, uuid: str, *, max_bytes: int) -> Result:
    """From the file of this very job where there is one; then another one of a fixed name is not looked at."""
    names = (f"perf-{uuid}.json", "perf.json")
    for look in range(LOOKS):
        # A busy engine has been seen to miss what it then found: a job must not fail by that.
        await asyncio.sleep(SECOND_LOOK_S if look else 0)
        for name in names:
            data = await container.read_data(name, max_bytes=max_bytes)
            if data is not None:
                return perf.parse(data, f"{DATA_PATH}/{name}")
    paths = " nor ".join(f"{DATA_PATH}/{name}" for name in names)
    raise Permanent(
        ErrorCode.RESULT_MISSING,
        f'the container wrote neither {paths}; it must write a JSON object such as {{"perf": 0.99}} to one of them',
    )
