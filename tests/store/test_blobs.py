"""The content store: whole blobs or none, and never one less than is needed."""

import asyncio
import errno
import hashlib
import os
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from imagejobd.model.errors import ErrorCode, Permanent, Temporary
from imagejobd.store import blobs as blobs_module
from imagejobd.store.blobs import FLUSH_BYTES, BlobStore
from imagejobd.store.content import BlobInfo
from imagejobd.store.files import fsync_folder

MAX_BYTES = 10 * FLUSH_BYTES


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path)


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


async def put(blobs: BlobStore, data: bytes, *, chunk_bytes: int = 10_000) -> str:
    async with blobs.spooled(chunked(data, chunk_bytes), max_bytes=MAX_BYTES) as path:
        await blobs.commit(path, digest_of(data))
    return digest_of(data)


async def only_spool(blobs: BlobStore, body: AsyncIterator[bytes], *, max_bytes: int) -> None:
    async with blobs.spooled(body, max_bytes=max_bytes):
        pass


async def chunked(data: bytes, chunk_bytes: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), chunk_bytes):
        yield data[start : start + chunk_bytes]


def spooled(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "spool").iterdir())


def age(blobs: BlobStore, digest: str, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(blobs.path(digest), (then, then))


@pytest.mark.parametrize("size", [0, 1, FLUSH_BYTES - 1, FLUSH_BYTES, 3 * FLUSH_BYTES + 17])
async def test_a_blob_is_what_was_written(blobs: BlobStore, tmp_path: Path, size: int) -> None:
    """Named by its digest, in the folder of its first two digits, and nothing is left in the spool."""
    data = os.urandom(size)
    digest = await put(blobs, data)
    assert digest == digest_of(data)
    assert blobs.path(digest) == tmp_path / "blobs" / "sha256" / digest[7:9] / digest[7:]
    assert blobs.path(digest).read_bytes() == data
    assert spooled(tmp_path) == []


@pytest.mark.parametrize("size", [0, 1, FLUSH_BYTES, 3 * FLUSH_BYTES + 17, MAX_BYTES])
@pytest.mark.parametrize("chunk_bytes", [10_000, FLUSH_BYTES, MAX_BYTES])
async def test_a_body_is_kept_as_it_comes(blobs: BlobStore, tmp_path: Path, size: int, chunk_bytes: int) -> None:
    """Hashed while it is written: the blob is the body, named by its digest, and pinned."""
    data = os.urandom(size)
    blob = await blobs.put(chunked(data, chunk_bytes), max_bytes=MAX_BYTES)
    assert blob == BlobInfo(digest_of(data), size)
    assert blobs.path(blob.digest).read_bytes() == data
    assert spooled(tmp_path) == []
    assert await blobs.collect(set(), min_age_s=-1) == 0


@pytest.mark.parametrize("store", [BlobStore.put, only_spool], ids=["put", "spooled"])
@pytest.mark.parametrize("size", [MAX_BYTES, MAX_BYTES + 1])
async def test_a_body_that_is_not_whole_leaves_nothing(
    blobs: BlobStore, tmp_path: Path, store: Callable[..., Awaitable[object]], size: int
) -> None:
    """One that breaks off, or is one byte too large, leaves neither a blob nor a spool file."""

    async def body() -> AsyncIterator[bytes]:
        async for chunk in chunked(bytes(size), FLUSH_BYTES):
            yield chunk
        raise ConnectionResetError

    with pytest.raises((ConnectionResetError, Permanent)) as refused:
        await store(blobs, body(), max_bytes=MAX_BYTES)
    assert getattr(refused.value, "code", None) is (ErrorCode.TOO_LARGE if size > MAX_BYTES else None)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


async def test_a_put_that_is_cancelled(blobs: BlobStore, tmp_path: Path) -> None:
    """Whenever it happens, no spool file stays, and a blob that was made is not pinned."""
    for pause_s in (0, 0.001, 0.002, 0.004, 0.008, 0.016):
        putting = asyncio.create_task(blobs.put(chunked(os.urandom(MAX_BYTES), FLUSH_BYTES), max_bytes=MAX_BYTES))
        await asyncio.sleep(pause_s)
        if putting.cancel():
            await asyncio.wait([putting])
        else:
            blobs.release((await putting).digest)
        assert spooled(tmp_path) == []
    await blobs.collect(set(), min_age_s=-1)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


async def test_a_full_disk_while_a_body_comes(
    blobs: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails with storage_full although another thread writes the piece that does not fit; nothing stays."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(blobs_module, "_write_all", full)
    for size in (10, FLUSH_BYTES, MAX_BYTES):
        with pytest.raises(Temporary) as refused:
            await blobs.put(chunked(bytes(size), FLUSH_BYTES), max_bytes=MAX_BYTES)
        assert refused.value.code is ErrorCode.STORAGE_FULL
    assert spooled(tmp_path) == []


async def test_a_body_can_be_spooled_without_being_kept(blobs: BlobStore, tmp_path: Path) -> None:
    """A whole body is a file for as long as it is looked at."""

    async def body() -> AsyncIterator[bytes]:
        yield b"one "
        yield b"two"

    async with blobs.spooled(body(), max_bytes=MAX_BYTES) as path:
        assert path.read_bytes() == b"one two"
    assert spooled(tmp_path) == []


async def test_equal_content_is_kept_once(blobs: BlobStore, tmp_path: Path) -> None:
    """Writers of the same bytes at the same time all succeed, and one file remains."""
    data = os.urandom(1000)
    digests = await asyncio.gather(*(put(blobs, data) for _ in range(10)))
    assert set(digests) == {digest_of(data)}
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1


async def test_a_file_that_a_thread_wrote_becomes_a_blob(blobs: BlobStore, tmp_path: Path) -> None:
    """The spool file becomes the blob, without a copy."""
    with blobs.spool_file() as path:
        path.write_bytes(b"data")
        inode = path.stat().st_ino
        await blobs.commit(path, digest_of(b"data"))
    assert blobs.path(digest_of(b"data")).stat().st_ino == inode
    assert spooled(tmp_path) == []


async def test_file_and_folder_are_synced_before_the_name_counts(
    blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data is on disk before the rename, and the name before the digest is given out."""
    steps: list[str] = []

    def noting(step: str, act: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any) -> Any:
            steps.append(step)
            return act(*arguments)

        return noted

    monkeypatch.setattr(os, "fsync", noting("fsync", os.fsync))
    monkeypatch.setattr(blobs_module, "fsync_folder", noting("folder", fsync_folder))
    monkeypatch.setattr(Path, "rename", noting("rename", Path.rename))
    await put(blobs, b"data")
    assert steps.index("rename") > steps.index("fsync")
    assert steps.index("folder", steps.index("rename")) > steps.index("rename")


async def test_a_cancelled_write_is_over_before_its_file_goes(blobs: BlobStore, tmp_path: Path) -> None:
    """Cancelling in mid-write waits for the thread that writes, so nothing appears afterwards."""
    for _ in range(20):
        writing = asyncio.create_task(put(blobs, os.urandom(MAX_BYTES), chunk_bytes=FLUSH_BYTES))
        await asyncio.sleep(0.001)
        writing.cancel()
        await asyncio.wait([writing])
        assert spooled(tmp_path) == []


async def test_unreferenced_blobs_are_collected(blobs: BlobStore) -> None:
    """Old ones that no row refers to go; referenced and young ones stay."""
    needed, old, young = [await put(blobs, data) for data in (b"needed", b"old", b"young")]
    for digest in (needed, old, young):
        blobs.release(digest)
    age(blobs, needed, 100)
    age(blobs, old, 100)
    assert await blobs.collect({needed}, min_age_s=50) == 1
    assert [blobs.exists(digest) for digest in (needed, old, young)] == [True, False, True]


async def test_a_pinned_blob_is_never_collected(blobs: BlobStore) -> None:
    """Whatever its age and whoever refers to it meanwhile, it stays until all who pinned it have released it."""
    digest = await put(blobs, b"data")
    assert await put(blobs, b"data") == digest
    assert await blobs.pin(digest)
    for _ in range(3):
        age(blobs, digest, 100)
        assert await blobs.collect({digest}, min_age_s=0) == 0
        assert await blobs.collect(set(), min_age_s=0) == 0
        blobs.release(digest)
    assert await blobs.collect(set(), min_age_s=0) == 1
    assert not await blobs.pin(digest)


async def test_who_fails_to_pin_takes_nobodys_pin(
    blobs: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pin is given up once where a blob that is there cannot be committed again, or its commit is cancelled."""
    digest = await put(blobs, b"data")
    committing = asyncio.create_task(put(blobs, b"data"))
    await asyncio.sleep(0.001)
    committing.cancel()
    await asyncio.wait([committing])
    if not committing.cancelled():
        blobs.release(digest)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "utime", full)
    with pytest.raises(Temporary):
        await put(blobs, b"data")
    assert await blobs.collect(set(), min_age_s=-1) == 0
    blobs.release(digest)
    assert await blobs.collect(set(), min_age_s=-1) == 1


async def test_a_name_that_is_there_is_synced_too(blobs: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever made it may have died before that, and its folder's maker too; the second sender is promised as much."""
    synced: list[Path] = []

    def noted(folder: Path) -> None:
        synced.append(folder)
        fsync_folder(folder)

    digest = await put(blobs, b"data")
    folder = blobs.path(digest).parent
    monkeypatch.setattr(blobs_module, "fsync_folder", noted)
    await put(blobs, b"data")
    assert folder in synced
    BlobStore(folder.parents[2])
    assert folder.parent in synced


async def test_what_is_no_blob_is_left_alone_and_logged_once(blobs: BlobStore, tmp_path: Path) -> None:
    """Folders, files and links of others neither end a collection nor are removed by it, and what is old still goes."""
    digest = await put(blobs, b"old")
    blobs.release(digest)
    age(blobs, digest, 3600)
    root = tmp_path / "blobs" / "sha256"
    (tmp_path / "theirs").write_text("theirs")
    (root / "notes.txt").write_text("a file")
    (root / "lost+found").mkdir()
    (root / "aa" / ("a" * 64)).mkdir(parents=True)
    (root / "ab").symlink_to(tmp_path)
    (root / "aa" / "README").write_text("a file")
    (root / "aa" / f"aa{'b' * 62}").symlink_to(tmp_path / "theirs")
    (root / "aa" / ("b" * 64)).write_text("in another's folder")
    strays = {path for path in root.rglob("*") if path.is_symlink() or "lost" in path.name or path.is_file()}
    strays = (strays | {root / "aa" / ("a" * 64)}) - {blobs.path(digest)}
    with capture_logs() as logs:
        assert await blobs.collect([], min_age_s=60) == 1
        assert await blobs.collect([], min_age_s=-60) == 0
    assert {Path(line["path"]) for line in logs} == {path for path in strays if path.name != "lost+found"}
    assert len(logs) == len({line["path"] for line in logs})
    assert all(path.is_symlink() or path.exists() for path in strays)


async def test_a_folder_that_cannot_be_read_does_not_protect_the_others(
    blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a disk fails, its error is logged with the path, and all else is collected."""
    digests = [await put(blobs, data) for data in (b"1", b"2", b"3")]
    for digest in digests:
        blobs.release(digest)
    failing, vanishing, plain = (blobs.path(digest) for digest in digests)
    unlink, scandir = Path.unlink, os.scandir

    def failing_scandir(path: Path) -> Any:
        if path == failing.parent:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return scandir(path)

    def vanishing_unlink(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok)
        if path == vanishing:
            raise FileNotFoundError(path)

    monkeypatch.setattr(os, "scandir", failing_scandir)
    monkeypatch.setattr(Path, "unlink", vanishing_unlink)
    with capture_logs() as logs:
        assert await blobs.collect([], min_age_s=-60) == 1
    assert [(line["path"], line["reason"]) for line in logs] == [(str(failing.parent), "Input/output error")]
    assert failing.exists()
    assert not plain.exists()


async def test_folders_that_were_removed_are_made_anew(blobs: BlobStore, tmp_path: Path) -> None:
    """An upload works without `blobs/` and `spool/`; a whole state folder that is gone is not made to look alive."""
    for name in ("spool", "blobs"):
        shutil.rmtree(tmp_path / name)
        assert blobs.exists(await put(blobs, name.encode()))
    shutil.rmtree(tmp_path)
    with pytest.raises(FileNotFoundError):
        await put(blobs, b"lost")
    with pytest.raises(Temporary, match="No such file"):
        await blobs.probe()
    assert not tmp_path.exists()
    tmp_path.mkdir()


async def test_a_probe_leaves_nothing(blobs: BlobStore, tmp_path: Path) -> None:
    """It has written to the disk, and takes it back."""
    await blobs.probe()
    assert spooled(tmp_path) == []
    (tmp_path / "spool").rmdir()
    (tmp_path / "spool").write_text("no folder")
    with pytest.raises(Temporary, match="cannot write to"):
        await blobs.probe()


def test_a_start_survives_what_others_put_there(blobs: BlobStore, tmp_path: Path) -> None:
    """A folder in the spool stays and is logged, a dangling link goes, and links to others' files are not followed."""
    theirs = tmp_path / "theirs"
    theirs.write_text("theirs")
    theirs.chmod(0o644)
    (tmp_path / "spool" / "left").write_text("half")
    (tmp_path / "spool" / "link").symlink_to("/nonexistent")
    (tmp_path / "spool" / "folder").mkdir()
    (tmp_path / "blobs" / "link").symlink_to(theirs)
    (tmp_path / "blobs" / "dangling").symlink_to("/nonexistent")
    for top in ("spool", "blobs"):
        (tmp_path / top).chmod(0o777)
    with capture_logs() as logs:
        assert blobs.clear_spool() == 2
        blobs.set_modes()
    assert [Path(line["path"]).name for line in logs] == ["folder"]
    assert theirs.stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "blobs").stat().st_mode & 0o777 == 0o750


async def test_a_blob_written_again_is_young_again(blobs: BlobStore) -> None:
    """New use of an old blob keeps it from a collection that was on its way."""
    digest = await put(blobs, b"data")
    blobs.release(digest)
    age(blobs, digest, 1000)
    await put(blobs, b"data")
    blobs.release(digest)
    assert await blobs.collect(set(), min_age_s=500) == 0


async def test_collecting_while_writing_loses_nothing(blobs: BlobStore) -> None:
    """Writers and collections of the same blobs at the same time: what a writer was given exists."""

    async def write(number: int) -> None:
        digest = await put(blobs, str(number % 5).encode())
        assert blobs.exists(digest)
        await asyncio.sleep(0.001)
        assert blobs.exists(digest)

    async def collect() -> None:
        for _ in range(20):
            await blobs.collect(set(), min_age_s=0)

    await asyncio.gather(collect(), *(write(number) for number in range(100)))


async def test_a_crash_leaves_only_spool_files_and_boot_clears_them(blobs: BlobStore, tmp_path: Path) -> None:
    """What a dead process had not finished is removed, and no blob is."""
    digest = await put(blobs, b"data")
    (tmp_path / "spool" / "left").write_bytes(b"half")
    assert BlobStore(tmp_path).clear_spool() == 1
    assert spooled(tmp_path) == []
    assert blobs.exists(digest)


@pytest.mark.parametrize("name", ["../../etc/passwd", "sha256:../x", "sha256:" + "A" * 64, "sha512:" + "0" * 128, ""])
def test_only_digests_name_blobs(blobs: BlobStore, name: str) -> None:
    """Nothing else becomes a path."""
    with pytest.raises(Permanent, match="is not a digest"):
        blobs.path(name)
