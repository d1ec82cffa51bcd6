"""Tags that are leased: for a while one names another image in the engine, then again what it named before.

A push needs the user's tag on the image that was built, and a pull with a login puts a tag on what not everybody may
read, while the engine shows every tag to everybody. So whoever moves one has it for himself meanwhile: nobody takes it
for a base, and it is put back in any case. That outlives a crash, because a volume without content, which the engine
keeps as it keeps images, notes each lease for as long as it lasts.

Other daemons on the engine see these notes too. Of two that want one tag at once, each of which has its note there
before it looks for the other's, at least one gives way, and tries again later.
"""

import asyncio
import contextlib
import hashlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection

import msgspec
import structlog

from imagejobd.engine import images
from imagejobd.engine.client import Engine
from imagejobd.engine.presence import MarkedVolume, list_volumes, make_note, remove_note, working
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
# How long a lessee that is cancelled waits for its tag to be put back; then that is the sweep's.
GIVE_BACK_TIMEOUT_S = 0.5

log = structlog.get_logger("imagejobd.engine")

# Which of some UUIDs are jobs of ours.
Known = Callable[[Collection[str]], Awaitable[set[str]]]


class _Note(msgspec.Struct, frozen=True):
    """A lease as a volume has it. `image_id` is what the tag names meanwhile, "" where only the lessee will know.

    `installation` is empty in a note that an earlier version has left.
    """

    installation: str
    reference: str
    before_id: str
    image_id: str

    @classmethod
    def of(cls, volume: MarkedVolume) -> "_Note | None":
        """The note that a volume is; name and labels must agree."""
        labels = (INSTALLATION_LABEL, LABEL, _BEFORE_LABEL, _IMAGE_LABEL)
        note = cls(*(volume.label(label) for label in labels))
        return note if note.reference and note.volume == volume.name else None

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
    """All leases of this process. One per engine. `known` tells which jobs are this installation's."""

    def __init__(self, engine: Engine, known: Known) -> None:
        self._engine = engine
        self._known = known
        self._turns = KeyedLock()
        # Leases that ended while the engine could not be asked to put the tag back.
        self._overdue: dict[str, _Note] = {}
        self._active: Counter[str] = Counter()
        self._repositories: Counter[str] = Counter()
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
            if note := self._overdue.get(name):
                await self._restore(note)
            await self._check_unleased(reference)
            yield

    @contextlib.asynccontextmanager
    async def lease(self, reference: ImageReference, *, image_id: str = "") -> AsyncIterator[None]:
        """Move the tag within the block; the caller has the `turn`. Afterwards it names what it did before.

        `image_id` is the image that it will name, where that is known: then a tag that somebody else has moved
        meanwhile is left alone. What cannot be put back now is put back later, and until then nobody gets the turn.
        Raises `Temporary(conflict)` for a tag that another daemon leases at the same time.
        """
        before = await images.find(self._engine, reference)
        note = _Note(self._engine.installation, str(reference), before.id if before else "", image_id)
        self._repositories[reference.repository] += 1
        self._active[note.volume] += 1
        grace_s: float | None = None
        # What another daemon has moved is not put back here.
        ending = msgspec.structs.replace(note, image_id=_UNMOVED)
        try:
            await make_note(self._engine, note.volume, note.labels)
            await self.check_unmoved(reference, note.before_id)
            ending = note
            yield
        except (asyncio.CancelledError, GeneratorExit):
            grace_s = GIVE_BACK_TIMEOUT_S
            raise
        finally:
            # A cancelled build gives its tags back too.
            await uninterrupted(self._end(ending, reference), grace_s=grace_s)

    def is_taken(self, reference: ImageReference) -> bool:
        """Whether somebody here has the turn, and may have moved the tag."""
        return self._turns.is_taken(str(reference))

    def is_leased(self, repository: str) -> bool:
        """Whether some tag of the repository names another image at the moment, as digests of it may do then."""
        return self._repositories[repository] > 0 or any(
            ImageReference.parse(name, default_tag=None).repository == repository for name in self._overdue
        )

    async def check_unmoved(self, reference: ImageReference, image_id: str) -> None:
        """Raise `Temporary(conflict)` where the name means another image by now ("" is none), or another daemon has
        leased it."""
        await self._check_unleased(reference)
        found = await images.find(self._engine, reference)
        if (found.id if found else "") != image_id:
            raise Temporary(ErrorCode.CONFLICT, f"somebody else has moved {reference} in the engine meanwhile")

    async def sweep(self) -> None:
        """Put back what a crash, or an engine that was away, has left. Raises `Temporary`."""
        await self._sweep_notes()
        for name, note in list(self._overdue.items()):
            async with self._turns.take(name):
                if self._overdue.get(name) is note:
                    try:
                        await self._restore(note)
                    except Permanent as fault:
                        log.warning("cannot put a tag back", tag=name, error=fault.message)

    async def _check_unleased(self, reference: ImageReference) -> None:
        """The notes of daemons that no longer work count for nothing: theirs to put back are the tags."""
        volumes = await list_volumes(self._engine, INSTALLATION_LABEL)
        others = working(self._engine, volumes, time.time())
        for note in filter(None, map(_Note.of, volumes)):
            if note.installation in others and note.covers(reference):
                why = f"another daemon on this Docker Engine ({note.installation}) has moved {note.reference}"
                raise Temporary(ErrorCode.CONFLICT, f"{why} for a push or pull of its own, and {reference} has to wait")

    async def _end(self, note: _Note, reference: ImageReference) -> None:
        self._overdue[note.reference] = note
        self._active[note.volume] -= 1
        try:
            await self._restore(note)
        except Fault as fault:
            # The caller's own end is what counts: it may be the fault that brought it here.
            log.warning("cannot put a tag back yet", tag=note.reference, error=fault.message)
        finally:
            self._repositories[reference.repository] -= 1

    async def _restore(self, note: _Note) -> None:
        reference = ImageReference.parse(note.reference, default_tag=None)
        now = await images.find(self._engine, reference)
        if now is not None and now.id != note.before_id and note.image_id in ("", now.id):
            # Removed before it is moved back: with a repository's last tag the engine forgets its digests, too.
            await images.remove(self._engine, reference)
            if note.before_id and reference.tag and await images.inspect(self._engine, note.before_id) is not None:
                await images.tag(self._engine, note.before_id, reference)
        await remove_note(self._engine, note.volume)
        self._overdue.pop(note.reference, None)

    async def _sweep_notes(self) -> None:
        """Once: every note that comes after it is one of this process."""
        if self._has_swept:
            return
        async with self._sweeping:
            if self._has_swept:
                return
            for note in filter(None, map(_Note.of, await list_volumes(self._engine, LABEL))):
                if not self._active[note.volume] and await self._is_ours(note):
                    log.info("putting back a tag that a crash left", tag=note.reference)
                    await self._restore(note)
            self._has_swept = True

    async def _is_ours(self, note: _Note) -> bool:
        """One of an earlier version is where the image under the tag is a result or a base of a job of ours."""
        if note.installation:
            return note.installation == self._engine.installation
        found = await images.find(self._engine, ImageReference.parse(note.reference, default_tag=None))
        owners = [owner_of_repository(name.rpartition(":")[0]) for name in (found.tags if found else None) or ()]
        return bool(await self._known({owner.uuid for owner in owners if owner and not owner.installation}))
