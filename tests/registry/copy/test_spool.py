"""The file beneath slow readers."""

import asyncio
import errno
import os
import threading
from pathlib import Path

import pytest
from flight_rig import SpoolFolder

from imagejobd.registry.copy import spool as spool_module
from imagejobd.registry.copy.spool import READ_MAX_BYTES, Spool, SpoolRoom, disk_fault


@pytest.fixture
def spools(tmp_path: Path) -> SpoolFolder:
    return SpoolFolder(tmp_path)


async def test_offsets_are_those_of_the_stream(spools: SpoolFolder) -> None:
    """A file that begins in the middle of a stream is read by the stream's offsets."""
    spool = Spool(spools, 1000)
    await spool.open()
    await spool.write([b"abc", b"", b"defg"])
    assert (spool.start, spool.written) == (1000, 1007)
    assert await spool.read(1002) == b"cdefg"
    await spool.write([b"h" * READ_MAX_BYTES])
    assert await spool.read(1005) == b"fg" + b"h" * (READ_MAX_BYTES - 2)
    await spool.remove()
    assert spools.files == []


async def test_system_that_writes_less_than_asked(spools: SpoolFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short writes go on where they stopped."""
    monkeypatch.setattr(spool_module.os, "writev", lambda fd, pieces: os.write(fd, b"".join(pieces)[:5]))
    spool = Spool(spools, 0)
    await spool.open()
    await spool.write([b"0123", b"456789", b"ab"])
    assert spool.written == 12
    assert await spool.read(0) == b"0123456789ab"
    await spool.remove()


async def test_private_to_us(spools: SpoolFolder) -> None:
    """Images may be private: nobody else can read the file."""
    spool = Spool(spools, 0)
    await spool.open()
    assert (spools.folder / spools.files[0]).stat().st_mode & 0o077 == 0
    await spool.remove()


async def test_file_outlives_reads_that_were_given_up(spools: SpoolFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The descriptor is not closed, and so cannot become another file's, while a system call uses it."""
    spool = Spool(spools, 0)
    await spool.open()
    await spool.write([b"abc"])
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
    done, _ = await asyncio.wait([reading])
    assert done == {reading}
    assert not removing.done()
    assert len(spools.files) == 1
    go_on.set()
    await removing
    assert seen == [b"abc"]
    assert spools.files == []


async def test_file_that_was_cut(spools: SpoolFolder) -> None:
    """A file that somebody truncated is an error, never an end."""
    spool = Spool(spools, 0)
    await spool.open()
    await spool.write([b"abc"])
    os.truncate(spools.folder / spools.files[0], 0)
    with pytest.raises(OSError, match="shorter"):
        await spool.read(0)
    await spool.remove()


def test_room() -> None:
    """What is reserved is taken from all; what is released is there again."""
    room = SpoolRoom(10)
    assert room.reserve(6)
    assert not room.reserve(5)
    assert room.reserve(4)
    room.release(6)
    assert room.reserve(6)


def test_fault_names_no_path() -> None:
    """What users read says why, not where."""
    told = disk_fault(OSError(errno.EIO, "Input/output error", "/var/lib/secret")).message
    assert "Input/output error" in told
    assert "secret" not in told
