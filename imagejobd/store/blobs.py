"""Payloads, contexts and exported images: files named by their SHA-256, beside the database.

A blob appears under its name only when it is whole and durable: written in `spool/`, fsynced, renamed, its folder
fsynced. So a crash leaves at most spool files, which `clear_spool` removes at boot. Which blobs are needed is known
by the database; `collect` removes the rest, but never one that was made moments ago and whose row is not committed
yet, nor one that is pinned. Pins are counted, and do not outlive the process.

What others have put there is left alone and told once; folders that others have removed are made anew.
"""

import asyncio
import hashlib
import os
import re
import secrets
import threading
import time
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

import structlog

from imagejobd.model.errors import ErrorCode, Permanent, Temporary
from imagejobd.store.files import FILE_MODE, FOLDER_MODE, fsync_folder, set_mode, storage_faults
from imagejobd.store.protocol import Kept

# Less than this is gathered in memory first: a hop to another thread costs more than writing a small chunk.
FLUSH_BYTES = 256 * 1024
# What a probe writes: more than a file system keeps within an inode.
PROBE_BYTES = 64 * 1024
# Beyond it, what cannot be collected is passed over in silence.
TOLD_MAX = 200

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_BLOB_PLACE = re.compile(r"([0-9a-f]{2})/\1[0-9a-f]{62}")

T = TypeVar("T")

log = structlog.get_logger("imagejobd.blobs")


class BlobStore:
    """The content store below `root` (`root/blobs/sha256/ab/<hex>`, `root/spool/`)."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._blobs = root / "blobs" / "sha256"
        self._spool = root / "spool"
        self._told: set[Path] = set()
        # Changed on the loop's thread only.
        self._pins: Counter[str] = Counter()
        # `collect` in one thread must not remove what `adopt` in another has just found to exist.
        self._naming = threading.Lock()
        root.mkdir(parents=True, exist_ok=True)
        self._make_folders()

    def _make_folders(self) -> None:
        """Not the root: with it the database is gone, and nothing may look as if it were not."""
        for folder in (self._blobs.parent, self._blobs, self._spool):
            folder.mkdir(exist_ok=True)
        # A crash may have come between the making of a folder and its fsync.
        for folder in (self._blobs, self._blobs.parent, self._root):
            fsync_folder(folder)

    def has_content(self) -> bool:
        """Whether there is any blob."""
        return next(self._found(), None) is not None

    async def probe(self) -> None:
        """Write a file and remove it: proof that uploads can be kept. A cancelled caller does not wait for the disk.

        Raises `Temporary`: for a full disk, what cannot be written, and, once, for blobs that somebody has removed.
        """
        await asyncio.to_thread(self._probe)

    def _probe(self) -> None:
        try:
            if not self._blobs.is_dir():
                self._make_folders()
                raise Temporary(
                    ErrorCode.INTERNAL,
                    f"{self._blobs} was removed while the daemon ran, and has been made anew: restore what was in it, "
                    "or the jobs whose payloads were there will fail",
                )
            with storage_faults(), self.spool_file() as path, path.open("wb", buffering=0) as file:
                _write_all(file, bytes(PROBE_BYTES))
                os.fsync(file.fileno())
        except OSError as error:
            raise Temporary(
                ErrorCode.INTERNAL,
                f"cannot write to {error.filename or self._spool}: {error.strerror}; mend the state folder",
            ) from error

    @contextmanager
    def spool_file(self) -> Iterator[Path]:
        """A path in the spool that nothing else uses; what is there on leaving is removed."""
        path = self._spool / secrets.token_hex(16)
        if not self._spool.is_dir():
            log.warning("the spool folder was removed while the daemon ran, and is made anew", path=str(self._spool))
            self._make_folders()
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    @asynccontextmanager
    async def spooled(self, body: AsyncIterable[bytes], *, max_bytes: int) -> AsyncIterator[Path]:
        """All of `body` as a file in the spool. Raises `Permanent(too_large)` and `Temporary(storage_full)`."""
        with self.spool_file() as path:
            async with _spooling(path, max_bytes=max_bytes) as writer:
                async for chunk in body:
                    await writer.write(chunk)
            yield path

    async def keep(self, body: AsyncIterable[bytes], *, max_bytes: int) -> Kept:
        """Make all of `body` a blob, hashed as it is written. It is pinned until released.

        Raises `Permanent(too_large)` and `Temporary(storage_full)`.
        """
        sha256 = hashlib.sha256()
        with self.spool_file() as path:
            async with _spooling(path, max_bytes=max_bytes, note=sha256.update) as writer:
                async for chunk in body:
                    await writer.write(chunk)
            kept = Kept(f"sha256:{sha256.hexdigest()}", writer.size_bytes)
            await self.adopt(path, kept.digest)
        return kept

    async def adopt(self, path: Path, digest: str) -> str:
        """Make the spool file `path`, whose `digest` the caller has computed, a blob. It is pinned until released.

        Raises `Temporary(storage_full)`; then, and when it is cancelled, there is no pin.
        """
        await self._pinning(digest, lambda: self._adopt(path, digest))
        return digest

    async def pin(self, digest: str) -> bool:
        """Keep `collect` from a blob until it is released; False, and no pin, where there is no such blob."""
        is_there = await self._pinning(digest, lambda: self._is_there(digest))
        if not is_there:
            self.release(digest)
        return is_there

    async def _pinning(self, digest: str, ctx: Callable[[], T]) -> T:
        """Pin first: what `work` then finds or makes under `_naming`, no `collect` has yet to remove."""
        self._pins[digest] += 1
        try:
            return await _off_loop(ctx)
        except BaseException:
            self.release(digest)
            raise

    def _is_there(self, digest: str) -> bool:
        with self._naming:
            return self.exists(digest)

    def _adopt(self, path: Path, digest: str) -> None:
        with storage_faults():
            target = self.path(digest)
            with path.open("rb") as file:
                os.fsync(file.fileno())
            with self._naming:
                if target.exists():
                    os.utime(target)  # young again: `collect` spares it
                    # Who named it may have died before its own fsync of the folder.
                    fsync_folder(target.parent)
                else:
                    self._name(path, target)

    def _name(self, path: Path, target: Path) -> None:
        if not target.parent.exists():
            if not self._blobs.exists():
                self._make_folders()
            target.parent.mkdir(exist_ok=True)
            fsync_folder(target.parent.parent)
        os.utime(path)
        path.rename(target)
        fsync_folder(target.parent)

    def path(self, digest: str) -> Path:
        """Where the blob is, or would be. Raises `Permanent(invalid)` for what is not a SHA-256 digest."""
        match = _DIGEST.fullmatch(digest)
        if match is None:
            raise Permanent(ErrorCode.INVALID, f"{digest!r} is not a digest (sha256: and 64 hex digits)")
        return self._blobs / match[1][:2] / match[1]

    def exists(self, digest: str) -> bool:
        return self.path(digest).exists()

    def size_bytes(self, digest: str) -> int:
        """How large the blob is; 0 where there is none."""
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError:
            return 0

    def release(self, digest: str) -> None:
        """Give up one pin: the blob is referenced by now, or nobody needs it any more."""
        self._pins[digest] -= 1
        if self._pins[digest] <= 0:
            del self._pins[digest]

    async def collect(self, referenced: Collection[str], *, min_age_s: float) -> int:
        """Remove blobs that are neither in `referenced`, nor pinned, nor younger than `min_age_s`; returns how many.

        The age covers what pins do not: a blob made between the reading of `referenced` and now.
        """
        return await _off_loop(lambda: self._collect(frozenset(referenced), time.time() - min_age_s))

    def _collect(self, referenced: frozenset[str], made_before: float) -> int:
        return sum(
            self._remove_unpinned(path, made_before)
            for path in self._found()
            if f"sha256:{path.name}" not in referenced
        )

    def _found(self) -> Iterator[Path]:
        """Every blob. What is none, and what cannot be listed, is told."""
        for folder in self._listed(self._blobs):
            for entry in self._listed(Path(folder)) if folder.is_dir(follow_symlinks=False) else (folder,):
                path = Path(entry)
                place = path.relative_to(self._blobs).as_posix()
                if _BLOB_PLACE.fullmatch(place) and entry.is_file(follow_symlinks=False):
                    yield path
                else:
                    self._tell(path, "it is no blob, and nothing of the daemon's")

    def _listed(self, folder: Path) -> "list[os.DirEntry[str]]":
        try:
            with os.scandir(folder) as entries:
                return list(entries)
        except OSError as error:
            self._tell(folder, error.strerror)
            return []

    def _remove_unpinned(self, path: Path, made_before: float) -> bool:
        with self._naming:
            try:
                if f"sha256:{path.name}" in self._pins or path.stat().st_mtime > made_before:
                    return False
                path.unlink()
            except FileNotFoundError:  # somebody else was quicker
                return False
            except OSError as error:
                self._tell(path, error.strerror)
                return False
            return True

    def _tell(self, path: Path, why: str | None) -> None:
        if path not in self._told and len(self._told) < TOLD_MAX:
            self._told.add(path)
            log.warning("left something alone in the state folder", path=str(path), reason=why)

    def set_modes(self) -> None:
        """Give what was made under another umask the modes of what is made now. Only at boot, before anything writes.

        A top folder gets its own last, so one that has it is not walked again: there may be very many blobs.
        """
        for top in (self._spool, self._blobs.parent):
            if top.stat().st_mode & 0o777 != FOLDER_MODE:
                for folder, _, names in os.walk(top, topdown=False):
                    for name in names:
                        self._set_mode(Path(folder, name), FILE_MODE)
                    self._set_mode(Path(folder), FOLDER_MODE)

    def _set_mode(self, path: Path, mode: int) -> None:
        if path.is_symlink():  # what it points to is none of ours
            return
        try:
            set_mode(path, mode)
        except OSError as error:
            self._tell(path, error.strerror)

    def clear_spool(self) -> int:
        """Remove what a crash left in the spool; returns how many files. Only at boot, before anything writes."""
        removed = 0
        for entry in self._listed(self._spool):
            try:
                Path(entry).unlink()
                removed += 1
            except OSError as error:
                self._tell(Path(entry), error.strerror)
        return removed


@asynccontextmanager
async def _spooling(
    path: Path, *, max_bytes: int, note: Callable[[bytes], object] | None = None
) -> AsyncIterator["_SpoolWriter"]:
    """A writer of `path`; all that was written is in the file when the block is left. See `_SpoolWriter`."""
    writer = _SpoolWriter(path, max_bytes=max_bytes, note=note)
    try:
        yield writer
        await writer.finish()
    finally:
        await writer.close()


class _SpoolWriter:
    """Writes one file of the spool, off the loop; used by one task.

    While one piece is written the next is gathered, so a sender and the disk need not wait for each other. `note` is
    told of all bytes in order, off the loop too.
    """

    def __init__(self, path: Path, *, max_bytes: int, note: Callable[[bytes], object] | None = None) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._note = note
        self._chunks: list[bytes] = []
        self._gathered = 0
        self._file: BinaryIO | None = None
        self._flushing: asyncio.Future[None] | None = None
        self.size_bytes = 0

    async def write(self, chunk: bytes) -> None:
        """Append. Raises `Permanent(too_large)` past `max_bytes`, and `Temporary(storage_full)`."""
        self.size_bytes += len(chunk)
        if self.size_bytes > self._max_bytes:
            raise Permanent(
                ErrorCode.TOO_LARGE, f"the upload is larger than {self._max_bytes} bytes, which is the limit"
            )
        self._chunks.append(chunk)
        self._gathered += len(chunk)
        if self._gathered >= FLUSH_BYTES:
            await self._flushed()
            self._flush()

    async def finish(self) -> None:
        """Bring all that was written to the file."""
        await self._flushed()
        self._flush()
        await self._flushed()

    async def close(self) -> None:
        """Let go of the file, once no thread writes to it any more."""
        try:
            # Whatever it fails with comes second to what ended the block.
            with suppress(OSError, Temporary):
                await self._flushed()
        finally:
            if self._file is not None:
                self._file.close()
                self._file = None

    def _flush(self) -> None:
        chunks, self._chunks, self._gathered = self._chunks, [], 0
        self._flushing = asyncio.ensure_future(asyncio.to_thread(self._append, chunks))

    async def _flushed(self) -> None:
        if self._flushing is not None:
            flushing, self._flushing = self._flushing, None
            await _finished(flushing)

    def _append(self, chunks: Sequence[bytes]) -> None:
        with storage_faults():
            if self._file is None:
                self._file = self._path.open("wb", buffering=0)
            for chunk in chunks:
                if self._note is not None:
                    self._note(chunk)
                _write_all(self._file, chunk)


def _write_all(file: BinaryIO, chunk: bytes) -> None:
    """A raw file may take less than it is given, when the disk is nearly full."""
    view = memoryview(chunk)
    while view:
        view = view[file.write(view) :]


async def _off_loop(ctx: Callable[[], T]) -> T:
    """Run file I/O in a thread; see `_finished`."""
    return await _finished(asyncio.ensure_future(asyncio.to_thread(ctx)))


async def _finished(task: asyncio.Future[T]) -> T:
    """What `task` has done. A cancelled caller still waits for it: the file is not its own before that."""
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
