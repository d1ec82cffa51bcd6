"""Taking in a context tar: to disk as it arrives, checked and rewritten, kept under its digest.

Only rewritten bytes are kept: what is built is what was checked.
"""

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterable
from pathlib import Path

import msgspec

from imagejobd.kinds.build.context import ContextBounds, rewrite
from imagejobd.kinds.build.settings import BuildSettings
from imagejobd.kinds.build.tools import Tools
from imagejobd.model.work import Upload
from imagejobd.store.blobs import storage_faults


class Context(msgspec.Struct, frozen=True):
    """The text of a Dockerfile, and the checked tar around it in the content store; None when it stands alone."""

    digest: str | None
    dockerfile: str


async def receive(tools: Tools, body: AsyncIterable[bytes]) -> Upload:
    """Take a request's tar. Raises `Permanent(invalid | too_large)` naming the member."""
    digest, dockerfile = await take_in(tools, body)
    return Upload(fields={"context": digest, "dockerfile": dockerfile}, blobs=(digest,))


async def take_in(tools: Tools, body: AsyncIterable[bytes]) -> tuple[str, str]:
    """Spool a tar, check it, and keep the rewritten one: its digest, and its Dockerfile's text.

    The blob is pinned: the caller releases it.
    """
    async with tools.blobs.spooled(body, max_bytes=tools.settings.upload_max_bytes) as raw:
        with tools.blobs.spool_file() as checked:
            digest, dockerfile = await _rewritten(raw, checked, tools.settings)
            try:
                await tools.blobs.adopt(checked, digest)
            except asyncio.CancelledError:
                # It was adopted all the same, and nobody else will hear of it.
                tools.blobs.release(digest)
                raise
    return digest, dockerfile


async def _rewritten(raw: Path, checked: Path, settings: BuildSettings) -> tuple[str, str]:
    """Rewrite in a thread; when the caller is cancelled the thread stops at its next block."""
    bounds = ContextBounds(max_bytes=settings.context_max_bytes, max_entries=settings.context_max_entries)
    given_up = threading.Event()

    def work() -> tuple[str, str]:
        with storage_faults(), checked.open("w+b") as file:
            dockerfile = rewrite(raw, file, bounds, given_up.is_set)
            file.seek(0)
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}", dockerfile

    try:
        return await asyncio.to_thread(work)
    finally:
        given_up.set()
