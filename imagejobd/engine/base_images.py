"""The literal names of a build's bases: told to people as they wrote them, and the only ones that it may resolve.

The Dockerfile that is sent names nothing else, so an image of another name means that the engine has read it in a way
of its own. BuildKit tells each image that it resolves as a step before it uses it.

Where two builds at once start from one and the same image, BuildKit (from 23 on) does that once, and tells both of it
by the name that one of them has given it.

The images that builds start from: pulled before a build, held under names of its own, and given up after it.

BuildKit cannot authenticate on its own here, so every base is in the engine before its build begins. What a base's tag
names is decided once, in turn with whoever else moves that tag; from then on the build has it under a name that no
other job can know, and whatever becomes of the tag is no longer its concern. What a login brought in never stands
under its own name for others: the tag is leased for the pull and then given back. What was pulled anonymously stays
under its name, as a cache, until it has not been used for long or there is too much of it.
"""

import asyncio
import contextlib
import re
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Literal

import msgspec
import structlog

from imagejobd.engine import images
from imagejobd.engine.client import Engine
from imagejobd.engine.stream import BuildEvent, Step
from imagejobd.engine.tag_lease import TagLeases
from imagejobd.model.clock import now_ms
from imagejobd.model.concurrency import uninterrupted
from imagejobd.model.errors import ErrorCode, Fault, Permanent, Temporary
from imagejobd.model.ownership import PIN_PATTERN, PIN_PREFIX, PulledBase, PulledBases, refuse_reserved
from imagejobd.model.reference import ImageReference, normalize
from imagejobd.model.secrets import Credentials

_HUB = "docker.io/"
# No text that was judged can name what some build holds a base under (`bases.py`).
_ANY_HELD = re.compile(rf"{PIN_PATTERN}(?:@sha256:[0-9a-f]{{64}})?")
_OF_ANOTHER_BUILD = "a base of this build"
# `[internal] load metadata for x`, `[stage 1/2] FROM x@sha256:…`, `FROM x` and `resolve image config for x`, which
# fetches a frontend. What a user writes stands behind the bracket and the name of an instruction.
_RESOLVED = re.compile(
    r"\[internal\] load metadata for (?P<metadata>\S+)|\[(?:[^\]]* )?\d+/\d+\] FROM (?P<stage>\S+).*"
    r"|(?:\[[^\]]*\] )?FROM (?P<image>\S+).*|resolve image config for (?P<frontend>\S+)",
    re.DOTALL,
)


class BaseNames:
    """`names` are the literal ones, each with what the user calls it."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names
        literal = "|".join(map(re.escape, names))
        self._pattern = re.compile(rf"(?:docker\.io/)?({literal})(?:@sha256:[0-9a-f]{{64}})?") if names else None

    def check(self, event: BuildEvent) -> None:
        """Raise `Permanent(policy)` for a step that resolves an image which is not held."""
        match = _RESOLVED.fullmatch(event.name) if isinstance(event, Step) else None
        if match is None:
            return
        image = next(filter(None, match.groups()))
        name = image.removeprefix("docker-image://").removeprefix(_HUB).partition("@")[0]
        # What it shares it has resolved for this build, by the name here, in a step before.
        is_shared = (
            match["metadata"] is None and match["frontend"] is None and re.fullmatch(PIN_PATTERN, name) is not None
        )
        if name not in self._names and not is_shared:
            raise Permanent(
                ErrorCode.POLICY, f"the engine resolves image {image[:200]}, which was not checked for this build"
            )

    def readable(self, event: BuildEvent) -> BuildEvent:
        """The event with the user's own names; what a step prints stays as it is."""
        if not isinstance(event, Step):
            return event
        error = event.error and self.replaced(event.error)
        return msgspec.structs.replace(event, name=self.replaced(event.name), error=error)

    def replaced(self, text: str) -> str:
        own = self._pattern.sub(lambda match: self._names[match.group(1)], text) if self._pattern else text
        return _ANY_HELD.sub(_OF_ANOTHER_BUILD, own)


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


class PinnedBases(msgspec.Struct, frozen=True):
    """The literal names of the bases, in the order in which they were wanted; and those that had to be pulled."""

    names: list[str]
    pulled: list[ImageReference]


class BaseImages:
    """Holds the bases of builds. One per engine; `leases` are shared with whoever pushes, and `records` outlast it."""

    def __init__(self, engine: Engine, leases: TagLeases, records: PulledBases) -> None:
        self._engine = engine
        self._leases = leases
        self._records = records

    @contextlib.asynccontextmanager
    async def pin(
        self,
        wanted: Sequence[Wanted],
        *,
        repository: str,
        policy: PullPolicy = "missing",
        credentials: Mapping[str, Credentials] | None = None,
        pulling: Pulling = lambda reference: contextlib.nullcontext(),
    ) -> AsyncIterator[PinnedBases]:
        """Have every base in the engine, named below `repository`, for as long as the block lasts.

        `credentials` are by registry host; each pull is made inside of `pulling`. `never` pulls nothing and raises
        `Permanent(not_found)` for a missing base. An image of another platform than is wanted counts as missing. Raises
        as `images.pull` and `pulling` do, and `Permanent(policy)` for a name of this service.
        """
        nonce = secrets.token_hex(_NONCE_BYTES)
        held = PinnedBases([], [])
        grace_s: float | None = None
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
            grace_s = GIVE_UP_TIMEOUT_S
            raise
        finally:
            # A cancelled build gives up its bases too.
            await uninterrupted(self._give_up(held.names), grace_s=grace_s)

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
        if not any(name.startswith(PIN_PREFIX) for name in found.tags or ()):
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
