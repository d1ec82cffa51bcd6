"""The pushing phase: each reference tagged, pushed, untagged, and proved in the registry.

The engine knows a user's tag only while it is pushed, and nobody else builds on it meanwhile. What the tag named before
(an image of the operator's, say) it names again afterwards, also after a crash.
"""

from collections.abc import Sequence
from contextlib import aclosing

from imagejobd.engine import images
from imagejobd.engine.stream import Transfer
from imagejobd.jobs.shared.access import RegistryAccess
from imagejobd.jobs.shared.build import BuildTools, BuiltImage
from imagejobd.model.errors import ENGINE, ErrorCode, NotFound, Temporary
from imagejobd.model.failpoint import failpoint
from imagejobd.model.kind import JobContext
from imagejobd.model.reference import ImageReference


async def push_image(
    tools: BuildTools,
    ctx: JobContext,
    references: Sequence[ImageReference],
    image: BuiltImage,
    access: RegistryAccess,
    *,
    timeout_s: float,
) -> dict[str, str]:
    """Push every reference that no earlier attempt has pushed; digests by reference."""
    failpoint("before_push")
    pushed: dict[str, str] = dict(ctx.checkpoint.get("pushed", {}))
    hosts = ", ".join(sorted({reference.host for reference in references}))
    async with ctx.phase("pushing", timeout_s=timeout_s, waits_for=hosts):
        for reference in references:
            if str(reference) not in pushed:
                digest = await _push_leased(tools, ctx, image, reference, access)
                failpoint("after_push")
                await _prove(ctx, reference, digest, access)
                pushed[str(reference)] = digest
                await ctx.save(pushed=pushed)
    return pushed


async def _push_leased(
    tools: BuildTools, ctx: JobContext, image: BuiltImage, reference: ImageReference, access: RegistryAccess
) -> str:
    """Push under the user's tag, in turn: of two jobs that want it, one would push the other's image.

    What else uses the engine keeps to no turns: a tag that somebody moved meanwhile is `Temporary(conflict)`.
    """
    async with tools.leases.turn(reference), tools.leases.lease(reference, image_id=image.id):
        await _tag(tools, image, reference)
        failpoint("while_pushing")
        await tools.leases.check_unmoved(reference, image.id)
        digest = await _push(tools, ctx, reference, access)
        await tools.leases.check_unmoved(reference, image.id)
        return digest


async def _tag(tools: BuildTools, image: BuiltImage, reference: ImageReference) -> None:
    try:
        await images.tag(tools.engine, image.id, reference)
    except NotFound as fault:
        why = "somebody removed the built image from the engine; it has to be built again"
        raise Temporary(ErrorCode.CONFLICT, why) from fault


async def _push(tools: BuildTools, ctx: JobContext, reference: ImageReference, access: RegistryAccess) -> str:
    await ctx.log(f"pushing {reference}\n")
    credentials = access.credentials(reference.host)
    async with access.contact(reference.host), aclosing(images.push(tools.engine, reference, credentials)) as events:
        async for event in events:
            match event:
                case Transfer():
                    ctx.progress(layer=event.name, status=event.status, current=event.current, total=event.total)
                case images.Pushed():
                    await ctx.log(f"pushed {reference} digest: {event.digest} size: {event.size}\n")
                    return event.digest
    raise Temporary(ErrorCode.ENGINE_UNAVAILABLE, f"the push of {reference} ended without a digest", peer=ENGINE)


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
