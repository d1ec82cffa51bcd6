"""Taking in a context tar: checked, rewritten, kept under its digest.

Only rewritten bytes are kept: what is built is what was checked.
"""

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterable
from pathlib import Path

import msgspec

from imagejobd.archive import ContextBounds, rewrite
from imagejobd.store.files import storage_faults
from imagejobd.store.protocol import ContentStore


class Context(msgspec.Struct, frozen=True):
    """The text of a Dockerfile, and the checked tar around it in the content store; None when it stands alone."""

    digest: str | None
    dockerfile: str


async def take_in(
    blobs: ContentStore, body: AsyncIterable[bytes], bounds: ContextBounds, *, upload_max_bytes: int
) -> Context:
    """Spool a tar as it arrives, check it, and keep the rewritten one.

    The blob is pinned: the caller releases it. Raises `Permanent(invalid | too_large)` naming the member.
    """
    async with blobs.spooled(body, max_bytes=upload_max_bytes) as raw:
        return await keep_context(blobs, raw, bounds)


async def keep_context(blobs: ContentStore, raw: Path, bounds: ContextBounds) -> Context:
    """Check the tar in the file `raw` and keep the rewritten one; as `take_in` otherwise."""
    with blobs.spool_file() as checked:
        digest, dockerfile = await _rewrite(raw, checked, bounds)
        await blobs.commit(checked, digest)
    return Context(digest, dockerfile)


async def _rewrite(raw: Path, checked: Path, bounds: ContextBounds) -> tuple[str, str]:
    """Rewrite in a thread; when the caller is cancelled the thread stops at its next block."""
    is_cancelled = threading.Event()
    with storage_faults():
        # Not in the thread, which may come to it when its caller has gone, and would make a file that nobody removes.
        opened = checked.open("w+b")

    def rewrite_and_hash() -> tuple[str, str]:
        with storage_faults(), opened as file:
            dockerfile = rewrite(raw, file, bounds, is_cancelled.is_set)
            file.seek(0)
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}", dockerfile

    try:
        return await asyncio.to_thread(rewrite_and_hash)
    finally:
        is_cancelled.set()
