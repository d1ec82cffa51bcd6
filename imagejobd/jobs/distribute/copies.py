"""Targets that are not worth another try in this attempt, so that the images behind go on to the others.

One that does not answer, or that wants to be left alone, is left at once; one that answers, and fails for two images in
a row, is not asked about the others: every knock lasts for some tries, and would keep the images behind it waiting.

The phases of a distribution: listing the tags that a filter means, and copying.

An attempt goes straight to what is left: a copy that is done is not asked about again, and one that failed for good is
not tried again.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator

from msgspec import to_builtins
from msgspec.structs import replace

from imagejobd.jobs.distribute.registries import Outage, Outages, Registries, Tools
from imagejobd.jobs.distribute.spec import DistributeSpec, Image
from imagejobd.jobs.distribute.table import OUTCOMES, TAGS, CopyTable, Record, found_images
from imagejobd.jobs.distribute.tags import TagFilter, select
from imagejobd.model.concurrency import gather_or_cancel
from imagejobd.model.errors import ErrorCode, NotFound, Permanent
from imagejobd.model.failpoint import failpoint
from imagejobd.model.job import Json
from imagejobd.model.kind import JobContext
from imagejobd.registry.content.repository import Repository
from imagejobd.registry.copy.copying import Copying, Holdings
from imagejobd.registry.copy.image import copy_image
from imagejobd.registry.copy.outcome import Options, Outcome, TagState, Target

IMAGES_AT_ONCE = 8
TAGS_PER_PROGRESS = 1_000
# Targets that are named as those who are waited for.
NAMED_MAX = 3


class Reporter:
    """Tells about one attempt. `redact` removes the job's secrets from what peers have written; `warnings` are theirs
    too, and are taken out as they are told."""

    def __init__(self, ctx: JobContext, table: CopyTable, redact: Callable[[str], str], warnings: deque[str]) -> None:
        self._ctx = ctx
        self._table = table
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
        record = self._table.end(number, target, outcome, error)
        self._notes.append(self._note_of(number, target, record))
        self._lines.append(self._line_of(number, target, record))
        self._is_saved = False
        return record

    def postponed(self, number: int, target: int, outage: Outage) -> None:
        """A copy is left to the next attempt. Of thousands each would be a line that says the same: one is told."""
        self._table.postpone(number, target, outage.error, outage.wait)
        self._is_saved = False
        if target not in self._left:
            self._left.add(target)
            endpoint = self._table.spec.targets[target].endpoint
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
        progress = self._table.progress()
        if progress != self._shown:
            self._shown = progress
            self._ctx.progress(**progress)
        while self._warnings:
            await self.tell(f"warning: {self._warnings.popleft()}")
        lines, self._lines = self._lines, []
        if lines:
            await self._ctx.log("".join(lines))

    async def _save(self) -> None:
        """Outcomes: first what an attempt goes on from, then what is told of it."""
        if self._is_saved:
            return
        notes, self._notes, self._is_saved = self._notes, [], True
        await self._ctx.save(**{OUTCOMES: self._table.records})
        failpoint("after_outcomes")
        for start in range(0, len(notes), NOTES_AT_ONCE):
            # One commit takes all that wait at once.
            await asyncio.gather(*(self._ctx.note("target", **note) for note in notes[start : start + NOTES_AT_ONCE]))

    async def _note_progress(self) -> None:
        """Note the targets whose bytes have moved since the last note."""
        before, self._noted = self._noted, self._shown.get("targets", [])
        moved = [target for target in self._noted if target not in before]
        if not moved:
            return
        await self._ctx.note("progress", targets=moved)
        self._notes_written += 1
        if self._notes_written % NOTES_PER_PACE == 0:
            self._ticks_per_note *= 2

    def _note_of(self, number: int, target: int, record: Record) -> Json:
        endpoint = self._table.spec.targets[target].endpoint
        told: Json = to_builtins(record)
        image, place = self._table.images[number], self._table.place(number, target)
        return {"endpoint": endpoint, "source": str(image), "image": place.path, **told}

    def _line_of(self, number: int, target: int, record: Record) -> str:
        image, place = self._table.images[number], self._table.place(number, target)
        where = f"{image} to {self._table.spec.targets[target].endpoint} {place.path}"
        if record.error is not None:
            again = "" if record.is_final else "for now "
            return f"{where}: failed {again}after {record.seconds:.1f} s: {record.error}\n"
        if self._table.spec.dry_run:
            return f"{where}: {_dry_line(record)}\n"
        tags = ", ".join(f"{name} {state}" for name, state in record.tags.items())
        return f"{where}: {tags}; {record.digest}; {_bytes_line(record)}, {record.seconds:.1f} s\n"


async def find_images(tools: Tools, ctx: JobContext, spec: DistributeSpec, registries: Registries) -> tuple[Image, ...]:
    """The images to copy; with a filter, once found, they stay the same for all attempts.

    Raises `Permanent(not_found)` when the filter finds nothing, `Permanent(too_large)` when it finds too much.
    """
    tag_filter, path = spec.source.tags, spec.source.repository
    if tag_filter is not None and path is not None and TAGS not in ctx.checkpoint:
        source = spec.source.endpoint
        async with ctx.phase("listing", timeout_s=tools.settings.listing_timeout_s, waits_for=source):
            tags = await _list_tags(registries.source(path), tag_filter, ctx)
            copies = len(tags) * len(spec.targets)
            if copies > tools.settings.copies_max:
                limit = f"kinds.distribute.copies_max = {tools.settings.copies_max}"
                raise Permanent(
                    ErrorCode.TOO_LARGE,
                    f"tags that the filter finds: {len(tags)}, which makes {copies} copies; the limit is {limit}",
                )
            await ctx.save(**{TAGS: tags})
    return found_images(spec, ctx.checkpoint)


async def _list_tags(repository: Repository, tag_filter: TagFilter, ctx: JobContext) -> list[str]:
    tags: list[str] = []
    async for tag in repository.tags():
        tags.append(tag)
        if len(tags) % TAGS_PER_PROGRESS == 0:
            ctx.progress(tags_listed=len(tags))
    # In a thread: a hundred thousand tags take more time than the loop may stand still.
    chosen = await asyncio.to_thread(select, tags, tag_filter)
    await ctx.log(f"tags of {repository}: {len(tags)}; meant by source.tags: {len(chosen)}\n")
    if not chosen:
        raise NotFound(f"tags of {repository}: {len(tags)}; source.tags means none of them")
    return chosen


async def copy_images(
    tools: Tools, ctx: JobContext, table: CopyTable, registries: Registries, reporter: Reporter
) -> None:
    """Copy what is left, `IMAGES_AT_ONCE` images at once. How each copy ended is in the ledger.

    Raises what the store raises; the faults of registries are outcomes.
    """
    copies = _Copies(tools, table, registries, reporter)
    waits_for = _waited_for(table)
    async with ctx.phase("copying", timeout_s=tools.settings.copy_timeout_s, waits_for=waits_for):
        await copies.run()


class _Copies:
    def __init__(self, tools: Tools, table: CopyTable, registries: Registries, reporter: Reporter) -> None:
        self._tools = tools
        self._table = table
        self._registries = registries
        self._reporter = reporter
        # What one image brought to a target is there for the next one of the same job.
        self._holdings = Holdings()
        self._circuits = tools.registry.circuits
        self._outages = Outages(registries, self._circuits, table.now_ms)

    async def run(self) -> None:
        report = asyncio.create_task(self._reporter.run())
        ctx = asyncio.create_task(self._copy_all())
        try:
            # The report ends by itself only when the store fails, and then there is no use in going on.
            await asyncio.wait((report, ctx), return_when=asyncio.FIRST_COMPLETED)
        finally:
            ctx.cancel()
            self._reporter.stop()
            await _settled(report, ctx)
        report.result()
        ctx.result()

    async def _copy_all(self) -> None:
        images = iter(self._table.order())
        await gather_or_cancel(self._work_off(images) for _ in range(IMAGES_AT_ONCE))

    async def _work_off(self, images: Iterator[int]) -> None:
        for number in images:
            left = [target for target in self._table.left(number) if self._is_due(number, target)]
            if left:
                await self._copy(number, left)

    def _is_due(self, number: int, target: int) -> bool:
        """Whether a copy that is left is to be tried now; where not, the next attempt sees to it."""
        wait = self._table.wait(number, target)
        if wait.rest_s(self._table.now_ms()) > 0:
            return False
        if wait.peer is not None and self._circuits.refusal(wait.peer) is not None:
            return False
        outage = self._outages.find(target)
        if outage is not None:
            self._reporter.postponed(number, target, outage)
        return outage is None

    async def _copy(self, number: int, left: list[int]) -> None:
        image, pinned = self._table.images[number], self._table.pinned(number)
        copying = Copying(
            source=self._registries.source(image.path),
            flights=self._tools.flights,
            turns=self._tools.turns,
            holdings=self._holdings,
            tell=self._reporter.tell,
        )

        async def ended(index: int, outcome: Outcome) -> None:
            if pinned is not None and _is_gone(outcome):
                outcome = replace(outcome, fault=_gone(image, pinned))
            self._end(number, left[index], outcome)

        targets = [self._target(number, target) for target in left]
        tallies = self._table.start(number, left)
        await copy_image(copying, pinned or image.name, targets, tallies, _options(self._table.spec), ended)

    def _end(self, number: int, target: int, outcome: Outcome) -> None:
        self._outages.note(target, outcome.fault, self._reporter.ended(number, target, outcome))

    def _target(self, image: int, target: int) -> Target:
        place = self._table.place(image, target)
        repository = self._registries.target(target, place.path)
        return Target(repository=repository, names=place.names, overwrite=self._table.spec.targets[target].overwrite)


def _waited_for(table: CopyTable) -> str:
    """The registries that have something to do with what is left."""
    left = {target for image in range(len(table.images)) for target in table.left(image)}
    endpoints = dict.fromkeys(table.spec.targets[target].endpoint for target in sorted(left))
    named = [table.spec.source.endpoint, *list(endpoints)[:NAMED_MAX]]
    return ", ".join(named) + (f" and {len(endpoints) - NAMED_MAX} more" if len(endpoints) > NAMED_MAX else "")


async def _settled(*tasks: asyncio.Task[None]) -> None:
    """Wait until all have ended, however often that is cancelled; only then the cancellation goes on."""
    ending = asyncio.gather(*tasks, return_exceptions=True)
    cancelled: asyncio.CancelledError | None = None
    while not ending.done():
        try:
            await asyncio.shield(ending)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


def _is_gone(outcome: Outcome) -> bool:
    """Whether the source does not have what it was asked for; a target that lacks something has a `source_digest`."""
    fault = outcome.fault
    return isinstance(fault, Permanent) and fault.code is ErrorCode.NOT_FOUND and outcome.source_digest is None


def _gone(image: Image, pinned: str) -> Permanent:
    return NotFound(
        f"image not found: {image} was {pinned} when other targets got it, and the source no longer has that; "
        "a new job would copy what the name means now",
    )


def _options(spec: DistributeSpec) -> Options:
    return Options(platforms=spec.platforms, referrers=spec.referrers, dry_run=spec.dry_run)


TICK_S = 0.25


SAVE_EVERY_TICKS = 2


NOTE_EVERY_TICKS = 8


# After so many the notes become half as frequent, again and again: a day of copying is some hundred of them.
NOTES_PER_PACE = 100


# Handed to the store in one go; more would hold up the loop.
NOTES_AT_ONCE = 100


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
