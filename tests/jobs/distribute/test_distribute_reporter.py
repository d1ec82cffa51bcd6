"""How a running distribution is reported: often enough to be followed, seldom enough to be kept."""

import asyncio
from collections import deque
from itertools import pairwise
from typing import Any

import pytest
from msgspec.structs import replace

from imagejobd.jobs.distribute import copies as copies_module
from imagejobd.jobs.distribute.copies import Outage, Reporter
from imagejobd.jobs.distribute.spec import DistributeSpec, Image, Source, Target
from imagejobd.jobs.distribute.table import CopyTable, Wait
from imagejobd.registry.copy.target import Outcome, TagState, Tally

SPEC = DistributeSpec(
    source=Source(endpoint="a", image="app", ref="1"), targets=(Target(endpoint="b"), Target(endpoint="c"))
)
NOTES = 40
COPIED = Outcome(tags={"1": TagState.COPIED}, digest="d", tally=Tally(), seconds=1.0)


class RecordingContext:
    """Keeps what a reporter writes; `on_note` runs at each note."""

    def __init__(self) -> None:
        self.notes: list[tuple[str, dict[str, Any]]] = []
        self.shown: list[dict[str, Any]] = []
        self.saved = 0
        self.on_note: Any = lambda: None

    async def note(self, event: str, **data: Any) -> None:
        self.notes.append((event, data))
        self.on_note()

    async def save(self, **values: Any) -> None:
        self.saved += 1

    async def log(self, text: str) -> None: ...

    def progress(self, **values: Any) -> None:
        self.shown.append(values)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies_module, "TICK_S", 0.001)
    monkeypatch.setattr(copies_module, "NOTE_EVERY_TICKS", 1)


def reporter_of(ctx: Any, table: CopyTable) -> Reporter:
    return Reporter(ctx, table, str, deque())


@pytest.mark.usefixtures("quick")
async def test_bytes_are_noted_as_they_move() -> None:
    """Each note has the targets whose bytes have moved, and no other."""
    ctx, table = RecordingContext(), CopyTable(SPEC, [Image("app", "1")], {})
    moving, _ = table.start(0, [0, 1])
    moving.sent_bytes = 1
    reporter = reporter_of(ctx, table)

    def go_on() -> None:
        moving.sent_bytes += 1
        if len(ctx.notes) == 4:
            reporter.stop()

    ctx.on_note = go_on
    await asyncio.wait_for(reporter.run(), 10)
    assert [name for name, _ in ctx.notes] == ["progress"] * 4
    first, *others = [data["targets"] for _, data in ctx.notes]
    assert [target["endpoint"] for target in first] == ["b", "c"]
    assert [[target["endpoint"] for target in targets] for targets in others] == [["b"]] * 3
    assert [targets[0]["sent_bytes"] for targets in (first, *others)] == [1, 2, 3, 4]
    assert ctx.saved == 0


@pytest.mark.usefixtures("quick")
async def test_notes_become_rarer(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it takes, the notes of a job stay a bounded number: their pace halves again and again."""
    monkeypatch.setattr(copies_module, "NOTES_PER_PACE", 10)
    ctx, table = RecordingContext(), CopyTable(SPEC, [Image("app", "1")], {})
    moving, _ = table.start(0, [0, 1])
    reporter = reporter_of(ctx, table)
    ticks_at_note: list[int] = []

    def go_on() -> None:
        ticks_at_note.append(len(ctx.shown))
        if len(ctx.notes) == NOTES:
            reporter.stop()

    def move(**values: Any) -> None:
        ctx.shown.append(values)
        moving.sent_bytes += 1

    ctx.on_note, ctx.progress = go_on, move  # type: ignore[method-assign]
    await asyncio.wait_for(reporter.run(), 30)
    gaps = [after - before for before, after in pairwise(ticks_at_note)]
    assert (gaps[1], gaps[15], gaps[25], gaps[35]) == (1, 2, 4, 8)


@pytest.mark.usefixtures("quick")
async def test_nothing_is_written_when_nothing_happens() -> None:
    """A job that waits writes nothing; what ends last is still written."""
    ctx, table = RecordingContext(), CopyTable(SPEC, [Image("app", "1")], {})
    reporter = reporter_of(ctx, table)
    running = asyncio.create_task(reporter.run())
    while not ctx.notes:
        await asyncio.sleep(0.001)
    shown, noted = len(ctx.shown), len(ctx.notes)
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert (len(ctx.shown), len(ctx.notes), ctx.saved) == (shown, noted, 0)
    reporter.end(0, 1, COPIED)
    reporter.stop()
    await running
    assert ctx.saved == 1
    assert [data["endpoint"] for name, data in ctx.notes if name == "target"] == ["c"]


@pytest.mark.usefixtures("quick")
async def test_outcomes_reach_the_store_in_portions() -> None:
    """However many copies end at once, the store is handed so many notes at a time, after the checkpoint."""
    images = [Image("app", str(n)) for n in range(300)]
    ctx, table = RecordingContext(), CopyTable(SPEC, images, {})
    reporter = reporter_of(ctx, table)
    open_notes, most = 0, 0

    async def note(event: str, **data: Any) -> None:
        nonlocal open_notes, most
        assert ctx.saved > 0
        open_notes += 1
        most = max(most, open_notes)
        await asyncio.sleep(0)
        open_notes -= 1
        ctx.notes.append((event, data))

    ctx.note = note  # type: ignore[method-assign]
    for number in range(len(images)):
        table.start(number, [0])
        reporter.end(number, 0, COPIED)
    reporter.stop()
    await asyncio.wait_for(reporter.run(), 10)
    assert [data["source"] for _, data in ctx.notes] == [str(image) for image in images]
    assert most == 100


async def test_what_is_postponed_is_kept() -> None:
    """A crash does not lose that a target was down, though nothing else has ended."""
    ctx, table = RecordingContext(), CopyTable(SPEC, [Image("app", "1")], {})
    reporter = reporter_of(ctx, table)
    reporter.postpone(0, 1, Outage("down", Wait(peer="c.example")))
    reporter.stop()
    await reporter.run()
    assert (ctx.saved, ctx.notes) == (1, [])
    assert table.checkpoint["0.1"] == {"error": "down", "tries": 0, "wait": {"peer": "c.example"}}


@pytest.mark.parametrize(
    ("state", "line"),
    [
        (TagState.WANTED, "1 would be copied; sha256:d; 60 of 100 bytes are missing there"),
        (TagState.IDENTICAL, "1 is there already"),
        (TagState.SKIPPED, "1 is another image there and would be left alone"),
    ],
)
async def test_a_dry_run_reads_well(state: TagState, line: str) -> None:
    """What would be done, in words; no bytes are claimed to be sent."""
    lines: list[str] = []
    ctx = RecordingContext()

    async def log(text: str) -> None:
        lines.append(text)

    ctx.log = log  # type: ignore[method-assign]
    reporter = reporter_of(ctx, CopyTable(replace(SPEC, dry_run=True), [Image("app", "1")], {}))
    tally = Tally(total_bytes=100, skipped_bytes=40)
    reporter.end(0, 0, Outcome(tags={"1": state}, digest="sha256:d", tally=tally, seconds=1.0))
    reporter.stop()
    await reporter.run()
    assert lines == [f"app:1 to b app: dry run: {line}\n"]
