"""How an attempt writes: the bounds of a job's log, and when and in which order changes are written."""

import asyncio

import pytest

from imagejobd.model.errors import ErrorCode, Temporary
from imagejobd.runner.context import BLOCK_BYTES, Debouncer, JobLog

MAX_BYTES = 5 * BLOCK_BYTES


class Blocks(list[str]):
    """What was written, block by block."""

    async def write(self, text: str) -> None:
        self.append(text)

    def sizes(self) -> list[int]:
        return [len(block.encode()) for block in self]


def joblog(blocks: Blocks, **bounds: int) -> JobLog:
    return JobLog(blocks.write, lambda text: text, **({"max_bytes": MAX_BYTES} | bounds))


@pytest.mark.parametrize("character", ["x", "é", "😀"])
@pytest.mark.parametrize("chars", [1, 1000, 300_000, 3_000_000])
async def test_blocks_and_log_are_bounded(character: str, chars: int) -> None:
    """However long a line is and whatever it is written in, no block is longer than one, nor the log than its bound."""
    blocks = Blocks()
    log = joblog(blocks)
    await log.append("first\n")
    await log.append(character * chars)
    await log.append("\nlast\n")
    await log.close()
    assert max(blocks.sizes()) <= BLOCK_BYTES
    assert sum(blocks.sizes()) <= MAX_BYTES + 100  # the mark
    text = "".join(blocks)
    assert text.startswith("first\n")
    assert text.endswith("\nlast\n")
    assert ("dropped" in text) == (chars * len(character.encode()) > MAX_BYTES)


async def test_many_lines_fill_blocks() -> None:
    """Lines become few blocks, whole and in order."""
    blocks = Blocks()
    log = joblog(blocks)
    lines = [f"{number}\n" for number in range(30_000)]
    for line in lines:
        await log.append(line)
    await log.close()
    assert "".join(blocks) == "".join(lines)
    assert max(blocks.sizes()) <= BLOCK_BYTES
    assert len(blocks) <= 4


async def test_a_later_attempt_adds_only_its_end() -> None:
    """Where earlier attempts have filled the log, the last words of this one are still there."""
    blocks = Blocks()
    log = joblog(blocks, stored_bytes=MAX_BYTES)
    await log.append("x" * 200_000)
    await log.append("\nwhy\n")
    await log.close()
    assert sum(blocks.sizes()) <= BLOCK_BYTES + 100
    assert "".join(blocks).endswith("\nwhy\n")


@pytest.mark.parametrize(
    ("is_line_open", "before", "expected"),
    [
        (False, "", "failed\n"),
        (False, "a line\n", "a line\nfailed\n"),
        (False, "half", "half\nfailed\n"),
        (True, "", "\nfailed\n"),
        (True, "a line\n", "a line\nfailed\n"),
    ],
    ids=["first", "after a line", "after half a line", "after a crash", "after a crash and a line"],
)
async def test_last_words_stand_on_a_line_of_their_own(is_line_open: bool, before: str, expected: str) -> None:
    """An attempt that a crash has cut may have left half a line."""
    blocks = Blocks()
    log = joblog(blocks, is_line_open=is_line_open)
    await log.append(before)
    await log.append_line("failed\n")
    await log.close()
    assert "".join(blocks) == expected


async def test_what_could_not_be_written_is_written_later() -> None:
    """A store that refuses costs no text and no order."""
    written: list[str] = []
    refusals = iter(range(2))

    async def write(text: str) -> None:
        if len(written) == 1 and next(refusals, None) is not None:
            raise Temporary(ErrorCode.STORAGE_FULL, "full")
        written.append(text)

    log = JobLog(write, lambda text: text, max_bytes=MAX_BYTES)
    text = "".join(f"{number:07}\n" for number in range(20_000))
    with pytest.raises(Temporary):
        await log.append(text)
    with pytest.raises(Temporary):
        await log.close()
    await log.append("last\n")
    await log.close()
    assert "".join(written) == text + "last\n"


async def test_many_changes_are_one_write() -> None:
    """Asking again before the delay has passed adds no write; `now` does not wait and cancels the delayed one."""
    written: asyncio.Queue[None] = asyncio.Queue()

    async def write() -> None:
        written.put_nowait(None)

    debouncer = Debouncer(write, delay_s=0.02)
    for _ in range(100):
        debouncer.soon()
    assert written.qsize() == 0
    await written.get()
    debouncer.soon()
    await debouncer.now()
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

    debouncer = Debouncer(write, delay_s=0.001)
    debouncer.soon()
    await begun.wait()
    await asyncio.gather(debouncer.now(), debouncer.now())
    assert under_way == 0
