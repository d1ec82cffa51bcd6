"""What daemons beside each other on one engine note there: that each works, and which tags it has moved for a while.

A note is a volume without content, which the engine keeps, as it keeps images, through restarts of both. No daemon
removes another's. That a daemon works is noted with a time in the volume's name, so that the note of one that died
counts for `ALIVE_FOR_S` at most.

A push needs the user's tag on the image that was built, and a pull with a login puts a tag on what not everybody may
read, while the engine shows every tag to everybody. So whoever moves a tag leases it: nobody takes it for a base
meanwhile, and it is restored in any case, after a crash too. Of two daemons that want one tag at once, each of which
has its note there before it looks for the other's, at least one gives way, and tries again later.
"""

import asyncio
import contextlib
import hashlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from typing import Self

import msgspec
import structlog

from imagejobd.engine import images
from imagejobd.engine.client import Engine
from imagejobd.engine.container import Volume, list_volumes, make_volume, remove_volume
from imagejobd.model.concurrency import KeyedLock, uninterrupted
from imagejobd.model.errors import ErrorCode, Fault, NotFound, Permanent, Temporary
from imagejobd.model.failpoint import failpoint
from imagejobd.model.ownership import INSTALLATION_LABEL, owner_of_repository
from imagejobd.model.reference import ImageReference

RENEW_EVERY_S = 60.0
RENEW_RETRY_S = 5.0
ALIVE_FOR_S = 180.0
WITHDRAW_TIMEOUT_S = 1.0
# How long a lessee that is cancelled waits for its tag to be restored; after that the sweep does it.
RESTORE_TIMEOUT_S = 0.5
LABEL = "imagejobd.tag"

_NOTE = re.compile(r"imagejobd-([0-9a-f]{12})-alive-(\d{1,12})")
_BEFORE_LABEL = "imagejobd.tag-before"
_IMAGE_LABEL = "imagejobd.tag-image"
_NAME_HEX_DIGITS = 40
# Stands for the image of a lease that ends before its tag was moved; no image has this id.
_UNMOVED = "unmoved"

log = structlog.get_logger("imagejobd.engine")

# Which of some UUIDs are jobs of ours.
Known = Callable[[Collection[str]], Awaitable[set[str]]]


class Presence:
    """This daemon's own note, and the others that it sees. One per engine."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._clock = clock
        self._others: set[str] = set()
        self._is_noted = False

    @property
    def others(self) -> list[str]:
        """The installations whose daemons were seen at work on this engine when it last answered."""
        return sorted(self._others)

    async def renew(self) -> None:
        """Note that this daemon works, and look who else does. Raises as `Engine.request` does."""
        now_s = self._clock()
        note = f"{self._prefix}{int(now_s)}"
        self._is_noted = True
        await make_volume(self._engine, note, {})
        volumes = await list_volumes(self._engine, INSTALLATION_LABEL)
        await self._remove_notes(volumes, but=note)
        others = _working(self._engine, volumes, now_s)
        for installation in sorted(others - self._others):
            log.warning(
                "another daemon works on this Docker Engine; both may, and the build cache is pruned by both",
                installation=installation,
                own=self._engine.installation,
            )
        for installation in sorted(self._others - others):
            log.info("the other daemon no longer works on this Docker Engine", installation=installation)
        self._others = others

    async def withdraw(self) -> None:
        """Take the note away, for a daemon that stops; an engine that does not answer soon keeps it for a while."""
        if not self._is_noted:
            return
        try:
            async with asyncio.timeout(WITHDRAW_TIMEOUT_S):
                await self._remove_notes(await list_volumes(self._engine, INSTALLATION_LABEL))
        except (Fault, TimeoutError) as error:
            log.info("cannot remove the note that this daemon works", error=str(error))

    @property
    def _prefix(self) -> str:
        return f"imagejobd-{self._engine.installation}-alive-"

    async def _remove_notes(self, volumes: Iterable[Volume], but: str = "") -> None:
        for volume in volumes:
            if volume.name.startswith(self._prefix) and volume.name != but:
                await remove_volume(self._engine, volume.name)


async def presence_loop(presence: Presence) -> None:
    """Renew the note now and every minute, as soon as the engine answers."""
    while True:
        try:
            await presence.renew()
        except Fault:
            # An engine that does not answer is in the log already.
            await asyncio.sleep(RENEW_RETRY_S)
        else:
            await asyncio.sleep(RENEW_EVERY_S)


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
        others = _working(self._engine, volumes, time.time())
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
        is_gone = image is None and lease.image_id != _UNMOVED  # a crash came between the two steps below
        if image is not None and image.id != lease.before_id and lease.image_id in ("", image.id):
            # Removed before it is moved back: with a repository's last tag the engine forgets its digests, too.
            await images.remove(self._engine, reference)
            is_gone = True
            failpoint("while_restoring")
        if is_gone and lease.before_id and reference.tag:
            with contextlib.suppress(NotFound):
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


def _working(engine: Engine, volumes: Iterable[Volume], now_s: float) -> set[str]:
    """The other installations whose notes among `volumes` are of now; a clock that was set makes none immortal."""
    return {
        match[1]
        for volume in volumes
        if (match := _NOTE.fullmatch(volume.name))
        and volume.label(INSTALLATION_LABEL) == match[1] != engine.installation
        and abs(now_s - int(match[2])) < ALIVE_FOR_S
    }
