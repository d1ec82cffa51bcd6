"""One read of a blob for many uploads, shared by all jobs that want it at once.

The source is read once, hashed as it flows and teed to readers through a bounded window in memory. A reader that
holds up the others for longer than a moment goes on from a spool file at its own pace. The last chunk is held back
until the digest is proved. See `tee` for one flight; here is what they share: who may join, slots, bounds.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from imagejobd.model.errors import ErrorCode, Temporary
from imagejobd.registry.blobs import read_blob
from imagejobd.registry.copy.reader import Reader
from imagejobd.registry.copy.slots import Slot, Slots
from imagejobd.registry.copy.spool import SpoolRoom
from imagejobd.registry.copy.tee import Tee
from imagejobd.registry.copy.terms import Terms
from imagejobd.registry.manifest import Descriptor
from imagejobd.registry.repository import Repository

__all__ = [
    "SLOT_GRACE_S",
    "SMALL_BLOB_MAX_BYTES",
    "SMALL_STREAMS_MAX",
    "SOURCE_GRACE_S",
    "SPILL_GRACE_S",
    "Flights",
    "Reader",
]

# Blobs up to this size never wait behind larger ones: configs, signatures.
SMALL_BLOB_MAX_BYTES = 1024 * 1024
SMALL_STREAMS_MAX = 8
SPILL_GRACE_S = 1.0
REFUTED_MAX = 1_000
SLOT_GRACE_S = 5.0
SOURCE_GRACE_S = 10.0

# Only the same origin, login and trust may share bytes, and only of the same length: a descriptor can lie about it.
_Key = tuple[object, str, str, int]


class Flights:
    """All blobs in flight. `streams_max` large ones are read at once from one source host, F = `STREAMS_TOTAL_FACTOR`
    times as many from all hosts; small ones likewise, `SMALL_STREAMS_MAX` of them. At most `spool_max_bytes` of all lie
    in spool files, which `spool_file` makes and removes.

    Of each flight `window_bytes` are in memory, or its size if that is less. As many flights again as have slots may go
    on without, and those that have been read to their end hold something for slow readers, so that the memory is at
    most about (2 · F + 1) · streams_max · window_bytes + 2 · F · SMALL_STREAMS_MAX · min(SMALL_BLOB_MAX_BYTES,
    window_bytes): 160 MiB for 4 streams and 4 MiB. Beyond that, one piece of each source, and what is being written.

    `spill_grace_s` is how long a quick reader waits for a slow one before that one is spooled, `slot_grace_s` how long
    other flights wait for a slot that slow readers keep, `source_grace_s` how long for that of a source that sends next
    to nothing; `clock` is in seconds.
    """

    def __init__(
        self,
        spool_file: Callable[[], AbstractContextManager[Path]],
        *,
        streams_max: int,
        window_bytes: int,
        spool_max_bytes: int,
        spill_grace_s: float = SPILL_GRACE_S,
        slot_grace_s: float = SLOT_GRACE_S,
        source_grace_s: float = SOURCE_GRACE_S,
        open_source: Callable[..., AsyncGenerator[bytes, None]] = read_blob,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spool_room = SpoolRoom(spool_max_bytes)
        self._terms = Terms(
            open_source=open_source,
            spool_file=spool_file,
            spool_room=self._spool_room,
            window_bytes=window_bytes,
            spill_grace_s=spill_grace_s,
            slot_grace_s=slot_grace_s,
            clock=clock,
            spawn=self._spawn,
        )
        slots = partial(Slots, source_grace_s=source_grace_s, clock=clock, admitted=self._unburden)
        self._large = slots(streams_max)
        self._small = slots(SMALL_STREAMS_MAX)
        self._landed_max_bytes = streams_max * window_bytes
        self._joinable: dict[_Key, Tee] = {}
        # Where the last read had other bytes than it should: maybe a mirror's, which is not asked again.
        self._refuted: OrderedDict[_Key, None] = OrderedDict()
        self._flights: dict[Tee, _Key] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def board(self, source: Repository, blob: Descriptor, readers: int) -> list[Reader]:
        """`readers` views of one read of `blob`: of the flight that has just begun, if another job wants the same from
        the same repository with the same login, else of a new one. Nothing is read before the first reader iterates.
        It raises nothing: after `close` it is the readers that do.
        """
        if readers < 1:
            return []
        key = (source.connection.identity, source.path, blob.digest, blob.size)
        flight = self._joinable.get(key)
        if flight is None or not flight.is_joinable:
            flight = Tee(source, blob, self._terms_for(key), slot=self._slot(source, blob), ended=self._ended)
            self._joinable[key] = flight
            self._flights[flight] = key
        boarded = flight.add(readers)
        if self._closed:
            flight.fail(_closing())
        return boarded

    async def close(self) -> None:
        """End all flights, whose readers raise `Temporary(draining)`; no spool file is left."""
        self._closed = True
        for flight in list(self._flights):
            flight.fail(_closing())
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _terms_for(self, key: _Key) -> Terms:
        if key not in self._refuted:
            return self._terms
        return msgspec.structs.replace(self._terms, open_source=partial(self._terms.open_source, use_mirrors=False))

    def _slot(self, source: Repository, blob: Descriptor) -> Slot:
        slots = self._small if blob.size <= SMALL_BLOB_MAX_BYTES else self._large
        return slots.slot(source.connection.host)

    def _unburden(self) -> None:
        """Before more is read: slow readers of flights long read to their end do not pile up in memory, the oldest go
        to disk."""
        landed = [flight for flight in self._flights if flight.has_landed]
        held_bytes = sum(flight.held_bytes for flight in landed)
        for flight in landed:
            if held_bytes <= self._landed_max_bytes:
                break
            held_bytes -= flight.held_bytes
            flight.unburden()

    def _ended(self, flight: Tee) -> None:
        key = self._flights.pop(flight)
        if self._joinable.get(key) is flight:
            del self._joinable[key]
        if flight.is_refuted:
            self._refuted[key] = None
            if len(self._refuted) > REFUTED_MAX:
                self._refuted.popitem(last=False)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _closing() -> Temporary:
    return Temporary(ErrorCode.DRAINING, "the daemon is stopping; the copy goes on when it is back")
