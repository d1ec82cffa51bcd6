"""Targets that are not worth another try in this attempt, so that the images behind go on to the others.

One that does not answer, or that wants to be left alone, is left at once; one that answers, and fails for two images in
a row, is not asked about the others: every knock lasts for some tries, and would keep the images behind it waiting.
"""

from collections.abc import Callable

import msgspec

from imagejobd.kinds.distribute.outcomes import Record, Wait
from imagejobd.kinds.distribute.registries import Registries
from imagejobd.model.circuit import Circuits
from imagejobd.model.errors import ErrorCode, Fault, Temporary

IN_A_ROW_MAX = 2


class Outage(msgspec.Struct, frozen=True):
    """Why a target is left alone, fit to be shown, and what the rest of its copies wait for."""

    error: str
    wait: Wait


class Outages:
    """What the images of one attempt, and all jobs through `circuits`, found out about the targets."""

    def __init__(self, registries: Registries, circuits: Circuits, now_ms: Callable[[], int]) -> None:
        self._registries = registries
        self._circuits = circuits
        self._now_ms = now_ms
        self._in_a_row: dict[int, int] = {}
        self._last: dict[int, Outage] = {}

    def note(self, target: int, fault: Fault | None, record: Record) -> None:
        """A copy that was tried has ended with `fault`, as `record` tells it."""
        if record.error is None or not _is_outage(fault):
            self._in_a_row.pop(target, None)
            return
        self._in_a_row[target] = self._in_a_row.get(target, 0) + 1
        self._last[target] = Outage(record.error, record.wait)

    def find(self, target: int) -> Outage | None:
        """Why the target, or the source, is not worth another try now; None where both are."""
        for peer in self._registries.peers(target):
            if refusal := self._circuits.refusal(peer):
                return Outage(refusal.message, Wait.of(refusal, self._now_ms()))
        if target not in self._in_a_row:
            return None
        last = self._last[target]
        is_left = self._in_a_row[target] >= IN_A_ROW_MAX or last.wait.rest_s(self._now_ms()) > 0
        return last if is_left else None


def _is_outage(fault: Fault | None) -> bool:
    return isinstance(fault, Temporary) and fault.code is ErrorCode.REGISTRY_UNAVAILABLE
