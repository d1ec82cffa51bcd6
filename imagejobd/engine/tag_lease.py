"""Tags that are leased: for a while one names another image in the engine, then again what it named before.

A push needs the user's tag on the image that was built, and a pull with a login puts a tag on what not everybody may
read, while the engine shows every tag to everybody. So whoever moves one has it for himself meanwhile: nobody takes it
for a base, and it is restored in any case, also after a crash: a volume without content, which the engine keeps as it
keeps images, notes each lease for as long as it lasts.

Other daemons on the engine see these notes too. Of two that want one tag at once, each of which has its note there
before it looks for the other's, at least one gives way, and tries again later.
"""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from typing import Self

import msgspec
import structlog

from imagejobd.engine import images
from imagejobd.engine.client import Engine
from imagejobd.engine.container import Volume, list_volumes, make_volume, remove_volume
from imagejobd.engine.presence import working
from imagejobd.model.concurrency import KeyedLock, uninterrupted
from imagejobd.model.errors import ErrorCode, Fault, Permanent, Temporary
from imagejobd.model.ownership import INSTALLATION_LABEL, owner_of_repository
from imagejobd.model.reference import ImageReference

LABEL = "imagejobd.tag"
_BEFORE_LABEL = "imagejobd.tag-before"
_IMAGE_LABEL = "imagejobd.tag-image"
_NAME_HEX_DIGITS = 40
# Stands for the image of a lease that ends before its tag was moved; no image has this id.
_UNMOVED = "unmoved"
# How long a lessee that is cancelled waits for its tag to be restored; after that the sweep does it.
RESTORE_TIMEOUT_S = 0.5

log = structlog.get_logger("imagejobd.engine")

# Which of some UUIDs are jobs of ours.
Known = Callable[[Collection[str]], Awaitable[set[str]]]


class TagLease(msgspec.Struct, frozen=True):
    """A lease as a volume notes it: `reference` names `image_id` meanwhile ("" where only the lessee will know), and
    `before_id` before and after ("" for none). `installation` is empty in a note that an earlier version has left.
    """

    installation: str
    reference: str
    before_id: str
    image_id: str

    @classmethod
    def of(cls, volume: Volume) -> Self | None:
        """The lease that a volume notes; name and labels must agree."""
        labels = (INSTALLATION_LABEL, LABEL, _BEFORE_LABEL, _IMAGE_LABEL)
        lease = cls(*(volume.label(label) for label in labels))
        return lease if lease.reference and lease.volume == volume.name else None

    @property
    def volume(self) -> str:
        installation = self.installation and f"{self.installation}-"
        hashed = hashlib.sha256(self.reference.encode()).hexdigest()[:_NAME_HEX_DIGITS]
        return f"imagejobd-{installation}tag-{hashed}"

    @property
    def labels(self) -> dict[str, str]:
        return {LABEL: self.reference, _BEFORE_LABEL: self.before_id, _IMAGE_LABEL: self.image_id}

    def covers(self, reference: ImageReference) -> bool:
        """Whether the lease moves what `reference` names, as that of any tag of its repository may for a digest."""
        if reference.digest is None:
            return self.reference == str(reference)
        return ImageReference.parse(self.reference, default_tag=None).repository == reference.repository


class TagLeases:
    """All leases of this process. One per engine. `known` says which jobs are this installation's."""

    def __init__(self, engine: Engine, known: Known) -> None:
        self._engine = engine
        self._known = known
        self._turns = KeyedLock()
        self._active: set[str] = set()
        # Leases that ended while the engine could not be asked to restore the tag.
        self._overdue: dict[str, TagLease] = {}
        self._has_swept = False
        self._sweeping = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def turn(self, reference: ImageReference) -> AsyncIterator[None]:
        """Have the tag for oneself without moving it: it names what everybody may have.

        Raises `Temporary`, for a tag that another daemon has leased too.
        """
        await self._sweep_notes()
        name = str(reference)
        async with self._turns.take(name):
            if lease := self._overdue.get(name):
                await self._restore(lease)
            await self._check_unleased(reference)
            yield

    @contextlib.asynccontextmanager
    async def lease(self, reference: ImageReference, *, image_id: str = "") -> AsyncIterator[None]:
        """Move the tag within the block; the caller has the `turn`. Afterwards it names what it did before.

        `image_id` is the image that it will name, where that is known: then a tag that somebody else has moved
        meanwhile is left alone. What cannot be restored now is restored later, and until then nobody gets the turn.
        Raises `Temporary(conflict)` for a tag that another daemon leases at the same time.
        """
        before = await images.find(self._engine, reference)
        lease = TagLease(self._engine.installation, str(reference), before.id if before else "", image_id)
        # What another daemon has moved is not restored here.
        ending = msgspec.structs.replace(lease, image_id=_UNMOVED)
        grace_s: float | None = None
        self._active.add(lease.reference)
        try:
            await make_volume(self._engine, lease.volume, lease.labels)
            await self.check_unmoved(reference, lease.before_id)
            ending = lease
            yield
        except (asyncio.CancelledError, GeneratorExit):
            grace_s = RESTORE_TIMEOUT_S
            raise
        finally:
            self._overdue[lease.reference] = ending
            self._active.discard(lease.reference)
            # A cancelled build restores its tags too.
            await uninterrupted(self._release(ending), grace_s=grace_s)

    def is_taken(self, reference: ImageReference) -> bool:
        """Whether somebody here has the turn, and may have moved the tag."""
        return self._turns.is_taken(str(reference))

    def is_leased(self, repository: str) -> bool:
        """Whether some tag of the repository names another image at the moment, as digests of it may do then."""
        names = (*self._active, *self._overdue)
        return any(ImageReference.parse(name, default_tag=None).repository == repository for name in names)

    async def check_unmoved(self, reference: ImageReference, image_id: str) -> None:
        """Raise `Temporary(conflict)` where the name means another image by now ("" is none), or another daemon has
        leased it."""
        await self._check_unleased(reference)
        image = await images.find(self._engine, reference)
        if (image.id if image else "") != image_id:
            raise Temporary(ErrorCode.CONFLICT, f"somebody else has moved {reference} in the engine meanwhile")

    async def sweep(self) -> None:
        """Restore what a crash, or an engine that was away, has left. Raises `Temporary`."""
        await self._sweep_notes()
        for name, lease in list(self._overdue.items()):
            async with self._turns.take(name):
                if self._overdue.get(name) is lease:
                    try:
                        await self._restore(lease)
                    except Permanent as fault:
                        log.warning("cannot restore a tag", tag=name, error=fault.message)

    async def _check_unleased(self, reference: ImageReference) -> None:
        """The notes of daemons that no longer work count for nothing: they restore their tags themselves."""
        volumes = await list_volumes(self._engine, INSTALLATION_LABEL)
        others = working(self._engine, volumes, time.time())
        for lease in filter(None, map(TagLease.of, volumes)):
            if lease.installation in others and lease.covers(reference):
                why = f"another daemon on this Docker Engine ({lease.installation}) has moved {lease.reference}"
                raise Temporary(ErrorCode.CONFLICT, f"{why} for a push or pull of its own, and {reference} has to wait")

    async def _release(self, lease: TagLease) -> None:
        try:
            await self._restore(lease)
        except Fault as fault:
            # The caller's own end is what counts: it may be the fault that brought it here.
            log.warning("cannot restore a tag yet", tag=lease.reference, error=fault.message)

    async def _restore(self, lease: TagLease) -> None:
        reference = ImageReference.parse(lease.reference, default_tag=None)
        image = await images.find(self._engine, reference)
        if image is not None and image.id != lease.before_id and lease.image_id in ("", image.id):
            # Removed before it is moved back: with a repository's last tag the engine forgets its digests, too.
            await images.remove(self._engine, reference)
            if lease.before_id and reference.tag and await images.inspect(self._engine, lease.before_id) is not None:
                await images.tag(self._engine, lease.before_id, reference)
        await remove_volume(self._engine, lease.volume)
        self._overdue.pop(lease.reference, None)

    async def _sweep_notes(self) -> None:
        """Once: every note that comes after it is one of this process."""
        async with self._sweeping:
            if self._has_swept:
                return
            for lease in filter(None, map(TagLease.of, await list_volumes(self._engine, LABEL))):
                if lease.reference not in self._active and await self._is_ours(lease):
                    log.info("restoring a tag that a crash left", tag=lease.reference)
                    await self._restore(lease)
            self._has_swept = True

    async def _is_ours(self, lease: TagLease) -> bool:
        """One of an earlier version is where the image under the tag is a result or a base of a job of ours."""
        if lease.installation:
            return lease.installation == self._engine.installation
        image = await images.find(self._engine, ImageReference.parse(lease.reference, default_tag=None))
        owners = [owner_of_repository(name.rpartition(":")[0]) for name in (image.tags if image else None) or ()]
        return bool(await self._known({owner.uuid for owner in owners if owner and not owner.installation}))
