"""One read of one blob for several readers: hashed as it flows, the last chunk held back until the digest is proved.

When the window is full, the source waits for the slowest reader; only when that holds up another reader for longer
than a moment does the slowest go on from a file (`spill`). Readers that are all as slow cost no disk.

When another flight waits for the slot, readers that hold up the source have to step aside too, though much later:
every byte of an image whose only target is slower than its source would go through the disk otherwise. Where there is
no room on disk they keep their place, because nobody needs their bytes but they themselves.

A reader that has not begun is one that lags at the first byte: its owner may be waiting for a place that is given free
only when another flight goes on, so it must never stop this one for good.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from imagejobd.model.errors import ErrorCode, Permanent, Temporary
from imagejobd.registry.copy.patience import Patience
from imagejobd.registry.copy.proof import Proof
from imagejobd.registry.copy.reader import Reader
from imagejobd.registry.copy.slots import Slot
from imagejobd.registry.copy.spill import Spill
from imagejobd.registry.copy.spool import Spool, no_room
from imagejobd.registry.copy.terms import Terms
from imagejobd.registry.copy.window import Window
from imagejobd.registry.manifest import Descriptor
from imagejobd.registry.repository import Repository


class Tee:
    """The flight of `blob` from `source`. It ends with its last reader, or with the first fault of the source.

    It begins to read when a reader begins and `slot` lets it in; `ended` is called once, when nobody may join any
    more because nobody is left.
    """

    def __init__(
        self,
        source: Repository,
        blob: Descriptor,
        terms: Terms,
        *,
        slot: Slot,
        ended: Callable[["Tee"], None],
    ) -> None:
        self._source = source
        self._blob = blob
        self._terms = terms
        self._slot = slot
        slot.reviewed = self._consider
        self._ended = ended
        self._window = Window(terms.window_bytes)
        self._patience = Patience(terms.spill_grace_s)
        self._slot_patience = Patience(terms.slot_grace_s)
        self._readers: dict[Reader, None] = {}
        self._hungry: set[Reader] = set()
        self._spill: Spill | None = None
        self._pump: asyncio.Task[None] | None = None
        self._room = asyncio.Event()
        self._blocked = False
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False
        self.has_landed = False  # the source has been read to its end; readers may still be behind
        self.is_refuted = False  # what came was not the blob
        self._proved = False

    @property
    def held_bytes(self) -> int:
        """What is in memory."""
        return self._window.held_bytes

    @property
    def is_joinable(self) -> bool:
        """Whether a new reader would find the first byte in memory."""
        return self._window.whole and not self._stopped

    def add(self, readers: int) -> list[Reader]:
        """As many new readers, at the first byte."""
        added = [Reader(self) for _ in range(readers)]
        for reader in added:
            self._window.enter()
            self._readers[reader] = None
        return added

    def begin(self, reader: Reader) -> None:
        """`reader` wants bytes: the first to do so starts the flight."""
        if reader.begun:
            return
        reader.begun = True
        if self._pump is None and not self._stopped:
            self._pump = self._terms.spawn(self._fly())
            self._pump.add_done_callback(self._flown)

    def take(self, reader: Reader) -> bytes | None:
        """The next chunk from memory; the one before it is passed."""
        if reader.holds:
            reader.holds = False
            if self._window.passed(reader.number - 1):
                self._room.set()
        chunk = self._window.take(reader.number)
        if chunk is not None:
            reader.number += 1
            reader.holds = True
        return chunk

    def is_end(self, offset: int) -> bool:
        return self._proved and offset == self._blob.size

    def hunger(self, reader: Reader) -> None:
        """`reader` has had everything that is in memory, and waits."""
        self._hungry.add(reader)
        self._consider()

    def sate(self, reader: Reader) -> None:
        """`reader` waits no longer."""
        self._hungry.discard(reader)

    def leave(self, reader: Reader, fault: BaseException | None) -> None:
        """`reader` goes: with None because it has had everything, else it raises `fault`. The last one ends it all."""
        if not reader.left:
            self._part([reader], fault)

    def fail(self, fault: BaseException) -> None:
        """Every reader raises `fault`."""
        self._part(list(self._readers), fault)

    def unburden(self) -> None:
        """Move what is in memory to disk, for the readers who have not had it yet."""
        self._window.let_go()
        self._move([reader for reader in self._in_memory() if reader.low < self._window.end])

    def _part(self, readers: list[Reader], fault: BaseException | None) -> None:
        for reader in readers:
            reader.left = True
            reader.fault = fault
            del self._readers[reader]
            self._hungry.discard(reader)
            if reader.spill is not None:
                reader.spill.discard(reader)
            elif self._window.leave(reader.low):
                self._room.set()
            reader.rouse()
        if not self._readers:
            self._stop()
        else:
            self._consider()

    def _stop(self) -> None:
        if self._stopped:
            return
        self._stopped = True
        if self._pump is not None:
            self._pump.cancel()
        if self._timer is not None:
            self._timer.cancel()
        self._window.let_go()
        self._ended(self)

    async def _fly(self) -> None:
        async with self._slot, aclosing(self._terms.open_source(self._source, self._blob)) as chunks:
            rest = await self._receive(chunks)
        self.has_landed = True
        if rest:
            await self._append(rest)
        self._proved = True
        self._feed()

    def _flown(self, pump: asyncio.Task[None]) -> None:
        if pump.cancelled():
            self.fail(Temporary(ErrorCode.DRAINING, "the copy was stopped from outside"))
        elif (fault := pump.exception()) is not None:
            self.is_refuted = isinstance(fault, Permanent) and fault.code is ErrorCode.COPY_FAILED
            self.fail(fault)

    async def _receive(self, chunks: AsyncGenerator[bytes, None]) -> bytes:
        """Feed all chunks but the last to the readers; the last one, when all are proved."""
        rest, proof = b"", Proof(self._source, self._blob)
        async for chunk in chunks:
            self._slot.came(len(chunk))
            proof.add(chunk)
            if proof.is_complete:
                rest = rest or chunk
            elif chunk:
                await self._append(chunk)
        proof.check()
        return rest

    async def _append(self, chunk: bytes) -> None:
        if not self._window.make_room(len(chunk)):
            await self._wait_for_room(len(chunk))
        self._window.append(chunk)
        self._feed()

    async def _wait_for_room(self, size_bytes: int) -> None:
        self._blocked = True
        self._slot.pause()
        try:
            while not self._window.make_room(size_bytes):
                self._room.clear()
                self._consider()
                await self._room.wait()
        finally:
            self._blocked = False
            self._slot.resume()
            self._consider()
            self._patience.freed(self._terms.clock())
            self._slot_patience.freed(self._terms.clock())

    def _feed(self) -> None:
        for reader in self._hungry:
            reader.rouse()
        self._hungry.clear()
        if self._spill is not None:
            self._spill.wake()

    def _in_memory(self) -> list[Reader]:
        return [reader for reader in self._readers if reader.spill is None]

    def _consider(self) -> None:
        """Something has changed: when do those at the window's tail have to step aside, if at all?"""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        left_s = self._patience_left_s()
        if left_s is not None:
            # Even when nothing is left, not at once: who has been roused and had no turn yet does not lag.
            self._timer = asyncio.get_running_loop().call_later(left_s, self._step_aside)

    def _patience_left_s(self) -> float | None:
        """None while nobody is held up."""
        if not self._blocked or self._stopped or self._room.is_set():
            return None
        now = self._terms.clock()
        tried = {self._patience: self._is_held_up(), self._slot_patience: self._slot.is_wanted}
        for patience, is_tried in tried.items():
            if not is_tried:
                patience.freed(now)
        lefts_s = [patience.held(now) for patience, is_tried in tried.items() if is_tried]
        if not lefts_s:
            return None
        return 0.0 if self._spill is not None else max(0.0, min(lefts_s))

    def _step_aside(self) -> None:
        left_s = self._patience_left_s()
        if left_s:
            self._consider()
        elif left_s is not None and (self._spill is None or self._spill.number != self._window.first):
            self._patience = Patience(self._terms.spill_grace_s)
            self._slot_patience = Patience(self._terms.slot_grace_s)
            if self._is_held_up() or self._open_spill() is not None:
                self._move([reader for reader in self._in_memory() if reader.low == self._window.first])
            else:
                self._consider()  # only a slot is wanted: no reason to fail anybody; there may be room later

    def _is_held_up(self) -> bool:
        """Whether somebody waits for the tail; if nobody here has begun, somebody elsewhere may."""
        return bool(self._hungry) or not any(reader.begun for reader in self._in_memory())

    def _move(self, laggards: list[Reader]) -> None:
        """Let `laggards` go on from the spool file, which begins at the window's tail at the latest."""
        if not laggards:
            return
        spill = self._open_spill()
        if spill is None:
            self._part(laggards, no_room(f"spool files may take {self._terms.spool_room.max_bytes} bytes in all"))
            return
        for reader in laggards:
            spill.add(reader)
            reader.spill = spill
            if self._window.leave(reader.low):
                self._room.set()
            reader.rouse()

    def _open_spill(self) -> Spill | None:
        """That of this flight, a new one if need be; None if there is no room for it."""
        if self._spill is None:
            self._spill = self._new_spill()
        return self._spill

    def _new_spill(self) -> Spill | None:
        """A spool file, with room for all that is to come so that nobody is spooled half-way; None if there is none."""
        size_bytes = self._blob.size - self._window.start
        if not self._terms.spool_room.reserve(size_bytes):
            return None
        spool = Spool(self._terms.spool_file, self._window.start)
        spill = Spill(self._window, spool, moved=self._spill_moved, ended=self._spill_ended, drop=self.leave)
        self._terms.spawn(spill.run(self._terms.spool_room, size_bytes))
        return spill

    def _spill_moved(self) -> None:
        self._room.set()
        self._consider()

    def _spill_ended(self) -> None:
        self._spill = None
