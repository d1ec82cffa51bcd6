"""Copying one image to many repositories, each as if it were the only one.

The order at each target: blobs, then manifests, children before the index that names them, then what refers to the
image, and the tags last. None ever points at half an image.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from imagejobd.model.concurrency import bounded, gather_or_cancel
from imagejobd.model.errors import ErrorCode, Fault, NotFound, Permanent
from imagejobd.model.failpoint import failpoint
from imagejobd.model.reference import is_digest
from imagejobd.registry.copy.plan import Tree, keep_platforms, plan
from imagejobd.registry.copy.referrers import Referrers, commit_referrers, find_referrers, subjects
from imagejobd.registry.copy.target import Outcome, TagState, Tally, Target, TargetState
from imagejobd.registry.copy.transfer import BlobTransfers, Copier, Holdings
from imagejobd.registry.manifest import Descriptor, Manifest
from imagejobd.registry.repository import BlobUnknown, Repository

# Targets that take longer than the others to say what they have go by themselves, and are read for by themselves.
READY_GRACE_S = 2.0
MANIFESTS_PUT_AT_ONCE = 8

Ended = Callable[[int, Outcome], Awaitable[None]]


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """`platforms` (`os/arch[/variant]`) takes only those of an index, which is rewritten; empty takes all."""

    platforms: tuple[str, ...] = ()
    referrers: bool = False
    dry_run: bool = False


async def copy_image(
    copier: Copier,
    source: Repository,
    name: str,
    targets: Sequence[Target],
    tallies: Sequence[Tally],
    options: Options,
    holdings: Holdings,
    *,
    ended: Ended,
    say: Callable[[str], Awaitable[None]],
) -> None:
    """Copy the image under the tag or digest `name` of `source` to all targets; `ended(index, outcome)` is awaited as
    each target ends, `say` takes one line for people. `holdings` are those of the job. Raises no faults.

    A target's fault is its outcome and nobody else's; a fault of the source becomes the outcome of every target that
    was not done.
    """
    states = [TargetState(target, tally) for target, tally in zip(targets, tallies, strict=True)]
    await _ImageCopy(copier, source, name, states, options, holdings, ended, say).run()


class _Image(msgspec.Struct, frozen=True):
    """What is copied: `top` as the source has it under `source_digest`, or rewritten, with what refers to it."""

    source_digest: str
    top: Descriptor
    referrers: Referrers


class _ImageCopy:
    def __init__(
        self,
        copier: Copier,
        source: Repository,
        name: str,
        states: Sequence[TargetState],
        options: Options,
        holdings: Holdings,
        ended: Ended,
        say: Callable[[str], Awaitable[None]],
    ) -> None:
        self._copier = copier
        self._source = source
        self._name = name
        self._states = states
        self._options = options
        self._holdings = holdings
        self._ended = ended
        self._say = say
        self._tree = Tree(source)
        self._image: _Image | None = None
        self._began = time.monotonic()

    async def run(self) -> None:
        try:
            self._image = image = await self._resolve()
        except Fault as fault:
            for state in self._states:
                state.fault = fault
                await self._end(state)
            return
        await gather_or_cancel([self._copy_to_all(image)])

    async def _copy_to_all(self, image: _Image) -> None:
        """Those that are ready together go together; nobody waits long for one that does not answer."""
        async with asyncio.TaskGroup() as tasks:
            pending = {tasks.create_task(self._prepare(image, state)) for state in self._states}
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                if pending:
                    more, pending = await asyncio.wait(pending, timeout=READY_GRACE_S)
                    done |= more
                ready = [state for task in done if (state := task.result()) is not None]
                if ready:
                    tasks.create_task(self._copy(self._image or image, ready))

    async def _resolve(self) -> _Image:
        """What the name points at now; later moves of a tag change nothing for this copy."""
        top = await self._source.head_manifest(self._name)
        if top is None:
            raise NotFound(f"image not found: {self._source} has no {self._name}")
        if not self._options.platforms and not self._options.referrers:
            return _Image(top.digest, top, Referrers())
        manifest = whole = await self._tree.named(self._name)
        if self._options.platforms:
            manifest = await self._narrowed(manifest)
        referrers = Referrers()
        if self._options.referrers:
            referrers = await find_referrers(self._source, subjects(manifest))
        return _Image(whole.digest, manifest.descriptor, referrers)

    async def _confirmed(self, image: _Image) -> _Image:
        """The image by its bytes, once it is to be read: HEAD of a tag may be wrong, or old by now."""
        if not is_digest(self._name) and not self._options.platforms and not self._options.referrers:
            top = (await self._tree.named(self._name)).descriptor
            if top.digest != image.top.digest:
                self._image = image = _Image(top.digest, top, image.referrers)
        return image

    async def _narrowed(self, manifest: Manifest) -> Manifest:
        if not manifest.children:
            await self._say(f"{self._name} is one image and no index: it is copied whatever its platform")
            return manifest
        narrowed = await asyncio.to_thread(keep_platforms, manifest, self._options.platforms)
        if narrowed.digest != manifest.digest:
            await self._say(f"{self._name}: index {manifest.digest} becomes {narrowed.digest}")
            self._tree.add(narrowed)
        return narrowed

    async def _prepare(self, image: _Image, state: TargetState) -> TargetState | None:
        """Ask a target what it has: the state where it lacks something, else it has ended, done or with a fault."""
        try:
            state.tags = dict.fromkeys(state.target.names, TagState.WANTED)
            for name in state.target.names:
                there = await state.repository.head_manifest(name)
                if there is not None and there.digest != image.top.digest and state.target.overwrite:
                    image = await self._confirmed(image)
                if there is not None and there.digest == image.top.digest:
                    state.tags[name] = TagState.IDENTICAL
                elif there is not None and not state.target.overwrite:
                    state.tags[name] = TagState.SKIPPED
            if state.wanted:
                image = await self._confirmed(image)
            lacks_referrers = image.referrers.descriptors and TagState.IDENTICAL in state.tags.values()
            if state.wanted or lacks_referrers:
                await self._plan(image, state)
                return state
        except Fault as fault:
            state.fault = fault
        await self._end(state)
        return None

    async def _plan(self, image: _Image, state: TargetState) -> None:
        tops = [image.top] if state.wanted else []
        await plan(self._tree, [*tops, *image.referrers.descriptors], state)

    async def _copy(self, image: _Image, states: Sequence[TargetState]) -> None:
        """Bring the targets what they lack, and end them."""
        if self._options.dry_run:
            for state in states:
                await self._end(state)
            return
        transfers = self._transfers(states)
        async with asyncio.TaskGroup() as tasks:
            sending = tasks.create_task(transfers.run())
            await gather_or_cancel(self._finish(image, state, transfers) for state in states)
            sending.cancel()  # what only targets lack that have failed may still wait for its place

    async def _finish(self, image: _Image, state: TargetState, transfers: BlobTransfers) -> None:
        await transfers.ended(state)
        try:
            if state.fault is None:
                await self._commit(image, state)
        except BlobUnknown as unknown:
            await self._send_again(image, state, unknown)
        except Fault as fault:
            state.fault = fault
        await self._end(state)

    async def _commit(self, image: _Image, state: TargetState) -> None:
        repository = state.repository
        for level in _levels(state.manifests):
            # The tags bring the image's own.
            below = [manifest for manifest in level if manifest.digest != image.top.digest]
            await bounded(below, lambda m: repository.put_manifest(m.digest, m), at_once=MANIFESTS_PUT_AT_ONCE)
        if image.referrers.descriptors:
            await commit_referrers(state, self._tree, image.referrers, self._copier.tags, self._say)
        if state.wanted:
            manifest = await self._tree.manifest(image.top)
            failpoint("before_tag")
            for name in state.wanted:
                async with self._copier.tags.take((repository.connection.identity, repository.path, name)):
                    state.tags[name] = await _put_tag(state, name, manifest)

    async def _send_again(self, image: _Image, state: TargetState, unknown: BlobUnknown) -> None:
        """The target lacks what it said it had: registries answer HEAD from caches, and collect garbage."""
        named = set(unknown.digests)
        is_known = bool(named) and named <= state.blobs.keys()
        await self._say(f"{state.repository}: {unknown.message}; sending {'that' if is_known else 'all'} again")
        state.distrust(named if is_known else set())
        try:
            if not is_known:
                await self._plan(image, state)
            await self._transfers([state]).run()
            if state.fault is None:
                await self._commit(image, state)
        except BlobUnknown as fault:
            state.fault = Permanent(ErrorCode.COPY_FAILED, f"{fault.message}; it was sent again, and is still missed")
        except Fault as fault:
            state.fault = fault

    def _transfers(self, states: Sequence[TargetState]) -> BlobTransfers:
        return BlobTransfers(self._copier, self._source, states, self._holdings, self._say)

    async def _end(self, state: TargetState) -> None:
        outcome = Outcome(
            tags=dict(state.tags),
            digest=self._image.top.digest if self._image else None,
            source_digest=self._image.source_digest if self._image else None,
            tally=state.tally,
            seconds=time.monotonic() - self._began,
            fault=state.fault,
        )
        await self._ended(self._states.index(state), outcome)


async def _put_tag(state: TargetState, name: str, manifest: Manifest) -> TagState:
    """Somebody may have been quicker since the target was first asked: what may not be overwritten is asked again."""
    if not state.target.overwrite and not is_digest(name):
        there = await state.repository.head_manifest(name)
        if there is not None:
            return TagState.IDENTICAL if there.digest == manifest.digest else TagState.SKIPPED
    await state.repository.put_manifest(name, manifest)
    return TagState.COPIED


def _levels(manifests: dict[str, Manifest]) -> list[list[Manifest]]:
    """The manifests in levels, each of which refers only to those before it."""
    heights: dict[str, int] = {}

    def height(digest: str) -> int:
        if digest not in manifests:
            return -1
        if digest not in heights:
            heights[digest] = 1 + max((height(child.digest) for child in manifests[digest].children), default=-1)
        return heights[digest]

    levels: list[list[Manifest]] = [[] for _ in range(1 + max(map(height, manifests), default=-1))]
    for digest, manifest in manifests.items():
        levels[heights[digest]].append(manifest)
    return levels
