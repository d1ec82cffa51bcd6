"""Everything that a running distribution tells the store: log, history, progress, checkpoint.

The copies themselves never wait for the disk: what they tell is gathered here and written by one loop. What a crash
takes is asked of the targets again.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from msgspec import to_builtins

from imagejobd.kinds.distribute.ledger import Ledger
from imagejobd.kinds.distribute.outages import Outage
from imagejobd.kinds.distribute.outcomes import OUTCOMES, Record
from imagejobd.model.failpoint import failpoint
from imagejobd.model.job import Json
from imagejobd.model.work import Work
from imagejobd.registry.copy.outcome import Outcome, TagState

TICK_S = 0.25
SAVE_EVERY_TICKS = 2
NOTE_EVERY_TICKS = 8
# After so many the notes become half as frequent, again and again: a day of copying is some hundred of them.
NOTES_PER_PACE = 100
# Handed to the store in one go; more would hold up the loop.
NOTES_AT_ONCE = 100


class Reporter:
    """Tells about one attempt. `redact` removes the job's secrets from what peers have written; `warnings` are theirs
    too, and are taken out as they are told."""

    def __init__(self, work: Work, ledger: Ledger, redact: Callable[[str], str], warnings: deque[str]) -> None:
        self._work = work
        self._ledger = ledger
        self._redact = redact
        self._warnings = warnings
        self._stopped = asyncio.Event()
        self._lines: list[str] = []
        self._notes: list[Json] = []
        self._is_saved = True
        self._left: set[int] = set()
        self._shown: Json = {}
        self._noted: list[Json] = []
        self._notes_written = 0
        self._ticks_per_note = NOTE_EVERY_TICKS

    async def tell(self, line: str) -> None:
        """One line for people; the end of a line is added. The log redacts by itself."""
        self._lines.append(line.rstrip("\n") + "\n")

    def ended(self, number: int, target: int, outcome: Outcome) -> Record:
        """A copy has ended: into the ledger, the history and the log. Its record is fit to be shown."""
        error = None if outcome.fault is None else self._redact(outcome.fault.message)
        record = self._ledger.end(number, target, outcome, error)
        self._notes.append(self._note_of(number, target, record))
        self._lines.append(self._line_of(number, target, record))
        self._is_saved = False
        return record

    def postponed(self, number: int, target: int, outage: Outage) -> None:
        """A copy is left to the next attempt. Of thousands each would be a line that says the same: one is told."""
        self._ledger.postpone(number, target, outage.error, outage.wait)
        self._is_saved = False
        if target not in self._left:
            self._left.add(target)
            endpoint = self._ledger.spec.targets[target].endpoint
            self._lines.append(f"{endpoint}: the other images wait for the next attempt: {outage.error}\n")

    async def run(self) -> None:
        """Write what has gathered, again and again, and after `stop` the rest. Raises what the store raises.

        It is not to be cancelled: what was on its way to the store would be lost or told twice.
        """
        ticks = 0
        while not await self._stops_within(TICK_S):
            ticks += 1
            await self._write()
            if ticks % SAVE_EVERY_TICKS == 0:
                await self._save()
            if ticks % self._ticks_per_note == 0:
                await self._note_progress()
        await self._write()
        await self._save()

    def stop(self) -> None:
        self._stopped.set()

    async def _stops_within(self, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                return await self._stopped.wait()
        except TimeoutError:
            return False

    async def _write(self) -> None:
        """Progress and log, which may be behind by a tick or two after a crash."""
        progress = self._ledger.progress()
        if progress != self._shown:
            self._shown = progress
            self._work.progress(**progress)
        while self._warnings:
            await self.tell(f"warning: {self._warnings.popleft()}")
        lines, self._lines = self._lines, []
        if lines:
            await self._work.log("".join(lines))

    async def _save(self) -> None:
        """Outcomes: first what an attempt goes on from, then what is told of it."""
        if self._is_saved:
            return
        notes, self._notes, self._is_saved = self._notes, [], True
        await self._work.save(**{OUTCOMES: self._ledger.records})
        failpoint("after_outcomes")
        for start in range(0, len(notes), NOTES_AT_ONCE):
            # One commit takes all that wait at once.
            await asyncio.gather(*(self._work.note("target", **note) for note in notes[start : start + NOTES_AT_ONCE]))

    async def _note_progress(self) -> None:
        """Note the targets whose bytes have moved since the last note."""
        before, self._noted = self._noted, self._shown.get("targets", [])
        moved = [target for target in self._noted if target not in before]
        if not moved:
            return
        await self._work.note("progress", targets=moved)
        self._notes_written += 1
        if self._notes_written % NOTES_PER_PACE == 0:
            self._ticks_per_note *= 2

    def _note_of(self, number: int, target: int, record: Record) -> Json:
        endpoint = self._ledger.spec.targets[target].endpoint
        told: Json = to_builtins(record)
        image, place = self._ledger.images[number], self._ledger.place(number, target)
        return {"endpoint": endpoint, "source": str(image), "image": place.path, **told}

    def _line_of(self, number: int, target: int, record: Record) -> str:
        image, place = self._ledger.images[number], self._ledger.place(number, target)
        where = f"{image} to {self._ledger.spec.targets[target].endpoint} {place.path}"
        if record.error is not None:
            again = "" if record.is_final else "for now "
            return f"{where}: failed {again}after {record.seconds:.1f} s: {record.error}\n"
        if self._ledger.spec.dry_run:
            return f"{where}: {_dry_line(record)}\n"
        tags = ", ".join(f"{name} {state}" for name, state in record.tags.items())
        return f"{where}: {tags}; {record.digest}; {_bytes_line(record)}, {record.seconds:.1f} s\n"


def _bytes_line(record: Record) -> str:
    if not record.total_bytes:
        return "nothing to send"
    sent, mounted = f"{record.sent_bytes} bytes sent", f"{record.mounted_bytes} mounted"
    return f"{sent}, {mounted}, {record.skipped_bytes} there already"


_DRY = {
    TagState.WANTED: "would be copied",
    TagState.IDENTICAL: "is there already",
    TagState.SKIPPED: "is another image there and would be left alone",
}


def _dry_line(record: Record) -> str:
    tags = ", ".join(f"{name} {_DRY.get(state, state)}" for name, state in record.tags.items())
    if TagState.WANTED not in record.tags.values():
        return f"dry run: {tags}"
    missing_bytes = record.total_bytes - record.skipped_bytes - record.mounted_bytes
    return f"dry run: {tags}; {record.digest}; {missing_bytes} of {record.total_bytes} bytes are missing there"
