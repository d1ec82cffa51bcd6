"""What may be done to a running job, and the ways out of `running`.

Everything here names the claim token; a verb that finds another one there changes nothing and raises `ClaimLost`.
"""

from collections.abc import Collection, Mapping, Sequence
from sqlite3 import Row
from typing import Any

import msgspec

from imagejobd.model.errors import ClaimLost, ErrorCode
from imagejobd.model.ids import JobId
from imagejobd.model.job import Claim, JobError, Json
from imagejobd.model.state import Move, State, after
from imagejobd.store.protocol import CANCEL_TOPIC, QUEUE_TOPIC, Ending, Rescued, job_topic
from imagejobd.store.statements import load
from imagejobd.store.writer import Transaction

_SQL = load("running")
_INSERT_BLOB = load("accept")["insert_blob"]
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Json).decode

_ENDING_MOVES = {State.SUCCEEDED: Move.SUCCEED, State.FAILED: Move.FAIL, State.CANCELLED: Move.CANCEL}


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """How one job leaves `running`, as the statement `leave` takes it. `result` is JSON text."""

    id: JobId
    token: str
    move: Move
    state: State
    attempts_restored: int = 0
    crashes: int = 0
    not_before_ms: int | None = None
    result: str | None = None
    error_code: ErrorCode | None = None
    error_message: str | None = None


def way(job_id: JobId, token: str, move: Move, *, error: JobError | None = None, **rest: Any) -> Way:
    """The way out that `move` is by the table of model/state.py."""
    state = after(State.RUNNING, move)
    if state is None:
        raise ValueError(f"a running job can't {move}")
    if error is not None:
        rest |= {"error_code": error.code, "error_message": error.message}
    return Way(id=job_id, token=token, move=move, state=state, **rest)


def ending_way(claim: Claim, ending: Ending) -> Way:
    """The way out to a final state."""
    result = None if ending.result is None else _encode(ending.result).decode()
    return way(claim.job.id, claim.token, _ENDING_MOVES[ending.state], error=ending.error, result=result)


def leave(tx: Transaction, ways: Sequence[Way]) -> list[None]:
    """Take jobs out of `running`, all of them or none.

    Raises `ClaimLost` when one of the claims does not hold.
    """
    changed = tx.db.execute(_SQL["leave"], {"ways": _encode(ways).decode(), "now_ms": tx.now_ms}).rowcount
    if changed != len(ways):
        raise ClaimLost
    for gone in ways:
        tx.ring(job_topic(gone.id))
    if any(gone.state is State.QUEUED for gone in ways):
        tx.ring(QUEUE_TOPIC)
    return [None] * len(ways)


def retry(tx: Transaction, claim: Claim, error: JobError, *, not_before_ms: int) -> None:
    """Back to the queue after a temporary fault, or to `cancelled` when that was asked for meanwhile."""
    _back_to_queue(tx, claim, Move.RETRY, error=error, not_before_ms=not_before_ms)


def interrupt(tx: Transaction, claim: Claim) -> None:
    """Back to the queue because the daemon stops, or to `cancelled` when that was asked for meanwhile."""
    _back_to_queue(tx, claim, Move.INTERRUPT, attempts_restored=1)


def _back_to_queue(tx: Transaction, claim: Claim, move: Move, **rest: Any) -> None:
    if _claimed(tx, claim)["cancel_requested_ms"] is not None:
        # In the queue nobody would hear the request again.
        leave(tx, [way(claim.job.id, claim.token, Move.CANCEL)])
        tx.ring(CANCEL_TOPIC)
    else:
        leave(tx, [way(claim.job.id, claim.token, move, **rest)])


def rescue(tx: Transaction, worker: str, *, crashes_max: int) -> list[Rescued]:
    """Take back what other workers left running.

    One daemon owns the file (store/lock.py), so a worker of another name is gone, whatever its lease says. Leases are
    kept for people, who see in them when a daemon was last alive, and for a store that several daemons share.
    """
    orphans = tx.db.execute(_SQL["orphans"], {"worker": worker}).fetchall()
    ways = [_rescue_way(orphan, crashes_max) for orphan in orphans]
    if ways:
        leave(tx, ways)
    return [Rescued(orphan["uuid"], gone.state) for orphan, gone in zip(orphans, ways, strict=True)]


def _rescue_way(orphan: Row, crashes_max: int) -> Way:
    job_id, token, crashes = orphan["id"], orphan["claim_token"], orphan["crashes"] + 1
    if orphan["cancel_requested_ms"] is not None:
        return way(job_id, token, Move.CANCEL, crashes=1)
    if crashes >= crashes_max:
        message = f"the daemon died {crashes} times while this job ran; look at its log before you submit it again"
        return way(job_id, token, Move.FAIL, crashes=1, error=JobError(ErrorCode.QUARANTINED, message))
    return way(job_id, token, Move.RESCUE, crashes=1, attempts_restored=1)


def renew(tx: Transaction, worker: str, *, lease_until_ms: int) -> None:
    tx.db.execute(_SQL["renew"], {"worker": worker, "lease_until_ms": lease_until_ms})


def set_phase(tx: Transaction, claim: Claim, name: str) -> None:
    """Enter a phase. Triggers keep the phases' history."""
    _change(tx, claim, "set_phase", phase=name, now_ms=tx.now_ms)


def progress(tx: Transaction, claim: Claim, values: Mapping[str, Any]) -> None:
    _change(tx, claim, "set_progress", progress=_encode(values).decode())


def checkpoint(tx: Transaction, claim: Claim, values: Mapping[str, Any], blobs: Collection[str]) -> None:
    """Merge `values`, key by key, into the checkpoint."""
    merged = {**_decode(_claimed(tx, claim)["checkpoint"]), **values}
    _change(tx, claim, "set_checkpoint", checkpoint=_encode(merged).decode())
    for digest in blobs:
        tx.db.execute(_INSERT_BLOB, (claim.job.id, digest))


def log(tx: Transaction, claim: Claim, text: str) -> None:
    """Append a block. What UTF-8 can't hold (a lone surrogate) becomes a question mark."""
    data = text.encode(errors="replace")
    if not data:
        _claimed(tx, claim)
        return
    _change(tx, claim, "append_log", text=data.decode(), size=len(data), now_ms=tx.now_ms)


def note(tx: Transaction, claim: Claim, event: str, data: Json) -> None:
    """Append to the history what no change of the job's row tells."""
    _change(tx, claim, "append_event", type=event, data=_encode(data).decode(), now_ms=tx.now_ms)


def _claimed(tx: Transaction, claim: Claim) -> Row:
    row: Row | None = tx.db.execute(_SQL["claimed"], {"id": claim.job.id, "token": claim.token}).fetchone()
    if row is None:
        raise ClaimLost
    return row


def _change(tx: Transaction, claim: Claim, statement: str, **values: Any) -> None:
    values |= {"id": claim.job.id, "token": claim.token}
    if tx.db.execute(_SQL[statement], values).rowcount != 1:
        raise ClaimLost
    tx.ring(job_topic(claim.job.id))
