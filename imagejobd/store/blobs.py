"""Content on the local disk: files named by their SHA-256, beside the database.

A blob appears under its name only when it is whole and durable: written in `spool/`, fsynced, renamed, its folder
fsynced. So a crash leaves at most spool files, which `clear_spool` removes at boot. The database knows which blobs are
needed; `collect` removes the rest, but never one that was made moments ago and whose row is not committed yet, nor one
that is pinned. Pins are counted, and do not outlive the process.

It never removes what others have put there (each such file is logged once), and makes folders anew that others have
removed.
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
from imagejobd.store.content import BlobInfo
from imagejobd.store.files import FILE_MODE, FOLDER_MODE, fsync_folder, set_mode, storage_faults

# Less than this is gathered in memory first: a hop to another thread costs more than writing a small chunk.
FLUSH_BYTES = 256 * 1024
# What a probe writes: more than a file system keeps within an inode.
PROBE_BYTES = 64 * 1024
# Of the files that it leaves alone, so many are logged.
REPORTED_MAX = 200

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_BLOB_PLACE = re.compile(r"([0-9a-f]{2})/\1[0-9a-f]{62}")

T = TypeVar("T")

log = structlog.get_logger("imagejobd.blobs")


class BlobStore:
    """Implements `ContentStore` below `root` (`root/blobs/sha256/ab/<hex>`, `root/spool/`)."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._blobs = root / "blobs" / "sha256"
        self._spool = root / "spool"
        self._reported: set[Path] = set()
        # Changed on the loop's thread only.
        self._pins: Counter[str] = Counter()
        # `collect` in one thread must not remove what `commit` in another has just found to exist.
        self._names_lock = threading.Lock()
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
        return next(self._all(), None) is not None

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
        with self.spool_file() as path:
            await _spool(body, path, max_bytes=max_bytes)
            yield path

    async def put(self, body: AsyncIterable[bytes], *, max_bytes: int) -> BlobInfo:
        sha256 = hashlib.sha256()
        with self.spool_file() as path:
            size_bytes = await _spool(body, path, max_bytes=max_bytes, observe=sha256.update)
            blob = BlobInfo(f"sha256:{sha256.hexdigest()}", size_bytes)
            await self.commit(path, blob.digest)
        return blob

    async def commit(self, path: Path, digest: str) -> None:
        await self._pinned(digest, lambda: self._commit(path, digest))

    async def pin(self, digest: str) -> bool:
        def exists() -> bool:
            with self._names_lock:
                return self.exists(digest)

        is_there = await self._pinned(digest, exists)
        if not is_there:
            self.release(digest)
        return is_there

    async def _pinned(self, digest: str, act: Callable[[], T]) -> T:
        """Pin, then act in a thread: what `act` finds or makes under `_names_lock` no `collect` will remove."""
        self._pins[digest] += 1
        try:
            return await _in_thread(act)
        except BaseException:
            self.release(digest)
            raise

    def _commit(self, path: Path, digest: str) -> None:
        with storage_faults():
            target = self.path(digest)
            with path.open("rb") as file:
                os.fsync(file.fileno())
            with self._names_lock:
                if target.exists():
                    os.utime(target)  # young again: `collect` spares it
                    # Whoever renamed it may have died before the fsync of the folder.
                    fsync_folder(target.parent)
                else:
                    self._rename(path, target)

    def _rename(self, path: Path, target: Path) -> None:
        if not target.parent.exists():
            if not self._blobs.exists():
                self._make_folders()
            target.parent.mkdir(exist_ok=True)
            fsync_folder(target.parent.parent)
        os.utime(path)
        path.rename(target)
        fsync_folder(target.parent)

    def path(self, digest: str) -> Path:
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
        self._pins[digest] -= 1
        if self._pins[digest] <= 0:
            del self._pins[digest]

    async def collect(self, referenced: Collection[str], *, min_age_s: float) -> int:
        # The age covers what pins do not: a blob made between the reading of `referenced` and now.
        return await _in_thread(lambda: self._collect(frozenset(referenced), time.time() - min_age_s))

    def _collect(self, referenced: frozenset[str], made_before: float) -> int:
        return sum(
            self._remove_unpinned(path, made_before) for path in self._all() if f"sha256:{path.name}" not in referenced
        )

    def _all(self) -> Iterator[Path]:
        """Every blob. What is none, and what cannot be listed, is logged."""
        for folder in self._listed(self._blobs):
            for entry in self._listed(Path(folder)) if folder.is_dir(follow_symlinks=False) else (folder,):
                path = Path(entry)
                place = path.relative_to(self._blobs).as_posix()
                if _BLOB_PLACE.fullmatch(place) and entry.is_file(follow_symlinks=False):
                    yield path
                else:
                    self._report(path, "it is no blob, and nothing of the daemon's")

    def _listed(self, folder: Path) -> "list[os.DirEntry[str]]":
        try:
            with os.scandir(folder) as entries:
                return list(entries)
        except OSError as error:
            self._report(folder, error.strerror)
            return []

    def _remove_unpinned(self, path: Path, made_before: float) -> bool:
        with self._names_lock:
            try:
                if f"sha256:{path.name}" in self._pins or path.stat().st_mtime > made_before:
                    return False
                path.unlink()
            except FileNotFoundError:  # somebody else was quicker
                return False
            except OSError as error:
                self._report(path, error.strerror)
                return False
            return True

    def _report(self, path: Path, why: str | None) -> None:
        if path not in self._reported and len(self._reported) < REPORTED_MAX:
            self._reported.add(path)
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
            self._report(path, error.strerror)

    def clear_spool(self) -> int:
        """Remove what a crash left in the spool; returns how many files. Only at boot, before anything writes."""
        removed = 0
        for entry in self._listed(self._spool):
            try:
                Path(entry).unlink()
                removed += 1
            except OSError as error:
                self._report(Path(entry), error.strerror)
        return removed


async def _spool(
    body: AsyncIterable[bytes], path: Path, *, max_bytes: int, observe: Callable[[bytes], object] | None = None
) -> int:
    """Write all of `body` to `path`; its size. Raises `Permanent(too_large)` past `max_bytes`."""
    writer = _SpoolWriter(path, observe)
    size_bytes = 0
    try:
        async for chunk in body:
            size_bytes += len(chunk)
            if size_bytes > max_bytes:
                raise Permanent(ErrorCode.TOO_LARGE, f"the upload is larger than {max_bytes} bytes, which is the limit")
            await writer.write(chunk)
        await writer.finish()
    finally:
        await writer.close()
    return size_bytes


class _SpoolWriter:
    """Writes one file of the spool, in threads; used by one task.

    While one piece is written the next is gathered, so a sender and the disk need not wait for each other. `observe`
    sees all bytes in order, in the threads too.
    """

    def __init__(self, path: Path, observe: Callable[[bytes], object] | None) -> None:
        self._path = path
        self._observe = observe
        self._chunks: list[bytes] = []
        self._gathered_bytes = 0
        self._file: BinaryIO | None = None
        self._flushing: asyncio.Future[None] | None = None

    async def write(self, chunk: bytes) -> None:
        """Append. Raises `Temporary(storage_full)`, for an earlier chunk too."""
        self._chunks.append(chunk)
        self._gathered_bytes += len(chunk)
        if self._gathered_bytes >= FLUSH_BYTES:
            await self._flushed()
            self._flush()

    async def finish(self) -> None:
        """Bring all that was written to the file."""
        await self._flushed()
        self._flush()
        await self._flushed()

    async def close(self) -> None:
        """Close the file, once no thread writes to it any more."""
        try:
            # Whatever it fails with comes second to what ended the upload.
            with suppress(OSError, Temporary):
                await self._flushed()
        finally:
            if self._file is not None:
                self._file.close()
                self._file = None

    def _flush(self) -> None:
        chunks, self._chunks, self._gathered_bytes = self._chunks, [], 0
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
                if self._observe is not None:
                    self._observe(chunk)
                _write_all(self._file, chunk)


def _write_all(file: BinaryIO, chunk: bytes) -> None:
    """A raw file may take less than it is given, when the disk is nearly full."""
    view = memoryview(chunk)
    while view:
        view = view[file.write(view) :]


async def _in_thread(act: Callable[[], T]) -> T:
    """Run file I/O in a thread; see `_finished`."""
    return await _finished(asyncio.ensure_future(asyncio.to_thread(act)))


async def _finished(task: asyncio.Future[T]) -> T:
    """The result of `task`. A cancelled caller still waits for its end: until then a thread uses the file."""
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
