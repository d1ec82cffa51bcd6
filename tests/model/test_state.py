"""Promises of the state table: complete, drawn as it is, and without a way out of an end."""

import itertools

import pytest

from imagejobd.model import job
from imagejobd.model.job import FINAL, TRANSITIONS, State, Transition, next_state

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
