"""The file beneath slow readers."""

import asyncio
import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from spools import SpoolFolder

from imagejobd.model.errors import ErrorCode, Temporary
from imagejobd.registry.copy import spool as spool_module
from imagejobd.registry.copy.spool import READ_MAX_BYTES, SpoolRoom, disk_fault


@pytest.fixture
def folder(tmp_path: Path) -> SpoolFolder:
    return SpoolFolder(tmp_path)


@pytest.fixture
def room(folder: SpoolFolder) -> SpoolRoom:
    return SpoolRoom(folder, 1 << 30)


async def test_offsets_are_those_of_the_blob(room: SpoolRoom, folder: SpoolFolder) -> None:
    """A file that begins in the middle of a blob is read by the blob's offsets, in pieces of bounded size."""
    spool = room.open(1000, 1 << 20)
    for piece in (b"abc", b"defg"):
        await spool.write(piece)
    assert (spool.start, spool.written) == (1000, 1007)
    assert await spool.read(1002) == b"cdefg"
    await spool.write(b"h" * READ_MAX_BYTES)
    assert await spool.read(1005) == b"fg" + b"h" * (READ_MAX_BYTES - 2)
    await spool.remove()
    assert folder.files == []


async def test_system_that_writes_less_than_asked(room: SpoolRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short writes go on where they stopped."""
    write = os.write
    monkeypatch.setattr(spool_module.os, "write", lambda fd, piece: write(fd, piece[:5]))
    spool = room.open(0, 100)
    await spool.write(b"0123456789ab")
    assert await spool.read(0) == b"0123456789ab"
    await spool.remove()


async def test_private_to_us(room: SpoolRoom, folder: SpoolFolder) -> None:
    """Images may be private: nobody else can read the file."""
    spool = room.open(0, 100)
    await spool.write(b"abc")
    assert (folder.folder / folder.files[0]).stat().st_mode & 0o077 == 0
    await spool.remove()


async def test_file_outlives_reads_that_were_given_up(
    room: SpoolRoom, folder: SpoolFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The descriptor is not closed, and so cannot become another file's, while a system call uses it."""
    spool = room.open(0, 100)
    await spool.write(b"abc")
    began, go_on = threading.Event(), threading.Event()
    seen: list[bytes] = []
    pread = os.pread

    def slow_pread(fd: int, size: int, offset: int) -> bytes:
        began.set()
        go_on.wait(10)
        seen.append(pread(fd, size, offset))
        return seen[0]

    monkeypatch.setattr(spool_module.os, "pread", slow_pread)
    reading = asyncio.create_task(spool.read(0))
    await asyncio.to_thread(began.wait, 10)
    reading.cancel()
    removing = asyncio.create_task(spool.remove())
    await asyncio.wait([reading])
    assert not removing.done()
    assert len(folder.files) == 1
    go_on.set()
    await removing
    assert seen == [b"abc"]
    assert folder.files == []


async def test_file_that_was_cut(room: SpoolRoom, folder: SpoolFolder) -> None:
    """A file that somebody truncated is an error, never an end."""
    spool = room.open(0, 100)
    await spool.write(b"abc")
    os.truncate(folder.folder / folder.files[0], 0)
    with pytest.raises(OSError, match="shorter"):
        await spool.read(0)
    await spool.remove()


async def test_room(folder: SpoolFolder) -> None:
    """A file has room for all that is to come, or is refused with a fault that may be tried again; what is removed is
    room for others, and what was never written needs no file."""
    room = SpoolRoom(folder, 10)
    first = room.open(4, 10)
    with pytest.raises(Temporary) as full:
        room.open(0, 5)
    assert full.value.code is ErrorCode.STORAGE_FULL
    await first.remove()
    await room.open(0, 10).remove()
    assert (room.reserved_bytes, folder.made) == (0, 0)


async def test_file_that_cannot_be_removed(folder: SpoolFolder) -> None:
    """A disk that does not even let go of a file costs nobody the room of it."""

    @contextmanager
    def stuck() -> Iterator[Path]:
        with folder() as path:
            yield path
        raise OSError(errno.EROFS, "Read-only file system")

    room = SpoolRoom(stuck, 10)
    spool = room.open(0, 10)
    await spool.write(b"abc")
    await spool.remove()
    assert room.reserved_bytes == 0


def test_fault_names_no_path() -> None:
    """What users read says why, not where."""
    message = disk_fault(OSError(errno.EIO, "Input/output error", "/var/lib/secret")).message
    assert "Input/output error" in message
    assert "secret" not in message
