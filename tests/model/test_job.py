"""Promises of the state table: complete, drawn as it is, without a way out of an end; and of UUIDs: sorted by time."""

import itertools
import time
import uuid

import pytest

from imagejobd.model import job
from imagejobd.model.job import FINAL, TRANSITIONS, State, Transition, is_uuid, next_state, uuid7

ALLOWED = {
    ("queued", "claim"): "running",
    ("queued", "cancel"): "cancelled",
    ("queued", "fail"): "failed",
    ("running", "succeed"): "succeeded",
    ("running", "fail"): "failed",
    ("running", "cancel"): "cancelled",
    ("running", "retry"): "queued",
    ("running", "interrupt"): "queued",
    ("running", "rescue"): "queued",
}


@pytest.mark.parametrize(("start", "move"), list(itertools.product(State, Transition)))
def test_every_pair_of_state_and_move(start: State, move: Transition):
    """Each of all pairs leads where the table says, or nowhere."""
    assert next_state(start, move) == ALLOWED.get((start.value, move.value))


@pytest.mark.parametrize("end", sorted(FINAL))
def test_ends_are_ends(end: State):
    """Nothing leads out of a final state."""
    assert end.is_final
    assert not [move for move in Transition if next_state(end, move)]


def test_every_state_is_reachable_and_can_end():
    """From `queued` every state can be reached, and from every state an end."""
    reached = {State.QUEUED}
    for _ in State:
        reached |= {to for (start, _), to in TRANSITIONS.items() if start in reached}
    assert reached == set(State)
    assert {State.QUEUED, State.RUNNING} == set(State) - FINAL


def test_the_drawing_names_every_state_and_move():
    """The picture in the module's docstring leaves no state and no move out."""
    assert [one.value for one in (*State, *Transition) if one.value not in (job.__doc__ or "")] == []


def test_uuid7_has_version_variant_and_time():
    """RFC 9562 §5.7: 48 bits of milliseconds, version 7, variant 10."""
    value = uuid.UUID(uuid7(1_700_000_000_123))
    assert (value.version, value.variant) == (7, uuid.RFC_4122)
    assert value.int >> 80 == 1_700_000_000_123


def test_uuid7_is_now_by_default_and_never_twice():
    """Without a time it is the present one, and thousands in one millisecond differ."""
    made = {uuid7() for _ in range(5000)}
    assert len(made) == 5000
    assert abs((uuid.UUID(uuid7()).int >> 80) - time.time() * 1000) < 5000


def test_uuid7_sorts_by_creation():
    """A later millisecond sorts after an earlier one, as text too."""
    made = [uuid7(1_700_000_000_000 + ms) for ms in range(100)]
    assert made == sorted(made)


def test_uuid7_of_times_that_do_not_fit():
    """A clock beyond 48 bits of milliseconds wraps and still makes a UUID."""
    assert is_uuid(uuid7((1 << 48) + 5))


@pytest.mark.parametrize("text", ["018c0000-0000-7000-8000-000000000000", "018C0000-0000-7000-8000-00000000ABCD"])
def test_canonical_uuids_are_recognised(text):
    """The hyphenated form counts in either case."""
    assert is_uuid(text)


@pytest.mark.parametrize(
    "text", ["", "status", "018c0000000070008000000000000000", "{018c0000-0000-7000-8000-000000000000}", "1"]
)
def test_other_forms_are_not_uuids(text):
    """What Python would also read as a UUID is not one in a URL."""
    assert not is_uuid(text)
