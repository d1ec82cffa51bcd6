"""Hosts that do not answer: learned once for all jobs, instead of by each job anew.

A host's circuit opens when a request, after its own tries, found nobody there, and closes with anything that comes back
from it, be it a refusal. While it is open whoever asks for the host is refused at once, but for one trial after each
pause. Nothing here does I/O: who speaks to a host reports what came of it.
"""

import time
from collections.abc import Callable, Mapping

import msgspec

from imagejobd.model.clock import now_ms as wall_clock_ms
from imagejobd.model.errors import ErrorCode, Temporary

TRIAL_FIRST_S = 2.0
TRIAL_MAX_S = 60.0
# Users name hosts as they like. A host that is forgotten for another one is found out again by its next request.
OPEN_MAX = 1024
# An open circuit that nobody asks about for so long has no job that waits for it.
UNASKED_MAX_S = 3600.0


def peer_name(host: str, scheme: str | None = None) -> str:
    """The one name of a peer: `host[:port]` in lower case, as image references have it, without the port of TLS and
    with that of plain HTTP. `scheme` None is TLS."""
    name = host.lower()
    if ":" not in name.rpartition("]")[2]:
        return f"{name}:80" if scheme == "http" else name
    return name if scheme == "http" else name.removesuffix(":443")


class Outage(msgspec.Struct, frozen=True):
    """Why a host's circuit is open, and since when (epoch milliseconds)."""

    message: str
    since_ms: int


class _Circuit:
    """One open circuit; `asked_at` and `trial_at` are monotonic; `is_tried` while a trial has not ended."""

    def __init__(self, outage: Outage, now: float) -> None:
        self.outage = outage
        self.pause_s = TRIAL_FIRST_S
        self.asked_at = now
        self.trial_at = now + TRIAL_FIRST_S
        self.is_tried = False


class Circuits:
    """All open circuits, by host (see `peer_name`), at most `OPEN_MAX`. `on_close` is called with each host that
    answers again, or is no longer known to be down."""

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

    def is_open(self, host: str) -> bool:
        return host in self._open

    def refusal(self, host: str) -> Temporary | None:
        """What `check` would raise now; None where it would not. This is no trial."""
        circuit = self._open.get(host)
        if circuit is None or self._clock() >= circuit.trial_at:
            return None
        message = f"{circuit.outage.message} (known from an earlier request)"
        return Temporary(ErrorCode.REGISTRY_UNAVAILABLE, message, peer=host)

    def check(self, host: str) -> None:
        """Raises `Temporary(registry_unavailable)` with `host` as its peer while that is known to be down, but for who
        comes first after each pause: that is the trial, which ends in `failed`, `answered` or `abandoned`."""
        circuit = self._open.get(host)
        if circuit is None:
            return
        circuit.asked_at = self._clock()
        refusal = self.refusal(host)
        if refusal is not None:
            raise refusal
        circuit.trial_at = circuit.asked_at + circuit.pause_s
        circuit.is_tried = True

    def due(self) -> list[str]:
        """The hosts whose pause is over: one of the jobs that wait for each may be the trial."""
        now = self._clock()
        for host in [host for host, circuit in self._open.items() if now - circuit.asked_at >= UNASKED_MAX_S]:
            self.answered(host)
        return [host for host, circuit in self._open.items() if now >= circuit.trial_at]

    def failed(self, host: str, message: str) -> None:
        """Nobody answered there; `message` says what was found, without a secret and without whose request it was."""
        circuit = self._open.get(host)
        if circuit is not None:
            now = self._clock()
            # Many requests that failed together count as one.
            if circuit.is_tried or now >= circuit.trial_at:
                circuit.is_tried = False
                circuit.pause_s = min(2 * circuit.pause_s, TRIAL_MAX_S)
                circuit.trial_at = now + circuit.pause_s
            return
        self._open[host] = _Circuit(Outage(message, self._now_ms()), self._clock())
        if len(self._open) > OPEN_MAX:
            self.answered(next(iter(self._open)))

    def abandoned(self, host: str) -> None:
        """The trial, if this was one, has found out nothing: the next may come at once. One job could else, by the way
        in which it tries, keep all others from a host that is back."""
        circuit = self._open.get(host)
        if circuit is not None and circuit.is_tried:
            circuit.is_tried = False
            circuit.trial_at = self._clock()

    def answered(self, host: str) -> None:
        """Something came back from there."""
        if self._open.pop(host, None) is not None:
            self.on_close(host)
