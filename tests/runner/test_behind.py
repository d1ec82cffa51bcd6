"""Writing behind: when, in which order, and what becomes of what could not be written."""

import asyncio

import pytest

from imagejobd.model.errors import ErrorCode, Temporary
from imagejobd.model.secrets import Redactor
from imagejobd.runner.context import Debouncer, JobLog

FULL = Temporary(ErrorCode.STORAGE_FULL, "no space")


async def test_many_changes_are_one_write() -> None:
    """Asking again before the delay has passed adds no write; `now` does not wait and cancels the delayed one."""
    written: asyncio.Queue[None] = asyncio.Queue()

    async def write() -> None:
        written.put_nowait(None)

    behind = Debouncer(write, delay_s=0.02)
    for _ in range(100):
        behind.soon()
    assert written.qsize() == 0
    await written.get()
    behind.soon()
    await behind.now()
    await written.get()
    # Who asks later waits longer: a write that was still to come has been by then.
    later = asyncio.Event()

    async def end() -> None:
        later.set()

    Debouncer(end, delay_s=0.02).soon()
    await later.wait()
    assert written.qsize() == 0


async def test_writes_never_overlap() -> None:
    """A write that is due waits for the one under way, so that an older state cannot come after a newer one."""
    under_way, begun = 0, asyncio.Event()

    async def write() -> None:
        nonlocal under_way
        under_way += 1
        assert under_way == 1
        begun.set()
        await asyncio.sleep(0.02)
        under_way -= 1

    behind = Debouncer(write, delay_s=0.001)
    behind.soon()
    await begun.wait()
    await asyncio.gather(behind.now(), behind.now())
    assert under_way == 0


async def test_a_log_outlives_a_full_disk() -> None:
    """Text that could not be written is written, once and in order, when the disk has room again."""
    kept: list[str] = []
    faults = [FULL, FULL]

    async def write(text: str) -> None:
        if faults:
            raise faults.pop()
        kept.append(text)

    log = JobLog(write, Redactor(), max_bytes=1_000_000)
    await log.append("one\n")
    with pytest.raises(Temporary):
        await log.close()
    await log.append("two\n")
    with pytest.raises(Temporary):
        await log.close()
    await log.append("three\n")
    await log.close()
    assert "".join(kept) == "one\ntwo\nthree\n"
