"""The images that builds start from: pulled before a build, pinned under names of its own, and released after it.

BuildKit cannot authenticate on its own here, so every base is in the engine before its build begins. What a base's tag
names is decided once, in turn with whoever else moves that tag; from then on the build has it under a name that no
other job can know, whatever becomes of the tag. What a login brought in never stays under its own name, which is
everybody's: the tag is leased for the pull, and then restored. What was pulled anonymously stays under its name, as a
cache, until it has not been used for long or there is too much of it.
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
from imagejobd.engine.leases import TagLeases
from imagejobd.model.clock import now_ms
from imagejobd.model.concurrency import uninterrupted
from imagejobd.model.errors import ErrorCode, Fault, NotFound, Temporary
from imagejobd.model.ownership import PIN_PREFIX, PulledBase, PulledBases, refuse_reserved
from imagejobd.model.reference import ImageReference, normalize
from imagejobd.model.secrets import Credentials

PullPolicy = Literal["missing", "always", "never"]

# What a base is pulled inside of.
Pulling = Callable[[ImageReference], contextlib.AbstractAsyncContextManager[None]]

# How long a build that is cancelled waits for its pins to go; after that they go with the job's other names.
RELEASE_TIMEOUT_S = 0.3

_NONCE_BYTES = 16
_DAY_MS = 24 * 3600 * 1000

log = structlog.get_logger("imagejobd.engine")


class PinnedBases(msgspec.Struct, frozen=True):
    """The literal names of the bases, in the order in which they were asked for; and those that had to be pulled."""

    names: list[str]
    pulled: list[ImageReference]


class BaseImages:
    """Pins the bases of builds. One per engine; `leases` are shared with whoever pushes, and `records` outlast it."""

    def __init__(self, engine: Engine, leases: TagLeases, records: PulledBases) -> None:
        self._engine = engine
        self._leases = leases
        self._records = records

    @contextlib.asynccontextmanager
    async def pin(
        self,
        references: Sequence[tuple[ImageReference, str]],
        *,
        repository: str,
        policy: PullPolicy = "missing",
        credentials: Mapping[str, Credentials] | None = None,
        pulling: Pulling = lambda reference: contextlib.nullcontext(),
    ) -> AsyncIterator[PinnedBases]:
        """Have every base in the engine, named below `repository`, for as long as the block lasts.

        `references` are given, each with a platform ("" is the engine's own): an image of another one counts as
        missing. `credentials` are by registry host; each pull is made inside of `pulling`. The policy `never` pulls
        nothing and raises `Permanent(not_found)` for a missing base. Raises as `images.pull` and `pulling` do, and
        `Permanent(policy)` for a name of this service.
        """
        nonce = secrets.token_hex(_NONCE_BYTES)
        bases = PinnedBases([], [])
        grace_s: float | None = None
        try:
            for number, (reference, platform) in enumerate(references):
                refuse_reserved("base image", reference)
                pin = ImageReference.parse(f"{repository}:base-{nonce}-{number}")
                bases.names.append(str(pin))
                # The engine pulls under the digest alone where there is a tag beside it.
                base = (
                    ImageReference(reference.host, reference.path, digest=reference.digest)
                    if reference.digest
                    else reference
                )
                async with self._leases.turn(base):
                    if await self._pin_present(base, platform, pin, policy):
                        continue
                    async with pulling(base):
                        await self._pin_pulled(base, platform, pin, (credentials or {}).get(base.host))
                bases.pulled.append(reference)
            yield bases
        except (asyncio.CancelledError, GeneratorExit):
            grace_s = RELEASE_TIMEOUT_S
            raise
        finally:
            # A cancelled build releases its bases too.
            await uninterrupted(self._release(bases.names), grace_s=grace_s)

    async def prune(self) -> None:
        """Remove the public bases that this daemon has pulled and nobody has used for `bases_keep_days`, and the least
        recently used ones beyond `bases_keep_bytes`, each by its name. What is in use stays until later.

        Raises as `Engine.request` does.
        """
        size_bytes: dict[str, int] = {}
        for record in await self._records.bases():
            base = ImageReference.parse(record.name, default_tag=None)
            if self._leases.is_taken(base):
                continue
            try:
                async with self._leases.turn(base):
                    await self._prune(record, base, size_bytes)
            except Temporary as fault:
                if fault.code is not ErrorCode.CONFLICT:
                    raise
                log.info("cannot remove an unused base yet", name=record.name, error=fault.message)

    async def _prune(self, record: PulledBase, base: ImageReference, size_bytes: dict[str, int]) -> None:
        """Keep or remove one base, of which the caller has the turn. `size_bytes` are the images' before it, by id:
        names of one image take its space once."""
        image = await images.find(self._engine, base)
        if image is None or image.id != record.image_id:
            # The operator has removed or moved it, and means that.
            await self._records.forget(record)
            return
        settings = self._engine.settings
        size_bytes[image.id] = image.size_bytes
        unused_ms = now_ms() - record.used_ms
        if unused_ms <= settings.bases_keep_days * _DAY_MS and sum(size_bytes.values()) <= settings.bases_keep_bytes:
            return
        if not any(name.startswith(PIN_PREFIX) for name in image.tags or ()):
            await images.remove(self._engine, base)
            await self._records.forget(record)
            log.info("removed an unused base", name=record.name, size_bytes=image.size_bytes)

    async def _pin_present(self, base: ImageReference, platform: str, pin: ImageReference, policy: PullPolicy) -> bool:
        """Pin the base as everybody may have it; False where it has to be pulled."""
        image = None if policy == "always" else await self._public_image(base, platform)
        if image is not None:
            await self._pin_image(image, base, pin)
            await self._records.used(str(base))
        elif policy == "never":
            label = f"{base} ({platform})" if platform else str(base)
            raise NotFound(f"base image {label} is not in the engine, and pulling is off")
        return image is not None

    async def _public_image(self, base: ImageReference, platform: str) -> images.ImageInfo | None:
        """The base as everybody may have it. While a tag of its repository is leased a digest of it proves nothing."""
        if base.digest is not None and self._leases.is_leased(base.repository):
            return None
        image = await images.find(self._engine, base)
        if image is None:
            return None
        engine = await self._engine.ping()
        return image if image.is_for(normalize(platform, f"{engine.os}/{engine.architecture}")) else None

    async def _pin_pulled(
        self, base: ImageReference, platform: str, pin: ImageReference, login: Credentials | None
    ) -> None:
        """Pull the base and pin it. Only what came without a login keeps its own name, and is recorded, unless the
        operator had put an image under it."""
        if login is not None:
            async with self._leases.lease(base):
                await self._pull(base, platform, pin, login)
            return
        name, before = str(base), await images.find(self._engine, base)
        image = await self._pull(base, platform, pin, None)
        if before is not None and not any(
            (record.name, record.image_id) == (name, before.id) for record in await self._records.bases()
        ):
            return
        await self._records.pulled(name, image.id)
        # What the tag named before has but its digest for a name now.
        if before is not None and before.id != image.id:
            for digest in before.digests or ():
                if digest.startswith(f"{base.repository}@"):
                    await self._records.pulled(digest, before.id)

    async def _pull(
        self, base: ImageReference, platform: str, pin: ImageReference, login: Credentials | None
    ) -> images.ImageInfo:
        async with contextlib.aclosing(images.pull(self._engine, base, login, platform=platform)) as transfers:
            async for _ in transfers:
                pass
        image = await images.find(self._engine, base)
        if image is None:
            raise Temporary(ErrorCode.CONFLICT, f"base image {base} was removed from the engine meanwhile")
        await self._pin_image(image, base, pin)
        return image

    async def _pin_image(self, image: images.ImageInfo, base: ImageReference, pin: ImageReference) -> None:
        """Put the name `pin` on the image, which `base` then still has to mean: another daemon may have moved it."""
        await images.tag(self._engine, image.id, pin)
        await self._leases.check_unmoved(base, image.id)

    async def _release(self, names: Sequence[str]) -> None:
        """What cannot be removed now is removed with the job's other names."""
        for name in names:
            try:
                await images.remove(self._engine, ImageReference.parse(name))
            except Fault as fault:
                log.info("cannot release a base yet", name=name, error=fault.message)
