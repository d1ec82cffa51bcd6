"""Copying one image to many repositories, each as if it were the only one."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from imagejobd.model.concurrency import gather_or_cancel
from imagejobd.model.errors import ErrorCode, Fault, NotFound, Permanent
from imagejobd.registry.copy.commit import put_below, put_tags
from imagejobd.registry.copy.copying import Copying
from imagejobd.registry.copy.freight import Freight
from imagejobd.registry.copy.leg import Leg
from imagejobd.registry.copy.outcome import Options, Outcome, TagState, Tally, Target
from imagejobd.registry.copy.platforms import keep_platforms
from imagejobd.registry.copy.referrers import Referrers, commit_referrers, find_referrers, subjects
from imagejobd.registry.copy.survey import survey
from imagejobd.registry.copy.tree import Tree
from imagejobd.registry.manifest import Descriptor, Manifest
from imagejobd.registry.repository import BlobUnknown

# Targets that take longer than the others to say what they have go by themselves, and read by themselves.
READY_GRACE_S = 2.0

Ended = Callable[[int, Outcome], Awaitable[None]]


async def copy_image(
    copying: Copying, name: str, targets: Sequence[Target], tallies: Sequence[Tally], options: Options, ended: Ended
) -> None:
    """Copy the image under the tag or digest `name` of the source to all targets; `ended(index, outcome)` is awaited
    as each target ends. Raises no faults.

    A target's fault is its outcome and nobody else's; a fault of the source becomes the outcome of every target that
    was not done. Tags move last, and only to what is whole.
    """
    await _ImageCopy(copying, name, targets, tallies, options, ended).run()


class _Image(msgspec.Struct, frozen=True):
    """What is copied: `top` as the source has it under `source_digest`, or rewritten, with what refers to it."""

    source_digest: str
    top: Descriptor
    referrers: Referrers


class _ImageCopy:
    def __init__(
        self,
        copying: Copying,
        name: str,
        targets: Sequence[Target],
        tallies: Sequence[Tally],
        options: Options,
        ended: Ended,
    ) -> None:
        self._copying = copying
        self._name = name
        self._options = options
        self._ended = ended
        self._legs = [Leg(target, tally) for target, tally in zip(targets, tallies, strict=True)]
        self._tree = Tree(copying.source)
        self._image: _Image | None = None
        self._started = time.monotonic()

    async def run(self) -> None:
        try:
            self._image = await self._resolve()
        except Fault as fault:
            for leg in self._legs:
                leg.fault = fault
                await self._end(leg)
            return
        ready: asyncio.Queue[Leg | None] = asyncio.Queue()
        await gather_or_cancel(
            [self._set_out(self._image, ready), *(self._prepare(self._image, leg, ready) for leg in self._legs)]
        )

    async def _resolve(self) -> _Image:
        """What the name points at now; later moves of a tag change nothing for this copy."""
        source = self._copying.source
        top = await source.head_manifest(self._name)
        if top is None:
            raise NotFound(f"image not found: {source} has no {self._name}")
        if not self._options.platforms and not self._options.referrers:
            return _Image(top.digest, top, Referrers())
        manifest = await self._tree.manifest(top)
        if self._options.platforms:
            manifest = await self._narrowed(manifest)
        referrers = Referrers()
        if self._options.referrers:
            referrers = await find_referrers(source, subjects(manifest))
        return _Image(top.digest, manifest.descriptor, referrers)

    async def _narrowed(self, manifest: Manifest) -> Manifest:
        if not manifest.children:
            await self._copying.tell(f"{self._name} is one image and no index: it is copied whatever its platform")
            return manifest
        narrowed = await asyncio.to_thread(keep_platforms, manifest, self._options.platforms)
        if narrowed.digest != manifest.digest:
            await self._copying.tell(f"{self._name}: index {manifest.digest} becomes {narrowed.digest}")
            self._tree.know(narrowed)
        return narrowed

    async def _prepare(self, image: _Image, leg: Leg, ready: "asyncio.Queue[Leg | None]") -> None:
        """Ask a target what it has. It is ready when it lacks something; with nothing to do, or a fault, it ends."""
        try:
            await self._ask_tags(image, leg)
            if self._has_work(image, leg):
                await self._survey(image, leg)
                return ready.put_nowait(leg)
        except Fault as fault:
            leg.fault = fault
        await self._end(leg)
        return ready.put_nowait(None)

    async def _ask_tags(self, image: _Image, leg: Leg) -> None:
        leg.tags = dict.fromkeys(leg.target.names, TagState.WANTED)
        for name in leg.target.names:
            there = await leg.repository.head_manifest(name)
            if there is not None and there.digest == image.top.digest:
                leg.tags[name] = TagState.IDENTICAL
            elif there is not None and not leg.target.overwrite:
                leg.tags[name] = TagState.SKIPPED

    def _has_work(self, image: _Image, leg: Leg) -> bool:
        if leg.wanted:
            return True
        return bool(image.referrers.descriptors) and TagState.IDENTICAL in leg.tags.values()

    async def _survey(self, image: _Image, leg: Leg) -> None:
        if leg.wanted:
            await survey(self._tree, image.top, leg)
        for referrer in image.referrers.descriptors:
            await survey(self._tree, referrer, leg)

    async def _set_out(self, image: _Image, ready: "asyncio.Queue[Leg | None]") -> None:
        """Those that are ready together go together; nobody waits long for one that does not answer."""
        left = len(self._legs)
        async with asyncio.TaskGroup() as waves:
            while left:
                legs, answers = await _gather(ready, left)
                left -= answers
                if legs:
                    waves.create_task(self._go(image, legs))

    async def _go(self, image: _Image, legs: Sequence[Leg]) -> None:
        freight = Freight(self._copying, legs, is_dry_run=self._options.dry_run)
        await gather_or_cancel(self._bring(image, freight, leg) for leg in legs)

    async def _bring(self, image: _Image, freight: Freight, leg: Leg) -> None:
        """Bring a leg what it lacks, and end it."""
        try:
            await freight.deliver(leg)
            if not self._options.dry_run:
                await self._commit(image, leg)
        except BlobUnknown as unknown:
            await self._send_again(image, leg, unknown)
        except Fault as fault:
            leg.fault = fault
        await self._end(leg)

    async def _commit(self, image: _Image, leg: Leg) -> None:
        await put_below(leg, image.top.digest)
        if image.referrers.descriptors:
            await commit_referrers(leg, self._copying, self._tree, image.referrers)
        if leg.wanted:
            await put_tags(leg, await self._tree.manifest(image.top), self._copying.turns)

    async def _send_again(self, image: _Image, leg: Leg, unknown: BlobUnknown) -> None:
        """The target lacks what it said it had: registries answer HEAD from caches, and collect garbage."""
        named = set(unknown.digests)
        is_known = bool(named) and named <= leg.blobs.keys()
        await self._copying.tell(f"{leg.repository}: {unknown.message}; sending {'that' if is_known else 'all'} again")
        leg.distrust(named if is_known else set())
        try:
            if not is_known:
                leg.lacking.clear()
                leg.blobs.clear()
                await self._survey(image, leg)
            await Freight(self._copying, [leg]).deliver(leg)
            await self._commit(image, leg)
        except BlobUnknown as fault:
            leg.fault = Permanent(ErrorCode.COPY_FAILED, f"{fault.message}; it was sent again, and is still missed")
        except Fault as fault:
            leg.fault = fault

    async def _end(self, leg: Leg) -> None:
        outcome = Outcome(
            tags=dict(leg.tags),
            digest=self._image.top.digest if self._image else None,
            source_digest=self._image.source_digest if self._image else None,
            tally=leg.tally,
            seconds=time.monotonic() - self._started,
            fault=leg.fault,
        )
        await self._ended(self._legs.index(leg), outcome)


async def _gather(ready: "asyncio.Queue[Leg | None]", left: int) -> tuple[list[Leg], int]:
    """The legs that are ready within a moment of each other, and how many answers that took; at most `left`."""
    legs: list[Leg] = []
    answers = 0
    deadline: float | None = None
    while answers < left:
        try:
            async with asyncio.timeout_at(deadline):
                leg = await ready.get()
        except TimeoutError:
            break
        answers += 1
        if leg is not None:
            legs.append(leg)
            deadline = deadline or asyncio.get_running_loop().time() + READY_GRACE_S
    return legs, answers
