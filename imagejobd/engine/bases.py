"""The images that builds start from: pulled before a build, held while it goes on, and given up after it.

BuildKit cannot authenticate on its own here, so every base is in the engine before its build begins. What a tenant's
credentials brought in goes when its last holder leaves, and until then nobody else builds on it without fetching it
too, with rights of their own: a base in the engine is open to every Dockerfile. What was pulled anonymously stays, as
a cache.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Literal

from imagejobd.engine import images
from imagejobd.engine.client import Engine
from imagejobd.model.errors import ErrorCode, Fault, Permanent, invalid
from imagejobd.model.reference import ImageReference
from imagejobd.model.reserved import BASE_MARK_REPOSITORY, refuse_reserved
from imagejobd.model.secret import Credentials

PullPolicy = Literal["missing", "always", "never"]

# A reference and the platform that is wanted of it; "" is the engine's own.
Wanted = tuple[ImageReference, str]

# A base that credentials brought in is marked with a second name, which outlives a crash of this process and guides
# `sweep`: its tag is a fingerprint of the first.
_MARK_HEX_DIGITS = 40


class _Base:
    """One reference that builds of this process hold. `id_before` is its image before credentials were used on it."""

    __slots__ = ("holders", "id_before", "is_private", "lock")

    def __init__(self) -> None:
        self.holders = 0
        self.is_private = False
        self.id_before: str | None = None
        # Single flight: who waits here finds the image when its turn comes.
        self.lock = asyncio.Lock()


class Bases:
    """All bases in use. One per engine; its counts live in this process only."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._bases: dict[ImageReference, _Base] = {}
        self._has_swept = False
        self._sweeping = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def hold(
        self,
        wanted: Iterable[Wanted],
        *,
        policy: PullPolicy = "missing",
        credentials: Mapping[str, Credentials] | None = None,
    ) -> AsyncIterator[list[ImageReference]]:
        """Have every base in the engine for as long as the block lasts; gives those that were pulled for it.

        `credentials` are by registry host. `never` pulls nothing and raises `Permanent(not_found)` for a missing base.
        An image of another platform than is wanted counts as missing. The engine has one image to a name, so one
        reference for two platforms is `Permanent(invalid)`: BuildKit would fetch the other itself, unseen.
        Raises as `images.pull` does, and `Permanent(policy)` for a name of this service.
        """
        wanted = [(_pinned(reference), platform) for reference, platform in wanted]
        await self._refuse_two_platforms(wanted)
        # Before anything is held: what a crash left would pass for a base that is open to everybody.
        await self._sweep_marks()
        pulled: list[ImageReference] = []
        async with contextlib.AsyncExitStack() as held:
            for reference, platform in wanted:
                refuse_reserved("base image", reference)
                base = self._bases.setdefault(reference, _Base())
                base.holders += 1
                held.push_async_callback(self._release, reference)
                allowed = (credentials or {}).get(reference.host)
                async with base.lock:
                    if await self._is_wanting(base, reference, platform, policy):
                        await self._pull(base, reference, allowed, platform)
                        pulled.append(reference)
            yield pulled

    async def sweep(self) -> list[str]:
        """Take away the private bases that nobody holds; returns the names that a crashed process had left.

        Besides those of a crash, they are the ones that the engine would not give up when their last holder left.
        """
        removed = await self._sweep_marks()
        for reference, base in list(self._bases.items()):
            async with base.lock:
                await self._give_up(base, reference)
        return removed

    async def _sweep_marks(self) -> list[str]:
        """Done once: every mark that comes after it is one of this process."""
        async with self._sweeping:
            removed: list[str] = []
            if not self._has_swept:
                for mark in await images.list_tags(self._engine, f"{BASE_MARK_REPOSITORY}:"):
                    removed += await self._remove_marked(mark)
            self._has_swept = True
            return removed

    async def _remove_marked(self, mark: str) -> list[str]:
        removed: list[str] = []
        image = await images.inspect(self._engine, mark)
        for name in (*(image.tags or ()), *(image.digests or ())) if image else ():
            reference = ImageReference.parse(name, default_tag=None)
            if str(_mark(reference)) == mark and await images.remove(self._engine, reference):
                removed.append(name)
        await images.remove(self._engine, ImageReference.parse(mark))
        return removed

    async def _is_wanting(self, base: _Base, reference: ImageReference, platform: str, policy: PullPolicy) -> bool:
        """Whether the base has to be pulled. One that credentials brought in is pulled again by each holder."""
        if policy == "always":
            return True
        is_usable = not base.is_private and await self._is_present(reference, platform)
        if policy == "never" and not is_usable:
            name = f"{reference} ({platform})" if platform else str(reference)
            raise Permanent(ErrorCode.NOT_FOUND, f"base image {name} is not in the engine, and pulling is off")
        return not is_usable

    async def _is_present(self, reference: ImageReference, platform: str) -> bool:
        image = await self._image(reference)
        if image is None:
            return False
        return image.is_for(platform or await self._own_platform())

    async def _refuse_two_platforms(self, wanted: Iterable[Wanted]) -> None:
        first: dict[ImageReference, str] = {}
        for reference, platform in wanted:
            other = first.setdefault(reference, platform)
            if platform == other:
                continue
            own = await self._own_platform()
            if images.normal_platform(platform or own) != images.normal_platform(other or own):
                raise invalid(
                    f"base image {reference} is wanted for {other or own} and for {platform or own}: one build takes an"
                    " image for one platform only; name each by its own tag or digest"
                )

    async def _own_platform(self) -> str:
        own = await self._engine.ping()
        return f"{own.os}/{own.architecture}"

    async def _pull(
        self, base: _Base, reference: ImageReference, credentials: Credentials | None, platform: str
    ) -> None:
        if credentials is not None and not base.is_private:
            base.id_before = await self._image_id(reference)
            # Known before the pull begins, so that one that is cut after its last byte is not forgotten.
            base.is_private = True
        transfers = images.pull(self._engine, reference, credentials, platform=platform)
        async with contextlib.aclosing(transfers):
            async for _ in transfers:
                pass
        if base.is_private and await self._came_by_credentials(base, reference):
            await images.tag(self._engine, reference, _mark(reference))

    async def _came_by_credentials(self, base: _Base, reference: ImageReference) -> bool:
        """Whether the image is another one than stood there for everybody."""
        return await self._image_id(reference) not in (None, base.id_before)

    async def _image_id(self, reference: ImageReference) -> str | None:
        image = await self._image(reference)
        return image.id if image is not None else None

    async def _image(self, reference: ImageReference) -> images.ImageInfo | None:
        """The image of that name; the engine would also take the name for the beginning of an id."""
        image = await images.inspect(self._engine, reference)
        has_name = image is not None and str(reference) in (*(image.tags or ()), *(image.digests or ()))
        return image if has_name else None

    async def _release(self, reference: ImageReference) -> None:
        # A cancelled build gives up its private base too.
        await asyncio.shield(self._leave(reference))

    async def _leave(self, reference: ImageReference) -> None:
        base = self._bases[reference]
        async with base.lock:
            base.holders -= 1
            # What cannot be removed now stays known as private: its next holder, or the next sweep, tries again.
            with contextlib.suppress(Fault):
                await self._give_up(base, reference)

    async def _give_up(self, base: _Base, reference: ImageReference) -> None:
        """Forget a base that nobody holds; its lock is held."""
        if not base.holders and base.is_private:
            await self._forget(base, reference)
        # While this one waited for the engine another may have come: it waits for the lock and counts already.
        if not base.holders and not base.is_private and self._bases.get(reference) is base:
            del self._bases[reference]

    async def _forget(self, base: _Base, reference: ImageReference) -> None:
        if await self._came_by_credentials(base, reference):
            await images.remove(self._engine, reference)
        await images.remove(self._engine, _mark(reference))
        base.is_private, base.id_before = False, None


def _pinned(reference: ImageReference) -> ImageReference:
    """The reference as the engine names what it pulls: a digest wins over a tag beside it."""
    if reference.digest is None:
        return reference
    return ImageReference(reference.host, reference.path, digest=reference.digest)


def _mark(reference: ImageReference) -> ImageReference:
    fingerprint = hashlib.sha256(str(reference).encode()).hexdigest()[:_MARK_HEX_DIGITS]
    return ImageReference.parse(f"{BASE_MARK_REPOSITORY}:{fingerprint}")
