"""One read for several cursors: what they get, who is in whose way, and what is left of it."""

import asyncio
import errno
import hashlib
import os
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from spools import SpoolFolder

from imagejobd.model.errors import ErrorCode, Fault, Permanent, Temporary
from imagejobd.registry.copy import spool as spool_module
from imagejobd.registry.copy.fanout import CHUNK_MIN_BYTES, Cursor, Fanout
from imagejobd.registry.copy.spool import SpoolRoom
from imagejobd.registry.copy.streams import Source
from imagejobd.registry.manifest import Descriptor

CHUNK = 16 * 1024
WINDOW = 4 * CHUNK
# A period that tests do not wait for: who is in the way has to step aside at once.
AT_ONCE_S = 0.001
NEVER_S = 3600.0


def blob_of(data: bytes, algorithm: str = "sha256") -> Descriptor:
    return Descriptor(digest=f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}", size=len(data))


def data_of(chunks: int) -> bytes:
    """So many chunks, all different."""
    return b"".join(bytes([number % 251]) * CHUNK for number in range(chunks))


async def settle() -> None:
    """Let everything run that can run without time passing."""
    for _ in range(50):
        await asyncio.sleep(0)


async def until(holds: Callable[[], object]) -> None:
    """Wait for what happens in a thread, or takes a period."""
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.001)


class Feed:
    """Sends `data` in chunks: all, or as many as it is allowed once `allow` was called. Raises `fault` at the end."""

    def __init__(self, data: bytes, chunk_bytes: int = CHUNK) -> None:
        self.data = data
        self.chunk_bytes = chunk_bytes
        self.sent_bytes = 0
        self.is_open: bool | None = None
        self.fault: Exception | None = None
        self._permits: asyncio.Semaphore | None = None

    def allow(self, chunks: int) -> None:
        """Send so many more."""
        self._permits = self._permits or asyncio.Semaphore(0)
        for _ in range(chunks):
            self._permits.release()

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        self.is_open = True
        try:
            for start in range(0, len(self.data), self.chunk_bytes):
                if self._permits is not None:
                    await self._permits.acquire()
                piece = self.data[start : start + self.chunk_bytes]
                self.sent_bytes += len(piece)
                yield piece
            if self.fault is not None:
                raise self.fault
        finally:
            self.is_open = False


class Read:
    """A fanout with its `task`, over a `feed`."""

    def __init__(
        self, room: SpoolRoom, feed: Feed, blob: Descriptor, cursors: int, period_s: float, window: int
    ) -> None:
        self.feed = feed
        self.source = Source(2, window)
        self.fanout = Fanout(blob, room, cursors, period_s=period_s)
        self.cursors = self.fanout.cursors
        self.task = asyncio.create_task(self._run(blob))

    async def _run(self, blob: Descriptor) -> None:
        async with self.source.stream("job", blob.size, targets=2) as stream:
            await self.fanout.run(stream, self.feed.chunks())


@asynccontextmanager
async def reading(
    room: SpoolRoom,
    feed: Feed,
    cursors: int,
    *,
    blob: Descriptor | None = None,
    period_s: float = NEVER_S,
    window: int = WINDOW,
) -> AsyncIterator[Read]:
    """Afterwards nothing of the read may be there any more."""
    read = Read(room, feed, blob or blob_of(feed.data), cursors, period_s, window)
    try:
        yield read
    finally:
        read.task.cancel()
        await asyncio.wait([read.task])
        await read.fanout.close()
        assert not feed.is_open
        assert room.reserved_bytes == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[SpoolFolder]:
    folder = SpoolFolder(tmp_path)
    yield folder
    assert folder.files == []


@pytest.fixture
def room(folder: SpoolFolder) -> SpoolRoom:
    return SpoolRoom(folder, 1 << 30)


async def drain(cursor: Cursor, into: list[bytes] | None = None) -> bytes:
    """All its bytes; those up to a fault are in `into`."""
    chunks = [] if into is None else into
    try:
        async for chunk in cursor:
            chunks.append(chunk)
    finally:
        cursor.close()
    return b"".join(chunks)


@pytest.mark.parametrize("size", [0, 1, CHUNK, CHUNK + 1, 9 * CHUNK + 7])
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_all_get_the_same(room: SpoolRoom, folder: SpoolFolder, size: int, algorithm: str) -> None:
    """Every cursor gets the blob, whatever its size, from one read of the source and without a file."""
    data = data_of(10)[:size]
    async with reading(room, Feed(data), 4, blob=blob_of(data, algorithm)) as read:
        assert await asyncio.gather(*map(drain, read.cursors)) == [data] * 4
        await read.task
    assert (read.feed.sent_bytes, folder.made) == (size, 0)


async def test_dribbling_source(room: SpoolRoom) -> None:
    """Single bytes count with what they cost in memory, and empty chunks, even a last one, are none."""
    data = data_of(1)[:2000]

    class Dribble(Feed):
        async def chunks(self) -> AsyncGenerator[bytes, None]:
            for byte in self.data:
                self.sent_bytes += 1
                yield bytes([byte])
                yield b""

    feed = Dribble(data)
    async with reading(room, feed, 1, window=10 * CHUNK_MIN_BYTES) as read:
        waiting = asyncio.create_task(anext(read.cursors[0]))
        await settle()
        assert feed.sent_bytes <= 13
        first = await waiting
        assert first + await drain(read.cursors[0]) == data
    corrupt = Dribble(data)
    async with reading(room, corrupt, 1, blob=blob_of(data[:-1] + b"!")) as read:
        got: list[bytes] = []
        with pytest.raises(Permanent):
            await drain(read.cursors[0], got)
    assert data[:-1].startswith(b"".join(got))


async def test_nothing_is_read_before_somebody_asks(room: SpoolRoom) -> None:
    """A blob that all mount costs the source nothing."""
    async with reading(room, Feed(data_of(3)), 2) as read:
        await settle()
        for cursor in (*read.cursors, *read.cursors):
            cursor.close()
        await asyncio.wait([read.task], timeout=10)
        assert read.task.done()
    assert read.feed.is_open is None


@pytest.mark.parametrize("chunks", [1, 3, 9])
@pytest.mark.parametrize("position", [0, -1])
async def test_corrupt_source(room: SpoolRoom, chunks: int, position: int) -> None:
    """One wrong byte anywhere: no cursor ever sees the last chunk, and each raises a fault of its own that says what
    came."""
    data = data_of(chunks)
    wrong = bytearray(data)
    wrong[position] ^= 1
    async with reading(room, Feed(bytes(wrong)), 3, blob=blob_of(data)) as read:
        seen: list[list[bytes]] = [[], [], []]
        ends = await asyncio.gather(*map(drain, read.cursors, seen), return_exceptions=True)
    assert len({id(end) for end in ends}) == 3
    for end, got in zip(ends, seen, strict=True):
        assert isinstance(end, Permanent)
        assert end.code is ErrorCode.COPY_FAILED
        assert blob_of(data).digest in end.message
        assert blob_of(bytes(wrong)).digest in end.message
        assert len(b"".join(got)) <= (chunks - 1) * CHUNK


async def test_source_fault(room: SpoolRoom) -> None:
    """A source that fails in the middle fails every cursor, begun or not."""
    feed = Feed(data_of(3))
    feed.fault = Temporary(ErrorCode.REGISTRY_UNAVAILABLE, "gone")
    async with reading(room, feed, 3, blob=blob_of(data_of(6))) as read:
        ends = await asyncio.gather(*map(drain, read.cursors[:2]), return_exceptions=True)
        ends += await asyncio.gather(drain(read.cursors[2]), return_exceptions=True)
    assert [repr(end) for end in ends] == [repr(feed.fault)] * 3


async def test_closing_one_disturbs_nobody(room: SpoolRoom, folder: SpoolFolder) -> None:
    """Cursors may be closed at any time; who stays gets everything, and who was closed never just ends."""
    async with reading(room, Feed(data_of(20)), 3) as read:
        assert await anext(read.cursors[0]) == read.feed.data[:CHUNK]
        read.cursors[0].close()
        read.cursors[1].close()
        assert await drain(read.cursors[2]) == read.feed.data
        with pytest.raises(Temporary):
            await anext(read.cursors[0])
    assert folder.made == 0


@pytest.mark.parametrize("permits", [0, 2, 8], ids=["silent", "slow", "full window"])
async def test_last_cursor_ends_the_read(room: SpoolRoom, permits: int) -> None:
    """When nobody is left, the transfer ends at once and gives its place back, whatever it waits for."""
    feed = Feed(data_of(9))
    feed.allow(permits)
    async with reading(room, feed, 2) as read:
        taking = [asyncio.create_task(anext(cursor)) for cursor in read.cursors]
        await settle()
        for cursor in read.cursors:
            cursor.close()
        await asyncio.wait([read.task], timeout=10)
        assert read.task.done()
        await asyncio.gather(*taking, return_exceptions=True)


@pytest.mark.parametrize("taken", [0, 1, 3])
async def test_slow_beside_fast(room: SpoolRoom, folder: SpoolFolder, taken: int) -> None:
    """The fast end while the slow one is held, whether it has begun or not; the place in the source's streams is free
    then, and the slow one goes on from one file."""
    async with reading(room, Feed(data_of(40)), 4, period_s=AT_ONCE_S) as read:
        slow, *fast = read.cursors
        got = [await anext(slow) for _ in range(taken)]
        assert await asyncio.gather(*map(drain, fast)) == [read.feed.data] * 3
        await asyncio.wait_for(read.task, 10)
        await until(lambda: folder.files)
        assert b"".join(got) + await drain(slow) == read.feed.data
    assert folder.made == 1


async def test_equally_slow(room: SpoolRoom, folder: SpoolFolder) -> None:
    """Nobody is held up by cursors that keep step: the source waits, and no disk is touched."""
    async with reading(room, Feed(data_of(40)), 3, period_s=0.02) as read:
        got: list[list[bytes]] = [[], [], []]
        for number in range(40):
            for cursor, chunks in zip(read.cursors, got, strict=True):
                chunks.append(await anext(cursor))
            await asyncio.sleep(0.002)
            assert read.feed.sent_bytes <= (number + 2) * CHUNK + WINDOW
        assert [b"".join(chunks) for chunks in got] == [read.feed.data] * 3
    assert folder.made == 0


async def test_nobody_held_up(room: SpoolRoom, folder: SpoolFolder) -> None:
    """A single cursor, however slow, is in nobody's way, and a slow source is nobody's fault."""
    async with reading(room, Feed(data_of(20)), 1, period_s=AT_ONCE_S) as read:
        got = []
        async for chunk in read.cursors[0]:
            got.append(chunk)
            await asyncio.sleep(0.002)
        assert b"".join(got) == read.feed.data
    feed = Feed(data_of(20))
    feed.allow(0)
    async with reading(room, feed, 2, period_s=AT_ONCE_S) as read:
        drains = asyncio.gather(*map(drain, read.cursors))
        for _ in range(20):
            feed.allow(1)
            await asyncio.sleep(0.002)
        assert await drains == [feed.data] * 2
    assert folder.made == 0


@pytest.mark.parametrize(("owner", "taken"), [("another", 1), ("job", 66)])
async def test_wanted_place(room: SpoolRoom, folder: SpoolFolder, owner: str, taken: int) -> None:
    """A slow cursor goes on from a file also where another job's blob waits for the place, or one of its own job once
    all has been read; without room on the disk it keeps the place."""
    data = data_of(70)  # a large blob
    async with reading(room, Feed(data), 1, period_s=AT_ONCE_S) as read:
        got = [await anext(read.cursors[0]) for _ in range(taken)]
        async with asyncio.timeout(10), read.source.stream(owner, len(data), targets=2):
            await until(lambda: folder.made == 1)
        assert b"".join(got) + await drain(read.cursors[0]) == data
    async with reading(SpoolRoom(folder, CHUNK), Feed(data), 1, period_s=AT_ONCE_S) as read:
        got = [await anext(read.cursors[0]) for _ in range(taken)]
        waiting = asyncio.create_task(read.source.stream(owner, len(data), targets=2).__aenter__())
        await asyncio.sleep(20 * AT_ONCE_S)
        assert not waiting.done()
        waiting.cancel()
        assert b"".join(got) + await drain(read.cursors[0]) == data


async def test_later_laggards_join_the_file(room: SpoolRoom, folder: SpoolFolder) -> None:
    """One file serves all slow cursors of a read, wherever they fell back."""
    feed = Feed(data_of(60))
    feed.allow(20)
    async with reading(room, feed, 3, period_s=AT_ONCE_S) as read:
        never, later, quick = read.cursors
        task = asyncio.create_task(drain(quick))
        got = [await anext(later) for _ in range(8)]
        await until(lambda: folder.made == 1)
        feed.allow(60)
        assert await task == feed.data
        assert b"".join(got) + await drain(later) == feed.data
        assert await drain(never) == feed.data
    assert folder.made == 1


async def test_no_room(folder: SpoolFolder) -> None:
    """A laggard beyond the bound is dropped with a fault that may be tried again; the others go on."""
    data = data_of(40)
    async with reading(SpoolRoom(folder, len(data) - 1), Feed(data), 3, period_s=AT_ONCE_S) as read:
        slow, *fast = read.cursors
        assert await asyncio.gather(*map(drain, fast)) == [data] * 2
        with pytest.raises(Temporary) as full:
            await drain(slow)
        assert full.value.code is ErrorCode.STORAGE_FULL
    assert folder.made == 0


@contextmanager
def _full_disk() -> Iterator[Path]:
    yield Path("/dev/full")


@contextmanager
def _no_inode() -> Iterator[Path]:
    raise OSError(errno.ENOSPC, "No space left on device", "/secret/place")
    yield Path()


@contextmanager
def _refused() -> Iterator[Path]:
    raise Temporary(ErrorCode.STORAGE_FULL, "the disk is full")
    yield Path()


@pytest.mark.parametrize("spool_file", [_full_disk, _no_inode, _refused])
async def test_full_disk(spool_file: Callable[[], object]) -> None:
    """No room on the disk costs the slow cursor its place, and nobody else anything."""
    data = data_of(40)
    async with reading(SpoolRoom(spool_file, 1 << 30), Feed(data), 3, period_s=AT_ONCE_S) as read:  # type: ignore[arg-type]
        slow, *fast = read.cursors
        assert await asyncio.gather(*map(drain, fast)) == [data] * 2
        async with asyncio.timeout(10):
            with pytest.raises(Temporary) as full:
                await drain(slow)
        assert full.value.code is ErrorCode.STORAGE_FULL
        assert "secret" not in full.value.message


async def test_disk_fills_up_in_the_middle(room: SpoolRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails after some bytes: the cursor has had only right ones."""
    written = 0
    write = os.write

    def failing_write(fd: int, piece: memoryview) -> int:
        nonlocal written
        if written > 8 * CHUNK:
            raise OSError(errno.ENOSPC, "full")
        written += (count := write(fd, piece[: CHUNK // 3]))
        return count

    monkeypatch.setattr(spool_module.os, "write", failing_write)
    async with reading(room, Feed(data_of(40)), 2, period_s=AT_ONCE_S) as read:
        slow, quick = read.cursors
        got = [await anext(slow)]
        assert await drain(quick) == read.feed.data
        with pytest.raises(Temporary) as full:
            await drain(slow, got)
    assert full.value.code is ErrorCode.STORAGE_FULL
    assert read.feed.data.startswith(b"".join(got))


@pytest.mark.parametrize("ending", ["corrupt", "cut"])
async def test_bad_source_with_a_file(room: SpoolRoom, ending: str) -> None:
    """The last chunk of a corrupt blob never reaches the disk either, and who reads the file learns how the source
    ended."""
    feed = Feed(data_of(40))
    if ending == "cut":
        feed.fault = Temporary(ErrorCode.REGISTRY_UNAVAILABLE, "gone")
    async with reading(room, feed, 2, blob=blob_of(feed.data[:-1] + b"!"), period_s=AT_ONCE_S) as read:
        slow, quick = read.cursors
        got: list[list[bytes]] = [[], []]
        ends = await asyncio.gather(drain(quick, got[0]), return_exceptions=True)
        ends += await asyncio.gather(drain(slow, got[1]), return_exceptions=True)
    assert [getattr(end, "code", end) for end in ends] == [
        ErrorCode.COPY_FAILED if ending == "corrupt" else ErrorCode.REGISTRY_UNAVAILABLE
    ] * 2
    assert all(len(b"".join(chunks)) < len(feed.data) for chunks in got)


@pytest.mark.parametrize("way", ["close", "cancel"])
async def test_giving_up_on_the_file(room: SpoolRoom, folder: SpoolFolder, way: str) -> None:
    """Ending while it reads the file, or waits for it to grow, disturbs nobody."""
    feed = Feed(data_of(40))
    feed.allow(20)
    async with reading(room, feed, 2, period_s=AT_ONCE_S) as read:
        slow, quick = read.cursors
        task = asyncio.create_task(drain(quick))
        await until(lambda: folder.made == 1)
        giving_up = asyncio.create_task(drain(slow))
        await asyncio.sleep(0)
        slow.close() if way == "close" else giving_up.cancel()
        with pytest.raises(Temporary if way == "close" else asyncio.CancelledError):
            await giving_up
        feed.allow(40)
        assert await task == feed.data


async def test_cancelled_read(room: SpoolRoom) -> None:
    """A read that is stopped ends every cursor with a fault that may be tried again."""
    feed = Feed(data_of(8))
    feed.allow(5)
    async with reading(room, feed, 3, period_s=AT_ONCE_S) as read:
        drains = [asyncio.create_task(drain(cursor)) for cursor in read.cursors[:2]]
        await settle()
        read.task.cancel()
        ends = await asyncio.gather(*drains, drain(read.cursors[2]), return_exceptions=True)
        assert [getattr(end, "code", end) for end in ends] == [ErrorCode.DRAINING] * 3


CURSORS = 4
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(0, 6)),
        st.tuples(st.just("take"), st.integers(0, CURSORS - 1), st.integers(1, 6)),
        st.tuples(st.just("close"), st.integers(0, CURSORS - 1)),
        st.tuples(st.just("cancel"), st.integers(0, CURSORS - 1)),
        st.tuples(st.just("settle")),
        st.tuples(st.just("period")),
    ),
    max_size=30,
)


class Eater:
    """Takes as many chunks as it may, in its own task."""

    def __init__(self, cursor: Cursor) -> None:
        self.cursor = cursor
        self.got = b""
        self.is_whole = False
        self.fault: Fault | None = None
        self.permits = asyncio.Semaphore(0)
        self.task = asyncio.create_task(self._eat())
        self.task.add_done_callback(lambda _: cursor.close())

    async def _eat(self) -> None:
        try:
            await self.permits.acquire()
            async for chunk in self.cursor:
                self.got += chunk
                await self.permits.acquire()
            self.is_whole = True
        except Fault as fault:
            self.fault = fault

    def allow(self, chunks: int) -> None:
        for _ in range(chunks):
            self.permits.release()


async def play(read: Read, steps: list[tuple], folder: SpoolFolder, window: int) -> tuple[list[Eater], set[Eater]]:
    """The eaters, and those who left early. Without a file, no more is read ahead than the window, and what is on its
    way through: the chunk that waits for its proof, one that waits for room, and one in hand."""
    eaters = [Eater(cursor) for cursor in read.cursors]
    leavers: set[Eater] = set()
    for step in steps:
        match step:
            case ("send", count):
                read.feed.allow(count)
            case ("take", number, count):
                eaters[number].allow(count)
            case ("close", number):
                leavers.add(eaters[number])
                eaters[number].cursor.close()
            case ("cancel", number):
                leavers.add(eaters[number])
                eaters[number].task.cancel()
            case ("period",):
                await asyncio.sleep(2 * AT_ONCE_S)
            case _:
                await settle()
        stayers = [len(eater.got) for eater in eaters if eater not in leavers]
        if stayers and not folder.made:
            assert read.feed.sent_bytes - max(stayers) <= window + 3 * read.feed.chunk_bytes
    read.feed.allow(10_000)
    for eater in eaters:
        eater.allow(10_000)
    async with asyncio.timeout(20):
        await asyncio.wait([eater.task for eater in eaters])
    return eaters, leavers


@example(size=0, chunk=97, window=2_000, corrupt=True, steps=[("take", 0, 1), ("settle",), ("close", 0)])
@settings(max_examples=120, deadline=None)
@given(
    size=st.integers(0, 20_000),
    chunk=st.sampled_from([97, 512, 1_000]),
    window=st.sampled_from([600, 2_000, 8_000]),
    corrupt=st.booleans(),
    steps=STEPS,
)
def test_any_interleaving(size: int, chunk: int, window: int, corrupt: bool, steps: list) -> None:
    """Who stays gets every byte of a true blob and never the end of a corrupt one; nothing hangs, nothing is left."""
    data = bytes(number * 31 % 251 for number in range(size))
    blob = Descriptor(digest=blob_of(data + b"!" if corrupt else data).digest, size=size)

    async def scene(folder: SpoolFolder) -> None:
        feed = Feed(data, chunk)
        feed.allow(0)
        room = SpoolRoom(folder, 1 << 30)
        async with reading(room, feed, CURSORS, blob=blob, period_s=AT_ONCE_S, window=window) as read:
            eaters, leavers = await play(read, steps, folder, window)
        assert folder.files == []
        for eater in eaters:
            assert data.startswith(eater.got)
            if eater.is_whole:
                assert not corrupt
                assert eater.got == data
            elif eater not in leavers:
                assert corrupt
                assert eater.fault is not None
            assert not corrupt or not data or len(eater.got) < len(data)

    with tempfile.TemporaryDirectory() as name:
        asyncio.run(scene(SpoolFolder(Path(name))))
