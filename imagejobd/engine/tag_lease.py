"""Tags that are leased: for a while one names another image in the engine, then again what it named before.

A push needs the user's tag on the image that was built, and a pull with a login puts a tag on what not everybody may
read, while the engine shows every tag to everybody. So whoever moves one has it for himself meanwhile: nobody takes it
for a base, and it is put back in any case. That outlives a crash, because a volume without content, which the engine
keeps as it keeps images, notes each lease for as long as it lasts.
"""

import asyncio
import contextlib
import hashlib
from collections import Counter
from collections.abc import AsyncIterator
from urllib.parse import quote

import msgspec
import structlog

from imagejobd.engine import images
from imagejobd.engine.client import Engine
from imagejobd.model.errors import ErrorCode, Fault, Permanent
from imagejobd.model.reference import ImageReference
from imagejobd.model.turns import Turns

LABEL = "imagejobd.tag"
_BEFORE_LABEL = "imagejobd.tag-before"
_IMAGE_LABEL = "imagejobd.tag-image"
_NAME_HEX_DIGITS = 40

log = structlog.get_logger("imagejobd.engine")


class _Note(msgspec.Struct, frozen=True):
    """A lease as a volume has it. `image_id` is what the tag names meanwhile, "" where only the lessee will know."""

    reference: str
    before_id: str
    image_id: str

    @property
    def volume(self) -> str:
        return f"imagejobd-tag-{hashlib.sha256(self.reference.encode()).hexdigest()[:_NAME_HEX_DIGITS]}"

    @property
    def labels(self) -> dict[str, str]:
        return {LABEL: self.reference, _BEFORE_LABEL: self.before_id, _IMAGE_LABEL: self.image_id}


class _Volume(msgspec.Struct, frozen=True):
    name: str = msgspec.field(name="Name", default="")
    labels: dict[str, str] | None = msgspec.field(name="Labels", default=None)


class _Volumes(msgspec.Struct, frozen=True):
    volumes: list[_Volume] | None = msgspec.field(name="Volumes", default=None)


class TagLeases:
    """All leases of this process. One per engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._turns = Turns()
        # Leases that ended while the engine could not be asked to put the tag back.
        self._overdue: dict[str, _Note] = {}
        self._active: Counter[str] = Counter()
        self._repositories: Counter[str] = Counter()
        self._has_swept = False
        self._sweeping = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def turn(self, reference: ImageReference) -> AsyncIterator[None]:
        """Have the tag for oneself without moving it: it names what everybody may have. Raises `Temporary`."""
        await self._sweep_notes()
        name = str(reference)
        async with self._turns.take(name):
            if note := self._overdue.get(name):
                await self._restore(note)
            yield

    @contextlib.asynccontextmanager
    async def lease(self, reference: ImageReference, *, image_id: str = "") -> AsyncIterator[None]:
        """Move the tag within the block; the caller has the `turn`. Afterwards it names what it did before.

        `image_id` is the image that it will name, where that is known: then a tag that somebody else has moved
        meanwhile is left alone. What cannot be put back now is put back later, and until then nobody gets the turn.
        """
        before = await images.find(self._engine, reference)
        note = _Note(str(reference), before.id if before else "", image_id)
        self._repositories[reference.repository] += 1
        self._active[note.volume] += 1
        try:
            await self._engine.request_json(
                "POST", "volumes/create", _Volume, body={"Name": note.volume, "Labels": note.labels}
            )
            yield
        finally:
            # A cancelled build gives its tags back too.
            await asyncio.shield(self._end(note, reference))

    def is_leased(self, repository: str) -> bool:
        """Whether some tag of the repository names another image at the moment, as digests of it may do then."""
        return self._repositories[repository] > 0 or any(
            ImageReference.parse(name, default_tag=None).repository == repository for name in self._overdue
        )

    async def sweep(self) -> None:
        """Put back what a crash, or an engine that was away, has left. Raises `Temporary`."""
        await self._sweep_notes()
        for name, note in list(self._overdue.items()):
            async with self._turns.take(name):
                if self._overdue.get(name) is note:
                    await self._restore(note)

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
        await self._forget(note)

    async def _forget(self, note: _Note) -> None:
        try:
            await self._engine.request("DELETE", f"volumes/{quote(note.volume)}")
        except Permanent as fault:
            if fault.code is not ErrorCode.NOT_FOUND:
                raise
        self._overdue.pop(note.reference, None)

    async def _sweep_notes(self) -> None:
        """Once: every note that comes after it is one of this process."""
        if self._has_swept:
            return
        async with self._sweeping:
            if self._has_swept:
                return
            filters = msgspec.json.encode({"label": [LABEL]}).decode()
            listed = await self._engine.request_json("GET", "volumes", _Volumes, params=[("filters", filters)])
            for volume in listed.volumes or ():
                labels = volume.labels or {}
                note = _Note(labels.get(LABEL, ""), labels.get(_BEFORE_LABEL, ""), labels.get(_IMAGE_LABEL, ""))
                # Name and label must agree before one is taken for ours.
                if volume.name == note.volume and not self._active[note.volume]:
                    log.info("putting back a tag that a crash left", tag=note.reference)
                    await self._restore(note)
            self._has_swept = True
