"""Hosts that do not answer: learned once for all jobs, instead of by each job anew.

A host's circuit opens when a request, after its own tries, found nobody there, and closes with anything that comes back
from it, be it a refusal. While it is open whoever asks for the host is refused at once, but for one trial after each
pause. Nothing here does I/O: who speaks to a host says what became of it.
"""

import time
from collections.abc import Callable, Mapping

import msgspec

from imagejobd.model.clock import now_ms as wall_clock_ms
from imagejobd.model.errors import ErrorCode, Temporary

TRIAL_FIRST_S = 2.0
TRIAL_MAX_S = 60.0


class Outage(msgspec.Struct, frozen=True):
    """Why a host's circuit is open, and since when (epoch milliseconds)."""

    message: str
    since_ms: int


class _Circuit:
    """One open circuit; `trial_at` is monotonic."""

    def __init__(self, outage: Outage, trial_at: float) -> None:
        self.outage = outage
        self.pause_s = TRIAL_FIRST_S
        self.trial_at = trial_at


class Circuits:
    """All open circuits, by host. `on_close` hears of each host that answers again."""

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, now_ms: Callable[[], int] = wall_clock_ms
    ) -> None:
        self._clock = clock
        self._now_ms = now_ms
        self._open: dict[str, _Circuit] = {}
        self.on_close: Callable[[str], None] = lambda host: None

    @property
    def outages(self) -> Mapping[str, Outage]:
        """What is known to be down."""
        return {host: circuit.outage for host, circuit in self._open.items()}

    def check(self, host: str) -> None:
        """Raises `Temporary(registry_unavailable)` with `host` as its peer while that is known to be down, but for who
        comes first after each pause: that is the trial, which ends in `failed` or `answered`."""
        circuit = self._open.get(host)
        if circuit is None:
            return
        if self._clock() < circuit.trial_at:
            message = f"{circuit.outage.message} (known from an earlier request)"
            raise Temporary(ErrorCode.REGISTRY_UNAVAILABLE, message, peer=host)
        self._postpone(circuit)

    def due(self) -> list[str]:
        """The hosts whose pause is over: one of the jobs that wait for each may be the trial."""
        return [host for host, circuit in self._open.items() if self._clock() >= circuit.trial_at]

    def failed(self, host: str, message: str) -> None:
        """Nobody answered there; `message` says what was found, without a secret."""
        if host not in self._open:
            self._open[host] = _Circuit(Outage(message, self._now_ms()), self._clock() + TRIAL_FIRST_S)

    def answered(self, host: str) -> None:
        """Something came back from there."""
        if self._open.pop(host, None) is not None:
            self.on_close(host)

    def _postpone(self, circuit: _Circuit) -> None:
        circuit.trial_at = self._clock() + circuit.pause_s
        circuit.pause_s = min(2 * circuit.pause_s, TRIAL_MAX_S)
