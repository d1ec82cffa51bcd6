"""The states of a job and the only ways between them.

::

                    ┌────────── retry, interrupt, rescue ──────────┐
                    ▼                                              │
    (enqueue) ─▶ queued ──────────── claim ───────────────────▶ running
                    │                                         │    │    │
       cancel, or fail (waited too long)                 succeed  fail  cancel
                    ▼                                         ▼    ▼    ▼
            cancelled, failed                         succeeded failed cancelled
"""

from enum import StrEnum


class State(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self in FINAL


class Move(StrEnum):
    """A named transition; each is one event in a job's history."""

    CLAIM = "claim"
    SUCCEED = "succeed"
    FAIL = "fail"
    CANCEL = "cancel"
    RETRY = "retry"
    INTERRUPT = "interrupt"
    RESCUE = "rescue"


FINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})

TRANSITIONS: dict[tuple[State, Move], State] = {
    (State.QUEUED, Move.CLAIM): State.RUNNING,
    (State.QUEUED, Move.CANCEL): State.CANCELLED,
    (State.QUEUED, Move.FAIL): State.FAILED,
    (State.RUNNING, Move.SUCCEED): State.SUCCEEDED,
    (State.RUNNING, Move.FAIL): State.FAILED,
    (State.RUNNING, Move.CANCEL): State.CANCELLED,
    (State.RUNNING, Move.RETRY): State.QUEUED,
    (State.RUNNING, Move.INTERRUPT): State.QUEUED,
    (State.RUNNING, Move.RESCUE): State.QUEUED,
}


def after(state: State, move: Move) -> State | None:
    """The state that `move` leads to from `state`, or None where it is not allowed."""
    return TRANSITIONS.get((state, move))
