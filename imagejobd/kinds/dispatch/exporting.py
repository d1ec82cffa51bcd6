"""The exporting phase: a built image as a file of the content store, so that it can be had without the engine."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec

from imagejobd.building.image import BuiltImage
from imagejobd.engine.export import export
from imagejobd.kinds.dispatch.tools import Tools
from imagejobd.model.errors import ENGINE, ErrorCode, Permanent, Temporary
from imagejobd.model.failpoint import failpoint
from imagejobd.model.work import Work


class Exported(msgspec.Struct, frozen=True):
    """A tar of the content store with the image `image_id` in it."""

    digest: str
    size_bytes: int
    image_id: str


def kept_export(tools: Tools, work: Work) -> Exported | None:
    """What an earlier attempt exported, where it is still there."""
    kept = msgspec.convert(work.checkpoint.get("exported"), Exported | None)
    return kept if kept is not None and tools.building.blobs.exists(kept.digest) else None


async def export_image(tools: Tools, work: Work, image: BuiltImage) -> Exported:
    """Export `image`, unless an earlier attempt has. Raises `Permanent(too_large)` and `Temporary`."""
    kept = kept_export(tools, work)
    if kept is not None and kept.image_id == image.id:
        return kept
    blobs, settings = tools.building.blobs, tools.settings
    async with work.phase("exporting", timeout_s=settings.export_timeout_s, waits_for=ENGINE):
        async with aclosing(_blocks(tools, work, image)) as blocks:
            blob = await blobs.keep(blocks, max_bytes=settings.image_max_bytes)
        try:
            exported = Exported(blob.digest, blob.size_bytes, image.id)
            await work.save(blobs=[blob.digest], exported=msgspec.to_builtins(exported))
        finally:
            blobs.release(blob.digest)
        await work.log(f"exported {image.id} size: {blob.size_bytes} digest: {blob.digest}\n")
    failpoint("after_export")
    return exported


async def _blocks(tools: Tools, work: Work, image: BuiltImage) -> AsyncGenerator[bytes, None]:
    """The export as it arrives, counted: its bound is not that of an upload."""
    size_bytes = 0
    try:
        async with aclosing(export(tools.building.engine, image.id)) as blocks:
            async for block in blocks:
                size_bytes += len(block)
                _check_size(size_bytes, tools.settings.image_max_bytes)
                work.progress(exported_bytes=size_bytes)
                yield block
    except Permanent as fault:
        if fault.code is not ErrorCode.NOT_FOUND:
            raise
        why = "somebody removed the built image from the engine; it has to be built again"
        raise Temporary(ErrorCode.CONFLICT, why) from fault
    failpoint("while_exporting")


def _check_size(size_bytes: int, max_bytes: int) -> None:
    if size_bytes > max_bytes:
        what = f"the image is larger than {max_bytes} bytes as a tar"
        raise Permanent(ErrorCode.TOO_LARGE, f"{what}; kinds.dispatch.image_max_bytes is the limit")
