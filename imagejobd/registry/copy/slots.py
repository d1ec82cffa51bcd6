"""Slots to read blobs in: so many at once from one host, so many in all, first come, first served.

A slot is for those who make use of it. While others wait, a flight whose readers hold up the source learns that the
slot is wanted (and lets them go on from disk), and one whose source hardly sends anything goes on without a slot.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

from imagejobd.registry.copy.patience import Credit

# Over all hosts, as a multiple of what one host may have: no few hosts, however slow, stop the others.
STREAMS_TOTAL_FACTOR = 3


class Slots:
    """`host_max` slots for each host, and `STREAMS_TOTAL_FACTOR` times as many in all. As many flights again may go on
    without one because their source is slow: at most `flights_max` read at once.

    `source_grace_s` is how long a source may send next to nothing; `admitted` is called when a flight gets its slot.
    """

    def __init__(
        self, host_max: int, *, source_grace_s: float, clock: Callable[[], float], admitted: Callable[[], None]
    ) -> None:
        self.source_grace_s = source_grace_s
        self.clock = clock
        self.admitted = admitted
        self.overall = Gate(STREAMS_TOTAL_FACTOR * host_max)
        self._host_max = host_max
        self._hosts: dict[str, Gate] = {}
        self._slow_left = STREAMS_TOTAL_FACTOR * host_max

    def slot(self, host: str) -> "Slot":
        """One for a blob of `host`; it is taken when it is entered."""
        return Slot(self, host)

    def host(self, host: str) -> "Gate":
        return self._hosts.setdefault(host, Gate(self._host_max))

    def forget(self, host: str) -> None:
        """Keep nothing about a host that nobody reads from."""
        if host in self._hosts and self._hosts[host].is_unused:
            del self._hosts[host]

    def take_slow(self) -> bool:
        """Whether one more may go on without a slot."""
        if not self._slow_left:
            return False
        self._slow_left -= 1
        return True

    def leave_slow(self) -> None:
        self._slow_left += 1


class Gate:
    """A number of places."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._free = places
        self._inside: dict[Slot, None] = {}
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def is_wanted(self) -> bool:
        """Whether somebody waits for a place."""
        return bool(self._waiting)

    @property
    def is_unused(self) -> bool:
        """Whether nobody is inside, waits, or has been let in but had no turn yet."""
        return self._free == self._places

    async def enter(self, slot: "Slot") -> None:
        if self._free:
            self._free -= 1
        else:
            await self._wait()
        self._inside[slot] = None

    def leave(self, slot: "Slot") -> None:
        del self._inside[slot]
        self._pass_on()

    async def _wait(self) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._notify()
        try:
            await turn
        except asyncio.CancelledError:
            if turn in self._waiting:
                self._waiting.remove(turn)
                self._notify()
            elif not turn.cancelled():
                self._pass_on()  # the place came together with the cancellation
            raise

    def _pass_on(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                break
        else:
            self._free += 1
        self._notify()

    def _notify(self) -> None:
        for slot in list(self._inside):
            slot.review()


class Slot:
    """One flight's place, from entering to leaving the context. `reviewed` is called when others may have begun or
    ceased to wait for it."""

    def __init__(self, slots: Slots, host: str) -> None:
        self.reviewed: Callable[[], None] = lambda: None
        self._slots = slots
        self._host = host
        self._gates: list[Gate] = []
        self._credit: Credit | None = None
        self._is_slow = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_wanted(self) -> bool:
        """Whether it is held while somebody waits for one like it."""
        return self._credit is not None and any(gate.is_wanted for gate in self._gates)

    def came(self, size_bytes: int) -> None:
        """The source has sent as much."""
        if self._credit is not None:
            self._credit.came(size_bytes, self._slots.clock())

    def pause(self) -> None:
        """It is not the source that is waited for now."""
        if self._credit is not None:
            self._credit.pause(self._slots.clock())

    def resume(self) -> None:
        """It is the source again."""
        if self._credit is not None:
            self._credit.resume(self._slots.clock())
            self._watch(self._credit)

    def review(self) -> None:
        """Others have begun or ceased to wait."""
        if self._credit is not None:
            self._watch(self._credit)
            self.reviewed()

    async def __aenter__(self) -> Self:
        try:
            for gate in (self._slots.host(self._host), self._slots.overall):
                await gate.enter(self)
                self._gates.append(gate)
            self._slots.admitted()
        except BaseException:
            self._leave()
            raise
        self._credit = Credit(self._slots.source_grace_s, self._slots.clock())
        self._watch(self._credit)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()
        if self._is_slow:
            self._slots.leave_slow()

    def _watch(self, credit: Credit) -> None:
        """Give the place back when the source has used up its credit while somebody waits."""
        self._unwatch()
        if not self.is_wanted or credit.is_paused:
            return
        left_s = credit.left_s(self._slots.clock())
        if left_s <= 0 and self._slots.take_slow():
            self._is_slow = True
            self._leave()
        else:
            retry_s = left_s if left_s > 0 else self._slots.source_grace_s
            self._timer = asyncio.get_running_loop().call_later(retry_s, self._watch, credit)

    def _unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _leave(self) -> None:
        self._unwatch()
        self._credit = None
        while self._gates:
            self._gates.pop().leave(self)
        self._slots.forget(self._host)
