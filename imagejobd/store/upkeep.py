"""What is done to jobs from outside a run: cancelling, giving up on those that wait too long, forgetting old ones."""

from collections.abc import Sequence

import msgspec

from imagejobd.model.errors import ErrorCode
from imagejobd.model.ids import JobId
from imagejobd.model.job import JobError
from imagejobd.model.state import Move, State, after
from imagejobd.store.protocol import CANCEL_TOPIC, Pruned, job_topic
from imagejobd.store.statements import load
from imagejobd.store.writer import Transaction

_SQL = load("upkeep")
_encode = msgspec.json.Encoder().encode


def request_cancel(tx: Transaction, uuid: str, *, tenant: str | None) -> State | None:
    found = tx.db.execute(_SQL["find"], {"uuid": uuid, "tenant": tenant}).fetchone()
    if found is None:
        return None
    job_id, state = JobId(found["id"]), State(found["state"])
    tx.ring(CANCEL_TOPIC)
    if state is State.QUEUED:
        _end_queued(tx, [job_id], Move.CANCEL, None)
        return after(state, Move.CANCEL)
    if state is State.RUNNING:
        tx.db.execute(_SQL["request_cancel"], {"id": job_id, "now_ms": tx.now_ms})
        tx.ring(job_topic(job_id))
    return state


def expire(tx: Transaction, ids: Sequence[JobId]) -> list[str]:
    """Fail those of `ids` that still wait and never ran; returns their UUIDs."""
    error = JobError(ErrorCode.TIMEOUT, "the job waited longer than the queue's time limit and was never started")
    return _end_queued(tx, ids, Move.FAIL, error)


def _end_queued(tx: Transaction, ids: Sequence[JobId], move: Move, error: JobError | None) -> list[str]:
    values = {
        "ids": _encode(ids).decode(),
        "state": after(State.QUEUED, move),
        "move": move,
        "now_ms": tx.now_ms,
        "error_code": error and error.code,
        "error_message": error and error.message,
    }
    ended = tx.db.execute(_SQL["end_queued"], values).fetchall()
    for row in ended:
        tx.ring(job_topic(row["id"]))
    return [row["uuid"] for row in ended]


def prune(tx: Transaction, *, jobs_before_ms: int, logs_before_ms: int, blobs_before_ms: int, batch_max: int) -> Pruned:
    """One batch of each. A job's log and blobs go before the job itself, so that no batch grows by what hangs on it."""
    logs = _prune(tx, "logs", max(logs_before_ms, jobs_before_ms), batch_max)
    blobs = _prune(tx, "blobs", max(blobs_before_ms, jobs_before_ms), batch_max)
    contents = tx.db.execute(_SQL["prune_contents"], {"before_ms": blobs_before_ms, "limit": batch_max}).rowcount
    tx.db.execute(_SQL["prune_secrets"], {"before_ms": blobs_before_ms})
    jobs = tx.db.execute(_SQL["prune_jobs"], {"before_ms": jobs_before_ms, "limit": batch_max}).rowcount
    if jobs:
        tx.db.execute(_SQL["prune_lanes"])
    return Pruned(jobs=jobs, logs=logs, blobs=blobs + contents)


def _prune(tx: Transaction, what: str, before_ms: int, batch_max: int) -> int:
    gone = tx.db.execute(_SQL[f"prune_{what}"], {"before_ms": before_ms, "limit": batch_max}).rowcount
    if gone:
        tx.db.execute(_SQL[f"note_pruned_{what}"], {"before_ms": before_ms})
    return gone
