"""The phases of a distribution: listing the tags that a filter means, and copying.

An attempt goes straight to what is left: a copy that is done is not asked about again, and one that failed for good is
not tried again.
"""

import asyncio
from collections.abc import Iterator

from msgspec.structs import replace

from imagejobd.kinds.distribute.ledger import Ledger
from imagejobd.kinds.distribute.outages import Outages
from imagejobd.kinds.distribute.outcomes import TAGS, found_images
from imagejobd.kinds.distribute.registries import Registries
from imagejobd.kinds.distribute.reporter import Reporter
from imagejobd.kinds.distribute.spec import DistributeSpec, Image
from imagejobd.kinds.distribute.tags import TagFilter, select
from imagejobd.kinds.distribute.tools import Tools
from imagejobd.model.errors import ErrorCode, Permanent
from imagejobd.model.together import together
from imagejobd.model.work import Work
from imagejobd.registry.content.repository import Repository
from imagejobd.registry.copy.copying import Copying, Holdings
from imagejobd.registry.copy.image import copy_image
from imagejobd.registry.copy.outcome import Options, Outcome, Target

IMAGES_AT_ONCE = 8
TAGS_PER_PROGRESS = 1_000
# Targets that are named as those who are waited for.
NAMED_MAX = 3


async def find_images(tools: Tools, work: Work, spec: DistributeSpec, registries: Registries) -> tuple[Image, ...]:
    """The images to copy; with a filter, once found, they stay the same for all attempts.

    Raises `Permanent(not_found)` when the filter finds nothing, `Permanent(too_large)` when it finds too much.
    """
    tag_filter, path = spec.source.tags, spec.source.repository
    if tag_filter is not None and path is not None and TAGS not in work.checkpoint:
        source = spec.source.endpoint
        async with work.phase("listing", timeout_s=tools.settings.listing_timeout_s, waits_for=source):
            tags = await _list_tags(registries.source(path), tag_filter, work)
            copies = len(tags) * len(spec.targets)
            if copies > tools.settings.copies_max:
                limit = f"kinds.distribute.copies_max = {tools.settings.copies_max}"
                raise Permanent(
                    ErrorCode.TOO_LARGE,
                    f"tags that the filter finds: {len(tags)}, which makes {copies} copies; the limit is {limit}",
                )
            await work.save(**{TAGS: tags})
    return found_images(spec, work.checkpoint)


async def _list_tags(repository: Repository, tag_filter: TagFilter, work: Work) -> list[str]:
    tags: list[str] = []
    async for tag in repository.tags():
        tags.append(tag)
        if len(tags) % TAGS_PER_PROGRESS == 0:
            work.progress(tags_listed=len(tags))
    # In a thread: a hundred thousand tags take more time than the loop may stand still.
    chosen = await asyncio.to_thread(select, tags, tag_filter)
    await work.log(f"tags of {repository}: {len(tags)}; meant by source.tags: {len(chosen)}\n")
    if not chosen:
        raise Permanent(ErrorCode.NOT_FOUND, f"tags of {repository}: {len(tags)}; source.tags means none of them")
    return chosen


async def copy_images(tools: Tools, work: Work, ledger: Ledger, registries: Registries, reporter: Reporter) -> None:
    """Copy what is left, `IMAGES_AT_ONCE` images at once. How each copy ended is in the ledger.

    Raises what the store raises; the faults of registries are outcomes.
    """
    copies = _Copies(tools, ledger, registries, reporter)
    waits_for = _waited_for(ledger)
    async with work.phase("copying", timeout_s=tools.settings.copy_timeout_s, waits_for=waits_for):
        await copies.run()


class _Copies:
    def __init__(self, tools: Tools, ledger: Ledger, registries: Registries, reporter: Reporter) -> None:
        self._tools = tools
        self._ledger = ledger
        self._registries = registries
        self._reporter = reporter
        # What one image brought to a target is there for the next one of the same job.
        self._holdings = Holdings()
        self._circuits = tools.registry.circuits
        self._outages = Outages(registries, self._circuits, ledger.now_ms)

    async def run(self) -> None:
        report = asyncio.create_task(self._reporter.run())
        work = asyncio.create_task(self._copy_all())
        try:
            # The report ends by itself only when the store fails, and then there is no use in going on.
            await asyncio.wait((report, work), return_when=asyncio.FIRST_COMPLETED)
        finally:
            work.cancel()
            self._reporter.stop()
            await _settled(report, work)
        report.result()
        work.result()

    async def _copy_all(self) -> None:
        images = iter(self._ledger.order())
        await together(self._work_off(images) for _ in range(IMAGES_AT_ONCE))

    async def _work_off(self, images: Iterator[int]) -> None:
        for number in images:
            left = [target for target in self._ledger.left(number) if self._is_due(number, target)]
            if left:
                await self._copy(number, left)

    def _is_due(self, number: int, target: int) -> bool:
        """Whether a copy that is left is to be tried now; where not, the next attempt sees to it."""
        wait = self._ledger.wait(number, target)
        if wait.rest_s(self._ledger.now_ms()) > 0:
            return False
        if wait.peer is not None and self._circuits.refusal(wait.peer) is not None:
            return False
        outage = self._outages.find(target)
        if outage is not None:
            self._reporter.postponed(number, target, outage)
        return outage is None

    async def _copy(self, number: int, left: list[int]) -> None:
        image, pinned = self._ledger.images[number], self._ledger.pinned(number)
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
        tallies = self._ledger.start(number, left)
        await copy_image(copying, pinned or image.name, targets, tallies, _options(self._ledger.spec), ended)

    def _end(self, number: int, target: int, outcome: Outcome) -> None:
        self._outages.note(target, outcome.fault, self._reporter.ended(number, target, outcome))

    def _target(self, image: int, target: int) -> Target:
        place = self._ledger.place(image, target)
        repository = self._registries.target(target, place.path)
        return Target(repository=repository, names=place.names, overwrite=self._ledger.spec.targets[target].overwrite)


def _waited_for(ledger: Ledger) -> str:
    """The registries that have something to do with what is left."""
    left = {target for image in range(len(ledger.images)) for target in ledger.left(image)}
    endpoints = dict.fromkeys(ledger.spec.targets[target].endpoint for target in sorted(left))
    named = [ledger.spec.source.endpoint, *list(endpoints)[:NAMED_MAX]]
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
    return Permanent(
        ErrorCode.NOT_FOUND,
        f"image not found: {image} was {pinned} when other targets got it, and the source no longer has that; "
        "a new job would copy what the name means now",
    )


def _options(spec: DistributeSpec) -> Options:
    return Options(platforms=spec.platforms, referrers=spec.referrers, dry_run=spec.dry_run)
