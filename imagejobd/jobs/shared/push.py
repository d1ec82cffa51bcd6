"""Pushing what was built: under the user's tag, in turn, proved by the registry itself, and counted.

How much was sent the engine does not say plainly. It tells the end of each part: pushed, mounted, or there already; and
some engines count the bytes of layers before they are compressed. So the sizes are those of the manifest that the
registry has now.
"""

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import aclosing, contextmanager, suppress

from msgspec.structs import replace

from imagejobd.engine import images
from imagejobd.engine.client import Engine
from imagejobd.engine.leases import TagLeases
from imagejobd.engine.stream import Transfer
from imagejobd.jobs.shared.access import RegistryAccess
from imagejobd.model.errors import ENGINE, ErrorCode, Fault, NotFound, Temporary
from imagejobd.model.failpoint import failpoint
from imagejobd.model.job import PUSH_ERROR_MAX_CHARS, Push
from imagejobd.model.kind import JobContext
from imagejobd.model.reference import ImageReference
from imagejobd.model.text import one_line

SIZES_TIMEOUT_S = 10.0
# Hexadecimal digits of a digest by which engines name a part.
SHORT_ID_CHARS = 12

_PUSHED = "Pushed"
_MOUNTED = "Mounted from "
_SKIPPED = frozenset({"Layer already exists", "Already exists", "Skipped foreign layer"})


class Pusher:
    """Pushes images of one engine; `leases` are the turns that jobs take at a tag."""

    def __init__(self, engine: Engine, leases: TagLeases) -> None:
        self._engine = engine
        self._leases = leases

    async def push(
        self, ctx: JobContext, number: int, reference: ImageReference, image_id: str, access: RegistryAccess
    ) -> str:
        """Push the image and prove it; its digest in the registry. It is recorded as the job's push `number`, also when
        it fails.

        What else uses the engine keeps to no turns: a tag that somebody moved meanwhile is `Temporary(conflict)`.
        """
        registry = reference.host.lower().removesuffix(":443")
        push = Push(image=0, target=number, registry=registry, repository=reference.path)
        started = time.monotonic()
        try:
            pushed = await self._push_leased(ctx, reference, image_id, access)
            failpoint("after_push")
            await _prove(ctx, reference, pushed.digest, access)
        except Fault as fault:
            error = one_line(ctx.redact(fault.message), PUSH_ERROR_MAX_CHARS)
            failure = replace(push, tags={str(reference.tag): "wanted"}, error=error, seconds=_seconds_since(started))
            with suppress(Fault):  # this one says more
                await ctx.record_pushes([failure])
            raise
        push = replace(push, tags={str(reference.tag): "pushed"}, digest=pushed.digest, seconds=_seconds_since(started))
        sizes = await self._sizes(reference, pushed.digest, image_id, access)
        await ctx.record_pushes([with_bytes(push, pushed.parts, sizes)])
        return pushed.digest

    async def _push_leased(
        self, ctx: JobContext, reference: ImageReference, image_id: str, access: RegistryAccess
    ) -> images.Pushed:
        """Push under the user's tag, in turn: of two jobs that want it, one would push the other's image."""
        async with self._leases.turn(reference), self._leases.lease(reference, image_id=image_id):
            with image_removed_is_temporary():
                await images.tag(self._engine, image_id, reference)
            failpoint("while_pushing")
            await self._leases.check_unmoved(reference, image_id)
            pushed = await self._push(ctx, reference, access)
            await self._leases.check_unmoved(reference, image_id)
            return pushed

    async def _push(self, ctx: JobContext, reference: ImageReference, access: RegistryAccess) -> images.Pushed:
        await ctx.log(f"pushing {reference}\n")
        credentials = access.credentials(reference.host)
        pushing = images.push(self._engine, reference, credentials)
        async with access.contact(reference.host), aclosing(pushing) as events:
            async for event in events:
                match event:
                    case Transfer():
                        ctx.progress(layer=event.name, status=event.status, current=event.current, total=event.total)
                    case images.Pushed():
                        await ctx.log(f"pushed {reference} digest: {event.digest} size: {event.size}\n")
                        return event
        raise Temporary(ErrorCode.ENGINE_UNAVAILABLE, f"the push of {reference} ended without a digest", peer=ENGINE)

    async def _sizes(
        self, reference: ImageReference, digest: str, image_id: str, access: RegistryAccess
    ) -> dict[str, int]:
        """Bytes in the registry of the image's parts by the short ids that engines give them: of a layer as it was
        unpacked, or of a blob, as the containerd image store has it. Empty where that cannot be found out now: the push
        itself is done."""
        try:
            async with asyncio.timeout(SIZES_TIMEOUT_S):
                blobs = await access.blobs(ImageReference(reference.host, reference.path, digest=digest))
                image = await images.inspect(self._engine, image_id)
        except (Fault, TimeoutError):
            return {}
        sizes = {_short(blob.digest): blob.size for blob in blobs}
        layers = image.layers if image is not None else []
        # Of one image the config comes first. Several, in an index, are named by their blobs.
        if len(layers) == len(blobs) - 1:
            sizes |= {_short(layer): blob.size for layer, blob in zip(layers, blobs[1:], strict=True)}
        return sizes


@contextmanager
def image_removed_is_temporary() -> Iterator[None]:
    """What is done with a built image that the engine no longer has is tried again, and builds it again."""
    try:
        yield
    except NotFound as fault:
        why = "somebody removed the built image from the engine; it has to be built again"
        raise Temporary(ErrorCode.CONFLICT, why) from fault


def with_bytes(push: Push, parts: Mapping[str, str], sizes: Mapping[str, int]) -> Push:
    """The push with its bytes, where the end and the size of every part are known."""
    sent_bytes = mounted_bytes = skipped_bytes = 0
    for name, status in parts.items():
        if (size := sizes.get(name)) is None:
            return push
        if status == _PUSHED:
            sent_bytes += size
        elif status.startswith(_MOUNTED):
            mounted_bytes += size
        elif status in _SKIPPED:
            skipped_bytes += size
        else:
            return push
    total_bytes = sent_bytes + mounted_bytes + skipped_bytes
    figures = {"sent_bytes": sent_bytes, "mounted_bytes": mounted_bytes, "skipped_bytes": skipped_bytes}
    return replace(push, **figures, total_bytes=total_bytes) if parts else push


def _seconds_since(started: float) -> float:
    return round(time.monotonic() - started, 3)


def _short(digest: str) -> str:
    return digest.partition(":")[2][:SHORT_ID_CHARS]


async def _prove(ctx: JobContext, reference: ImageReference, digest: str, access: RegistryAccess) -> None:
    """Ask the registry itself: the engine's word is not proof. Another push may have moved the tag since."""
    if await access.head_manifest(reference) == digest:
        return
    by_digest = ImageReference(reference.host, reference.path, digest=digest)
    if await access.head_manifest(by_digest) != digest:
        raise Temporary(
            ErrorCode.PUSH_FAILED, f"{reference} was pushed, but the registry does not have {digest} under that name"
        )
    await ctx.log(f"WARNING: {reference} names another image by now; this one is there as {by_digest}\n")
