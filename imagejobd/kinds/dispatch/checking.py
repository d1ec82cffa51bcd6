"""The checking phase: what a payload is, and whether it is sound. What is to be built passes the operator's policy."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

import msgspec

from imagejobd.archive import Sorted, Stop, What, check_image_archive, sort
from imagejobd.building.context import Context, keep_context
from imagejobd.kinds.dispatch.receiving import payload_file
from imagejobd.kinds.dispatch.spec import DispatchSpec
from imagejobd.kinds.dispatch.tools import Tools
from imagejobd.model.errors import ErrorCode, Permanent
from imagejobd.model.failpoint import failpoint
from imagejobd.model.work import Work

PROGRESS_EVERY_S = 0.25

T = TypeVar("T")


class Checked(msgspec.Struct, frozen=True):
    """What a payload was found to be. `context` is what is to be built, None for what is kept as it is."""

    what: What
    media_type: str
    context: Context | None = None


@asynccontextmanager
async def checked_payload(tools: Tools, work: Work, spec: DispatchSpec) -> AsyncIterator[Checked]:
    """What the payload is: sorted and checked now, or by an earlier attempt whose context is still there.

    A context is pinned within the block, and no job refers to it: once it is built only the payload is kept.

    Raises `Permanent(invalid | too_large | policy)` that says what is wrong where, `Permanent(not_found)` for a payload
    that is gone.
    """
    with ExitStack() as pins:
        yield await _kept(tools, work, pins) or await _check(tools, work, spec, pins)


async def _kept(tools: Tools, work: Work, pins: ExitStack) -> Checked | None:
    """What an earlier attempt found; None where the context that it made is gone."""
    kept = msgspec.convert(work.checkpoint.get("checked"), Checked | None)
    digest = kept.context.digest if kept is not None and kept.context is not None else None
    if digest is not None:
        if not await tools.building.blobs.pin(digest):
            return None
        pins.callback(tools.building.blobs.release, digest)
    return kept


async def _check(tools: Tools, work: Work, spec: DispatchSpec, pins: ExitStack) -> Checked:
    blobs = tools.building.blobs
    if spec.content is None and not blobs.exists(spec.payload):
        raise Permanent(ErrorCode.NOT_FOUND, "the payload is no longer in the content store; submit it again")
    async with (
        work.phase("checking", timeout_s=tools.settings.check_timeout_s),
        payload_file(blobs, spec) as path,
    ):
        checked = await _checked(tools, work, path, pins)
        failpoint("while_checking")
        await work.save(checked=msgspec.to_builtins(checked))
    failpoint("after_check")
    return checked


async def _checked(tools: Tools, work: Work, path: Path, pins: ExitStack) -> Checked:
    settings = tools.settings
    found = await _read_through(
        work,
        path,
        lambda source, stop: sort(
            source, max_bytes=settings.image_max_bytes, max_entries=settings.context_max_entries, stop=stop
        ),
    )
    await work.log(f"the payload is {_words(found)}\n")
    match found.what:
        case What.DOCKERFILE:
            await asyncio.to_thread(tools.building.policy.check, found.dockerfile)
            return Checked(found.what, found.media_type, Context(None, found.dockerfile))
        case What.CONTEXT:
            return Checked(found.what, found.media_type, await _context(tools, path, pins))
        case What.IMAGE_ARCHIVE:
            count = await _read_through(
                work,
                path,
                lambda source, stop: check_image_archive(source, max_bytes=settings.image_max_bytes, stop=stop),
            )
            await work.log(f"the image archive is whole; images in it: {count}\n")
    return Checked(found.what, found.media_type)


async def _context(tools: Tools, path: Path, pins: ExitStack) -> Context:
    context = await keep_context(tools.building.blobs, path, tools.settings.bounds)
    pins.callback(tools.building.blobs.release, str(context.digest))
    await asyncio.to_thread(tools.building.policy.check, context.dockerfile)
    return context


def _words(found: Sorted) -> str:
    match found.what:
        case What.DOCKERFILE:
            return "a Dockerfile"
        case What.CONTEXT:
            return f"a build context ({found.media_type})"
        case What.IMAGE_ARCHIVE:
            return f"an image archive ({found.media_type})"
    return f"a file ({found.media_type}); it is kept as it is"


async def _read_through(work: Work, path: Path, read: Callable[[BinaryIO, Stop], T]) -> T:
    """Read the payload in a thread and tell how far; when the caller is cancelled it stops at its next block."""
    given_up = threading.Event()
    total_bytes = path.stat().st_size
    with path.open("rb") as file:
        source = _Counted(file)
        reading = asyncio.ensure_future(asyncio.to_thread(read, cast(BinaryIO, source), given_up.is_set))
        try:
            while not reading.done():
                await asyncio.wait([reading], timeout=PROGRESS_EVERY_S)
                work.progress(checked_bytes=source.position, total_bytes=total_bytes)
            return reading.result()
        finally:
            given_up.set()
            # The file is the thread's until it has stopped, at its next block.
            await asyncio.wait([reading])
            reading.exception()


class _Counted:
    """A file that says how far it was read; asking the file itself would meddle with the thread that reads."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.position = 0

    def read(self, count: int) -> bytes:
        data = self._file.read(count)
        self.position += len(data)
        return data

    def seek(self, position: int) -> None:
        self.position = self._file.seek(position)
