"""The images that builds start from: pulled before a build, held under names of its own, and given up after it.

BuildKit cannot authenticate on its own here, so every base is in the engine before its build begins. What a base's tag
names is decided once, in turn with whoever else moves that tag; from then on the build has it under a name that no
other job can know, and whatever becomes of the tag is no longer its concern. What a login brought in never stands
under its own name for others: the tag is leased for the pull and then given back. What was pulled anonymously stays
under its name, as a cache, until it has not been used for long or there is too much of it.
"""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Literal

import msgspec
import structlog

from imagejobd.engine import images
from imagejobd.engine.client import Engine
from imagejobd.engine.tag_lease import TagLeases
from imagejobd.model.bases import PulledBase, PulledBases
from imagejobd.model.clock import now_ms
from imagejobd.model.errors import ErrorCode, Fault, Permanent, Temporary
from imagejobd.model.platform import normalize
from imagejobd.model.reference import ImageReference
from imagejobd.model.reserved import HELD_PREFIX, refuse_reserved
from imagejobd.model.secret import Credentials
from imagejobd.model.together import to_its_end

PullPolicy = Literal["missing", "always", "never"]

# A reference and the platform that is wanted of it; "" is the engine's own.
Wanted = tuple[ImageReference, str]

# What a base is pulled inside of.
Pulling = Callable[[ImageReference], contextlib.AbstractAsyncContextManager[None]]

_NONCE_BYTES = 16
# How long a build that is cancelled waits for its bases to be given up; then they go with the job's other names.
GIVE_UP_TIMEOUT_S = 0.3
_DAY_MS = 24 * 3600 * 1000

log = structlog.get_logger("imagejobd.engine")


class HeldBases(msgspec.Struct, frozen=True):
    """The literal names of the bases, in the order in which they were wanted; and those that had to be pulled."""

    names: list[str]
    pulled: list[ImageReference]


class Bases:
    """Holds the bases of builds. One per engine; `leases` are shared with whoever pushes, and `records` outlast it."""

    def __init__(self, engine: Engine, leases: TagLeases, records: PulledBases) -> None:
        self._engine = engine
        self._leases = leases
        self._records = records

    @contextlib.asynccontextmanager
    async def hold(
        self,
        wanted: Sequence[Wanted],
        *,
        repository: str,
        policy: PullPolicy = "missing",
        credentials: Mapping[str, Credentials] | None = None,
        pulling: Pulling = lambda reference: contextlib.nullcontext(),
    ) -> AsyncIterator[HeldBases]:
        """Have every base in the engine, named below `repository`, for as long as the block lasts.

        `credentials` are by registry host; each pull is made inside of `pulling`. `never` pulls nothing and raises
        `Permanent(not_found)` for a missing base. An image of another platform than is wanted counts as missing. Raises
        as `images.pull` and `pulling` do, and `Permanent(policy)` for a name of this service.
        """
        nonce = secrets.token_hex(_NONCE_BYTES)
        held = HeldBases([], [])
        patience_s: float | None = None
        try:
            for number, (reference, platform) in enumerate(wanted):
                refuse_reserved("base image", reference)
                name = ImageReference.parse(f"{repository}:base-{nonce}-{number}")
                held.names.append(str(name))
                login = (credentials or {}).get(reference.host)
                async with self._leases.turn(_pinned(reference)):
                    if await self._tag_present(_pinned(reference), platform, name, policy):
                        continue
                    async with pulling(_pinned(reference)):
                        await self._tag_pulled(_pinned(reference), platform, name, login)
                held.pulled.append(reference)
            yield held
        except (asyncio.CancelledError, GeneratorExit):
            patience_s = GIVE_UP_TIMEOUT_S
            raise
        finally:
            # A cancelled build gives up its bases too.
            await to_its_end(self._give_up(held.names), patience_s=patience_s)

    async def prune(self) -> None:
        """Remove the public bases that this daemon has pulled and nobody has used for `bases_keep_days`, and the least
        recently used ones beyond `bases_keep_bytes`, each by its name. What is in use stays until later.

        Raises as `Engine.request` does.
        """
        kept_bytes: dict[str, int] = {}
        for base in await self._records.bases():
            reference = ImageReference.parse(base.name, default_tag=None)
            if self._leases.is_taken(reference):
                continue
            try:
                async with self._leases.turn(reference):
                    await self._prune(base, reference, kept_bytes)
            except Temporary as fault:
                if fault.code is not ErrorCode.CONFLICT:
                    raise
                log.info("cannot remove an unused base yet", name=base.name, error=fault.message)

    async def _prune(self, base: PulledBase, reference: ImageReference, kept_bytes: dict[str, int]) -> None:
        """Keep or remove one base, of which the caller has the turn. `kept_bytes` are those of the images before it."""
        found = await images.find(self._engine, reference)
        if found is None or found.id != base.image_id:
            # The operator has removed or moved it, and means that.
            await self._records.forget(base)
            return
        settings = self._engine.settings
        # Names of one image take its space once.
        kept_bytes[found.id] = found.size_bytes
        unused_ms = now_ms() - base.used_ms
        if unused_ms <= settings.bases_keep_days * _DAY_MS and sum(kept_bytes.values()) <= settings.bases_keep_bytes:
            return
        if not any(name.startswith(HELD_PREFIX) for name in found.tags or ()):
            await images.remove(self._engine, reference)
            await self._records.forget(base)
            log.info("removed an unused base", name=base.name, size_bytes=found.size_bytes)

    async def _tag_present(
        self, reference: ImageReference, platform: str, name: ImageReference, policy: PullPolicy
    ) -> bool:
        """Put `name` on the base as everybody may have it; False where it has to be pulled."""
        found = None if policy == "always" else await self._present(reference, platform)
        if found is not None:
            await self._tag(found, reference, name)
            await self._records.used(str(reference))
        elif policy == "never":
            shown = f"{reference} ({platform})" if platform else str(reference)
            raise Permanent(ErrorCode.NOT_FOUND, f"base image {shown} is not in the engine, and pulling is off")
        return found is not None

    async def _tag_pulled(
        self, reference: ImageReference, platform: str, name: ImageReference, login: Credentials | None
    ) -> None:
        """Pull the base and put `name` on it. Only what came without a login keeps its own name."""
        if login is not None:
            async with self._leases.lease(reference):
                await self._pull(reference, platform, name, login)
            return
        before = await images.find(self._engine, reference)
        pulled = await self._pull(reference, platform, name, None)
        if before is None or await self._is_recorded(reference, before):
            await self._record(reference, before, pulled)

    async def _is_recorded(self, reference: ImageReference, found: images.ImageInfo) -> bool:
        return any((base.name, base.image_id) == (str(reference), found.id) for base in await self._records.bases())

    async def _record(
        self, reference: ImageReference, before: images.ImageInfo | None, pulled: images.ImageInfo
    ) -> None:
        """Remember what was pulled, and what its tag named `before`, which has but its digest for a name now."""
        await self._records.pulled(str(reference), pulled.id)
        if before is not None and before.id != pulled.id:
            for digest in before.digests or ():
                if digest.startswith(f"{reference.repository}@"):
                    await self._records.pulled(digest, before.id)

    async def _pull(
        self, reference: ImageReference, platform: str, name: ImageReference, login: Credentials | None
    ) -> images.ImageInfo:
        transfers = images.pull(self._engine, reference, login, platform=platform)
        async with contextlib.aclosing(transfers):
            async for _ in transfers:
                pass
        pulled = await images.find(self._engine, reference)
        if pulled is None:
            raise Temporary(ErrorCode.CONFLICT, f"base image {reference} was removed from the engine meanwhile")
        await self._tag(pulled, reference, name)
        return pulled

    async def _tag(self, found: images.ImageInfo, reference: ImageReference, name: ImageReference) -> None:
        """Put `name` on the image, which `reference` then still has to mean: another daemon may have moved it."""
        await images.tag(self._engine, found.id, name)
        await self._leases.check_unmoved(reference, found.id)

    async def _present(self, reference: ImageReference, platform: str) -> images.ImageInfo | None:
        """The base as everybody may have it. While a tag of its repository is leased a digest of it proves nothing."""
        if reference.digest is not None and self._leases.is_leased(reference.repository):
            return None
        found = await images.find(self._engine, reference)
        if found is None:
            return None
        own = await self._engine.ping()
        host = f"{own.os}/{own.architecture}"
        return found if found.is_for(normalize(platform, host)) else None

    async def _give_up(self, names: Sequence[str]) -> None:
        """What cannot be removed now is removed with the job's other names."""
        for name in names:
            try:
                await images.remove(self._engine, ImageReference.parse(name))
            except Fault as fault:
                log.info("cannot give up a base yet", name=name, error=fault.message)


def _pinned(reference: ImageReference) -> ImageReference:
    """The reference as the engine names what it pulls: a digest wins over a tag beside it."""
    if reference.digest is None:
        return reference
    return ImageReference(reference.host, reference.path, digest=reference.digest)
