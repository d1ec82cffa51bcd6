"""Waiting for each other before a blob is read, so that one read serves all targets that lack it."""

import asyncio
from collections.abc import Callable, Iterable

from imagejobd.registry.copy.flight import Reader
from imagejobd.registry.copy.leg import Leg

# Longer, and a target that is slow to answer would hold up the others. Its reader waits for it, spooled if need be.
GRACE_S = 0.2


class Boarding:
    """Gathers the readers of one blob. The read begins when each of `legs` has boarded or was forgotten, or `grace_s`
    after the first has boarded; then the readers of those still awaited are kept for them. Who boards again, after a
    failed try, gets a read of its own from `open_readers`.
    """

    def __init__(
        self, open_readers: Callable[[int], list[Reader]], legs: Iterable[Leg], *, grace_s: float = GRACE_S
    ) -> None:
        self._open_readers = open_readers
        self._awaited = dict.fromkeys(legs)
        self._grace_s = grace_s
        self._waiting: dict[asyncio.Future[Reader], Leg] = {}
        self._kept: dict[Leg, Reader] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._has_departed = False

    async def take(self, leg: Leg) -> Reader:
        """A reader of the blob, from its first byte; the caller closes it."""
        self._awaited.pop(leg, None)
        if self._has_departed:
            return self._kept.pop(leg, None) or self._open_readers(1)[0]
        loop = asyncio.get_running_loop()
        place: asyncio.Future[Reader] = loop.create_future()
        self._waiting[place] = leg
        if self._timer is None:
            self._timer = loop.call_later(self._grace_s, self._depart)
        self._depart_if_complete()
        try:
            return await place
        except asyncio.CancelledError:
            self._leave(place)
            raise

    def forget(self, leg: Leg) -> None:
        """This leg has the blob, or cannot take it. Harmless when it has boarded."""
        self._awaited.pop(leg, None)
        if leg in self._kept:
            self._kept.pop(leg).close()
        self._depart_if_complete()

    def _depart_if_complete(self) -> None:
        if not self._awaited:
            self._depart()

    def _depart(self) -> None:
        if self._has_departed or not self._waiting:
            return
        self._has_departed = True
        if self._timer is not None:
            self._timer.cancel()
        places = [place for place in self._waiting if not place.done()]
        readers = iter(self._open_readers(len(places) + len(self._awaited)))
        for place in places:
            place.set_result(next(readers))
        self._kept = dict(zip(self._awaited, readers, strict=True))

    def _leave(self, place: "asyncio.Future[Reader]") -> None:
        """Its leg is given up: one that was handed a reader meanwhile has no use for it."""
        self._waiting.pop(place, None)
        if not place.cancelled():
            place.result().close()
