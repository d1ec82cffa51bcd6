"""Bringing blobs to the targets that lack them: mounted where they lie next door, else sent, from one read for all.

Each target fails by itself. One whose upload breaks off is served again alone, from a read of its own, within the
three tries that any request has; what is worth another try after that is the job's.
"""

import asyncio
import copy
import random
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from imagejobd.model.concurrency import KeyedLock, bounded, gather_or_cancel, uninterrupted
from imagejobd.model.errors import ErrorCode, Fault, Temporary
from imagejobd.model.failpoint import failpoint
from imagejobd.registry.blobs import Put, put_blob, read_blob
from imagejobd.registry.copy.fanout import Cursor, Fanout
from imagejobd.registry.copy.spool import SpoolRoom
from imagejobd.registry.copy.streams import SMALL_BLOB_MAX_BYTES, Source
from imagejobd.registry.copy.target import TargetState
from imagejobd.registry.manifest import Descriptor
from imagejobd.registry.repository import Repository

TRIES_MAX = 3
BACKOFF_FIRST_S = 0.5
# A registry that wants to be left alone for longer gets the job back later.
BACKOFF_MAX_S = 20.0
# Of one image, waiting for a place to be read in or for what others bring.
BLOBS_AT_ONCE = 128
HOLDINGS_MAX = 10_000


class Holdings:
    """Which repository of a registry is known to hold a blob, so that another one there can mount it.

    A hint and no more: the registry decides by what the login may read. One job's knowledge stays its own.
    """

    def __init__(self) -> None:
        self._paths: OrderedDict[tuple[str, str], str] = OrderedDict()

    def note(self, repository: Repository, digest: str) -> None:
        self._paths[repository.host, digest] = repository.path
        if len(self._paths) > HOLDINGS_MAX:
            self._paths.popitem(last=False)

    def elsewhere(self, repository: Repository, digest: str) -> str | None:
        """The path of another repository on the same registry that holds `digest`."""
        path = self._paths.get((repository.host, digest))
        return path if path != repository.path else None


class Copier:
    """What all copies share: the places to read in, the disk for slow targets, and who brings what where.

    From one source at most `streams_max` large blobs are read at once, with `window_bytes` of each in memory; both are
    ceilings, see `streams`. All spool files together, which `spool_file` makes and removes, take at most
    `spool_max_bytes`. Of two who bring one blob to one registry (`uploads`), or write one tag (`tags`), the second
    waits, and looks again.
    """

    def __init__(
        self,
        spool_file: Callable[[], AbstractContextManager[Path]],
        *,
        streams_max: int,
        window_bytes: int,
        spool_max_bytes: int,
    ) -> None:
        self.room = SpoolRoom(spool_file, spool_max_bytes)
        self.uploads = KeyedLock()
        self.tags = KeyedLock()
        self._new_source = partial(Source, streams_max, window_bytes)
        self._sources: WeakValueDictionary[str, Source] = WeakValueDictionary()

    def source(self, host: str) -> Source:
        """One for all who read from `host`; forgotten when nobody holds it any more."""
        return self._sources.setdefault(host, self._new_source())


class BlobTransfers:
    """The blobs of one image that some targets miss. `say` takes one line for people."""

    def __init__(
        self,
        copier: Copier,
        source: Repository,
        states: Sequence[TargetState],
        holdings: Holdings,
        say: Callable[[str], Awaitable[None]],
    ) -> None:
        self.source = source
        self.holdings = holdings
        self.say = say
        self._copier = copier
        self._states = states
        self._streams = copier.source(source.host)
        self._done = {state: asyncio.Event() for state in states}
        self._tasks: dict[TargetState, set[asyncio.Task[None]]] = {state: set() for state in states}
        self._cursors: dict[TargetState, set[Cursor]] = {state: set() for state in states}
        # What the source does not give is not asked for again by each target; what came corrupt is read once more.
        self.dead: dict[str, Fault] = {}
        self.second_reads = KeyedLock()

    async def run(self) -> None:
        """Bring every target what it misses, the largest blobs first: they take longest, and small ones fill the gaps.
        The fault of a target goes into its state, and ends its other transfers."""
        blobs = {digest: blob for state in self._states for digest, blob in state.missing.items()}
        order = sorted(blobs.values(), key=lambda blob: (-blob.size, blob.digest))
        for blob in order:
            self.holdings.note(self.source, blob.digest)
        self._note_done()
        large = [blob for blob in order if blob.size > SMALL_BLOB_MAX_BYTES]
        await gather_or_cancel(
            bounded(blobs, self._transfer, at_once=BLOBS_AT_ONCE) for blobs in (large, order[len(large) :])
        )

    async def ended(self, state: TargetState) -> None:
        """Wait until the target has all its blobs, or a fault."""
        await self._done[state].wait()

    @asynccontextmanager
    async def read(self, blob: Descriptor, cursors: int, *, use_mirrors: bool = True) -> AsyncIterator[Fanout]:
        """A read that begins with the block, as soon as there is a place for it, and ends with it at the latest."""
        fanout = Fanout(blob, self._copier.room, cursors)
        admitted = asyncio.Event()

        async def run() -> None:
            # A read for one target of several is no reason to read more at once.
            async with self._streams.stream(self.holdings, blob.size, targets=len(self._states)) as stream:
                admitted.set()
                await fanout.run(stream, read_blob(self.source, blob, use_mirrors=use_mirrors))

        async def end() -> None:
            reading.cancel()
            await asyncio.wait([reading])
            await fanout.close()

        reading = asyncio.create_task(run())
        try:
            await admitted.wait()
            yield fanout
        finally:
            await uninterrupted(end(), grace_s=None)
            if not reading.cancelled():
                reading.result()

    async def _transfer(self, blob: Descriptor) -> None:
        """One read for all that can take the blob now. Who waits for another upload to its registry takes no place."""
        async with AsyncExitStack() as locks, asyncio.TaskGroup() as sends:
            first: dict[TargetState, AsyncExitStack] = {}
            for state in self._states:
                if blob.digest not in state.missing or state.fault is not None:
                    continue
                key = (state.repository.host, blob.digest)
                if self._copier.uploads.is_taken(key):
                    self._start(sends, state, self._send(state, blob, self._copier.uploads.take(key)))
                    continue
                first[state] = await locks.enter_async_context(AsyncExitStack())
                await first[state].enter_async_context(self._copier.uploads.take(key))  # at once: nobody has it
            if first:
                async with self.read(blob, len(first)) as fanout:
                    cursors = dict(zip(first, fanout.cursors, strict=True))
                    self._set_laggards_aside(fanout, cursors)
                    await asyncio.wait(
                        [
                            self._start(sends, state, self._send(state, blob, lock, cursors[state]), cursors[state])
                            for state, lock in first.items()
                        ]
                    )

    def _set_laggards_aside(self, fanout: Fanout, cursors: Mapping[TargetState, Cursor]) -> None:
        """A target that still reads an earlier blob from disk is not waited for once more with each blob."""
        laggards = [state for state in cursors if any(cursor.spool for cursor in self._cursors[state])]
        if len(laggards) < len(cursors):
            fanout.set_aside([cursors[state] for state in laggards])

    def _start(
        self,
        group: asyncio.TaskGroup,
        state: TargetState,
        send: Coroutine[Any, Any, None],
        cursor: Cursor | None = None,
    ) -> asyncio.Task[None]:
        """Send in a task that the target's fault cancels; `cursor` is closed in any case, even if it never began."""
        task = group.create_task(send)
        self._tasks[state].add(task)
        task.add_done_callback(self._tasks[state].discard)
        if cursor is not None:
            self._cursors[state].add(cursor)
            task.add_done_callback(lambda _: self._cursors[state].discard(cursor))
            task.add_done_callback(lambda _: cursor.close())
        return task

    async def _send(
        self,
        state: TargetState,
        blob: Descriptor,
        lock: AbstractAsyncContextManager[object],
        cursor: Cursor | None = None,
    ) -> None:
        """Make the blob be there; without a cursor somebody else may have brought it meanwhile."""
        async with lock:
            if state.fault is None:
                await self._bring(state, blob, cursor)
        self._note_done()

    async def _bring(self, state: TargetState, blob: Descriptor, cursor: Cursor | None) -> None:
        try:
            if cursor is None and not state.is_distrusted and await state.repository.has_blob(blob.digest, blob.size):
                state.count(blob, "skipped_bytes")
            else:
                put = await _Upload(self, state, blob, cursor).run()
                state.count(blob, "mounted_bytes" if put is Put.MOUNTED else "sent_bytes")
                failpoint("after_blob")
            self.holdings.note(state.repository, blob.digest)
        except Fault as fault:
            state.fault = state.fault or fault
            for task in self._tasks[state] - {asyncio.current_task()}:
                task.cancel()

    def _note_done(self) -> None:
        for state, done in self._done.items():
            if not state.missing or state.fault is not None:
                done.set()


class _Upload:
    """One blob on its way to one target: from `cursor` at first, which may be shared, then from reads of its own."""

    def __init__(self, transfers: BlobTransfers, state: TargetState, blob: Descriptor, cursor: Cursor | None) -> None:
        self._transfers = transfers
        self._state = state
        self._blob = blob
        self._cursor = cursor
        self._sent_bytes = 0
        self._has_begun = False
        self._source_fault: Fault | None = None
        self._use_mirrors = True

    async def run(self) -> Put:
        """Raises what `put_blob` and the source raise, when another try is of no use now."""
        repository = self._state.repository
        tries = 0
        while True:
            tries += 1
            mount_from = None
            if not self._state.is_distrusted:
                mount_from = self._transfers.holdings.elsewhere(repository, self._blob.digest)
            try:
                async with AsyncExitStack() as stack:
                    if not self._use_mirrors:
                        await stack.enter_async_context(self._transfers.second_reads.take(self._blob.digest))
                    if self._cursor is None and mount_from is None:
                        # Not with an upload open: a registry gives that up while it waits for a place.
                        self._cursor = await self._read(stack)
                    return await put_blob(repository, self._blob, self._body, mount_from=mount_from)
            except Fault as fault:
                self._cursor = None
                self._count(-self._sent_bytes)  # what did not arrive was not sent, as far as people care
                wait_s = self._wait_s(fault, tries)
                if wait_s is None:
                    raise
                await self._transfers.say(f"{repository}: {fault.message}; trying again")
            except BaseException:
                self._count(-self._sent_bytes)
                raise
            await asyncio.sleep(wait_s)

    async def _body(self) -> AsyncGenerator[bytes, None]:
        self._has_begun = True
        self._count(-self._sent_bytes)
        try:
            async with AsyncExitStack() as stack:
                cursor, self._cursor = self._cursor or await self._read(stack), None
                stack.callback(cursor.close)  # who is served again alone keeps nobody else waiting meanwhile
                async for chunk in cursor:
                    self._count(len(chunk))
                    yield chunk
        except Fault as fault:
            self._source_fault = fault
            raise

    async def _read(self, stack: AsyncExitStack) -> Cursor:
        if fault := self._transfers.dead.get(self._blob.digest):
            raise copy.copy(fault)
        read = self._transfers.read(self._blob, 1, use_mirrors=self._use_mirrors)
        return (await stack.enter_async_context(read)).cursors[0]

    def _count(self, size_bytes: int) -> None:
        self._sent_bytes += size_bytes
        self._state.tally.sent_bytes += size_bytes

    def _wait_s(self, fault: Fault, tries: int) -> float | None:
        """How long to wait before the next try; None where another one is of no use now. What asked for no byte of the
        blob, or got none of the source, has had the tries of its requests."""
        if self._source_fault is not None:
            # Bytes may have been bent on their way, or at a mirror: worth one more read.
            is_bent = fault.code is ErrorCode.COPY_FAILED and not isinstance(fault, Temporary)
            is_first, self._source_fault, self._use_mirrors = self._use_mirrors, None, False
            if is_bent and is_first:
                return 0.0
            if fault.code is not ErrorCode.STORAGE_FULL:  # that was our own disk
                self._transfers.dead[self._blob.digest] = fault
            return None
        if not isinstance(fault, Temporary) or not self._has_begun or tries >= TRIES_MAX:
            return None
        wait_s = BACKOFF_FIRST_S * 2 ** (tries - 1) * random.uniform(0.5, 1.0)  # noqa: S311
        wait_s = max(wait_s, fault.retry_after_s or 0.0)
        return wait_s if wait_s <= BACKOFF_MAX_S else None
