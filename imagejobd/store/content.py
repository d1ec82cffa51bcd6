"""What the rest of the daemon asks of a content store: verbs on payloads, contexts and exported images, not files."""

from collections.abc import AsyncIterable, Collection
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from pathlib import Path
from typing import Protocol

import msgspec


class BlobInfo(msgspec.Struct, frozen=True):
    """A blob that was stored."""

    digest: str
    size_bytes: int


class ContentStore(Protocol):
    """Payloads, contexts and exported images by their SHA-256 digest. A blob is there whole or not at all."""

    def spool_file(self) -> AbstractContextManager[Path]:
        """A path that nothing else uses, on the disk that blobs are written to; what is there on leaving is removed."""
        ...

    def spooled(self, body: AsyncIterable[bytes], *, max_bytes: int) -> AbstractAsyncContextManager[Path]:
        """All of `body` as a file in the spool. Raises `Permanent(too_large)` and `Temporary(storage_full)`."""
        ...

    async def put(self, body: AsyncIterable[bytes], *, max_bytes: int) -> BlobInfo:
        """Make all of `body` a blob, hashed as it is written. It is pinned until released.

        Raises `Permanent(too_large)` and `Temporary(storage_full)`.
        """
        ...

    async def commit(self, path: Path, digest: str) -> None:
        """Make the spool file `path`, whose `digest` the caller has computed, a blob. It is pinned until released.

        Raises `Temporary(storage_full)`; then, and when it is cancelled, there is no pin.
        """
        ...

    async def pin(self, digest: str) -> bool:
        """Keep `collect` from a blob until it is released; False, and no pin, where there is no such blob."""
        ...

    def release(self, digest: str) -> None:
        """Give up one pin: the blob is referenced by now, or nobody needs it any more."""
        ...

    def path(self, digest: str) -> Path:
        """The file to read the blob from, or where it would be.

        Raises `Permanent(invalid)` for what is not a SHA-256 digest.
        """
        ...

    def exists(self, digest: str) -> bool: ...

    async def collect(self, referenced: Collection[str], *, min_age_s: float) -> int:
        """Remove blobs that are neither in `referenced`, nor pinned, nor younger than `min_age_s`; returns how many."""
        ...
