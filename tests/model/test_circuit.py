"""Circuits: who is refused while a host is down, who may try, and who hears that it is back."""

import pytest

from imagejobd.model.circuit import OPEN_MAX, TRIAL_FIRST_S, TRIAL_MAX_S, UNASKED_MAX_S, Circuits, peer_name
from imagejobd.model.errors import ErrorCode, Temporary

HOST = "registry.example:5000"


class Clock:
    def __init__(self) -> None:
        self.time_s = 50.0

    def __call__(self) -> float:
        return self.time_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def closed() -> list[str]:
    """The hosts whose circuits were closed."""
    return []


@pytest.fixture
def circuits(clock: Clock, closed: list[str]) -> Circuits:
    made = Circuits(clock=clock, now_ms=lambda: 7_000)
    made.on_close = closed.append
    return made


def test_closed_until_somebody_fails(circuits: Circuits) -> None:
    """A host about which nothing is known, and any other one, may be asked."""
    circuits.check(HOST)
    circuits.failed(HOST, "nobody is there")
    circuits.check("other.example")
    assert circuits.outages[HOST].since_ms == 7_000


def test_one_trial_after_each_pause(circuits: Circuits, clock: Clock) -> None:
    """All are refused with the host as the peer, but for one after each pause, and the pauses grow to a bound."""
    circuits.failed(HOST, "nobody is there")
    trials = []
    for _ in range(600):
        is_due = circuits.due() == [HOST]
        assert (circuits.refusal(HOST) is None) is is_due
        if is_due:
            circuits.check(HOST)
            trials.append(clock.time_s)
            circuits.failed(HOST, "still nobody")
        with pytest.raises(Temporary, match="nobody is there") as refused:
            circuits.check(HOST)
        assert (refused.value.code, refused.value.peer) == (ErrorCode.REGISTRY_UNAVAILABLE, HOST)
        clock.time_s += 1.0
    pauses = [later - earlier for earlier, later in zip([50.0, *trials], trials, strict=False)]
    assert pauses[0] == TRIAL_FIRST_S
    assert pauses == sorted(pauses)
    assert pauses[-1] == TRIAL_MAX_S


def test_many_at_once_are_one_finding(circuits: Circuits, clock: Clock) -> None:
    """Requests that were under way when a host went down make nobody wait longer for the first trial, or shorter."""
    for _ in range(8):
        circuits.failed(HOST, "nobody is there")
        circuits.abandoned(HOST)
    assert circuits.due() == []
    clock.time_s += TRIAL_FIRST_S
    assert circuits.due() == [HOST]


def test_a_trial_without_a_verdict(circuits: Circuits, clock: Clock) -> None:
    """Where it was abandoned, and also where nobody says so, the next one may try."""
    circuits.failed(HOST, "nobody is there")
    clock.time_s += TRIAL_FIRST_S
    circuits.check(HOST)
    assert circuits.due() == []
    circuits.abandoned(HOST)
    assert circuits.due() == [HOST]
    circuits.check(HOST)
    clock.time_s += TRIAL_FIRST_S
    assert circuits.due() == [HOST]


def test_any_answer_closes(circuits: Circuits, closed: list[str]) -> None:
    """Who waits hears of it once, and nobody is refused any more."""
    circuits.failed(HOST, "nobody is there")
    circuits.answered(HOST)
    circuits.answered(HOST)
    circuits.check(HOST)
    assert (closed, circuits.outages, circuits.due()) == ([HOST], {}, [])


def test_hosts_are_bounded(circuits: Circuits, closed: list[str]) -> None:
    """Whoever names thousands of dead hosts takes no more memory than that; who waits for a forgotten one goes on."""
    for number in range(OPEN_MAX + 1):
        circuits.failed(f"h{number}.example", "nobody is there")
    assert len(circuits.outages) == OPEN_MAX
    assert closed == ["h0.example"]


def test_what_nobody_asks_for_is_forgotten(circuits: Circuits, clock: Clock, closed: list[str]) -> None:
    """A host that no job needs any more is not called down for ever."""
    circuits.failed(HOST, "nobody is there")
    clock.time_s += UNASKED_MAX_S
    assert circuits.due() == []
    assert closed == [HOST]


@pytest.mark.parametrize(
    ("host", "scheme", "name"),
    [
        ("Registry.Example", None, "registry.example"),
        ("registry.example:443", "https", "registry.example"),
        ("registry.example:443", "http", "registry.example:443"),
        ("registry.example", "http", "registry.example:80"),
        ("registry.example:80", None, "registry.example:80"),
        ("registry.example:5000", "http", "registry.example:5000"),
        ("[2001:DB8::1]", "http", "[2001:db8::1]:80"),
        ("[2001:db8::1]:443", None, "[2001:db8::1]"),
    ],
    ids=["capitals", "tls", "http-at-443", "http", "port-80", "port", "ipv6-http", "ipv6-tls"],
)
def test_peers_have_one_name(host: str, scheme: str | None, name: str) -> None:
    """However a host is written, what is the same door has the same name, and what is another door has not."""
    assert peer_name(host, scheme) == name
