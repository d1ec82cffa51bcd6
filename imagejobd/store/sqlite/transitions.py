"""What may be done to a running job, and the ways out of `running`.

Everything here names the claim token; a verb that finds another one there changes nothing and raises `ClaimLost`.
"""

from collections.abc import Collection, Mapping, Sequence
from sqlite3 import Row
from typing import Any

import msgspec

from imagejobd.model.errors import ClaimLost, ErrorCode
from imagejobd.model.job import Claim, JobError, JobId, Json, State, Transition, next_state
from imagejobd.store.protocol import CANCEL_TOPIC, QUEUE_TOPIC, Ending, Rescued, job_topic
from imagejobd.store.sqlite.database import load
from imagejobd.store.sqlite.writer import Transaction

_SQL = load("transitions")
_INSERT_BLOB = load("enqueue")["insert_blob"]
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Json).decode

_ENDING_MOVES = {State.SUCCEEDED: Transition.SUCCEED, State.FAILED: Transition.FAIL, State.CANCELLED: Transition.CANCEL}


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """How one job leaves `running`, as the statement `leave` takes it. `result` is JSON text; `crashes` and `faults`
    are what is added to the job's, `crashes_alone` what a crash makes of them."""

    id: JobId
    token: str
    move: Transition
    state: State
    attempts_restored: int = 0
    crashes: int = 0
    crashes_alone: int = 0
    faults: int = 0
    waits_for: str | None = None
    not_before_ms: int | None = None
    result: str | None = None
    error_code: ErrorCode | None = None
    error_message: str | None = None


def way(job_id: JobId, token: str, move: Transition, *, error: JobError | None = None, **rest: Any) -> Way:
    """The way out that `move` is by the table of model/state.py."""
    state = next_state(State.RUNNING, move)
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
        tx.publish(job_topic(gone.id))
    if any(gone.state is State.QUEUED for gone in ways):
        tx.publish(QUEUE_TOPIC)
    return [None] * len(ways)


def retry(
    tx: Transaction,
    claim: Claim,
    error: JobError,
    *,
    not_before_ms: int,
    waits_for: str | None = None,
    is_attempt: bool = True,
) -> None:
    """Back to the queue after a temporary fault, or to `cancelled` when that was asked for meanwhile."""
    job = _claimed(tx, claim)
    counts: dict[str, Any] = {"faults": 1, "attempts_restored": int(not is_attempt)}
    _back_to_queue(tx, claim, Transition.RETRY, error=error, not_before_ms=not_before_ms, waits_for=waits_for, **counts)
    if job["faults"] and _is_same(job, error):
        tx.db.execute(_SQL["forget_repeat"], {"id": claim.job.id})
        tx.db.execute(_SQL["forget_phases"], {"id": claim.job.id, "attempt": job["attempt"]})


def _is_same(job: Row, error: JobError) -> bool:
    """Whether an attempt ends in the place, and with the error, of the one before it."""
    before = (job["fault_phase"], job["error_code"], job["error_message"])
    return before == (job["phase"], error.code, error.message)


def answered(tx: Transaction, peer: str | None) -> int:
    count = tx.db.execute(_SQL["answered"], {"peer": peer}).rowcount
    if count:
        tx.publish(QUEUE_TOPIC)
    return count


def try_one(tx: Transaction, peer: str, kinds: Collection[str]) -> None:
    if tx.db.execute(_SQL["try_one"], {"peer": peer, "kinds": _encode(list(kinds)).decode()}).rowcount:
        tx.publish(QUEUE_TOPIC)


def clamp_delays(tx: Transaction, set_back_ms: int) -> int:
    return tx.db.execute(_SQL["clamp_delays"], {"now_ms": tx.now_ms, "set_back_ms": set_back_ms}).rowcount


def drain(tx: Transaction, worker: str) -> None:
    tx.db.execute(_SQL["drain"], {"worker": worker})


def interrupt(tx: Transaction, claim: Claim) -> None:
    """Back to the queue because the daemon stops, or to `cancelled` when that was asked for meanwhile."""
    _back_to_queue(tx, claim, Transition.INTERRUPT, attempts_restored=1)


def _back_to_queue(tx: Transaction, claim: Claim, move: Transition, **rest: Any) -> None:
    if _claimed(tx, claim)["cancel_requested_ms"] is not None:
        # In the queue nobody would hear the request again.
        leave(tx, [way(claim.job.id, claim.token, Transition.CANCEL)])
        tx.publish(CANCEL_TOPIC)
    else:
        leave(tx, [way(claim.job.id, claim.token, move, **rest)])


def rescue(tx: Transaction, worker: str, *, crashes_max: int) -> list[Rescued]:
    """Take back what other workers left running: one daemon owns the file (store/lock.py), so they are gone."""
    orphans = tx.db.execute(_SQL["orphans"], {"worker": worker}).fetchall()
    is_alone = sum(not orphan["drained"] for orphan in orphans) == 1
    ways = [_rescue_way(orphan, crashes_max, is_alone=is_alone) for orphan in orphans]
    if ways:
        leave(tx, ways)
    return [Rescued(orphan["uuid"], gone.state) for orphan, gone in zip(orphans, ways, strict=True)]


def _rescue_way(orphan: Row, crashes_max: int, *, is_alone: bool) -> Way:
    job_id, token = orphan["id"], orphan["claim_token"]
    crashes = int(not orphan["drained"])
    alone = orphan["crashes_alone"] + 1 if is_alone else 0
    if orphan["cancel_requested_ms"] is not None:
        return way(job_id, token, Transition.CANCEL, crashes=crashes, crashes_alone=alone)
    if crashes and alone >= crashes_max:
        message = (
            f"the daemon died {alone} times in a row while this job, and no other, was running; look at its log and at "
            "the daemon's before you try it again"
        )
        error = JobError(ErrorCode.QUARANTINED, message)
        return way(job_id, token, Transition.FAIL, crashes=1, crashes_alone=alone, error=error)
    return way(job_id, token, Transition.RESCUE, crashes=crashes, crashes_alone=alone, attempts_restored=1)


def set_phase(tx: Transaction, claim: Claim, name: str) -> int:
    """Enter a phase; the faults that still count. Triggers keep the phases' history."""
    _change(tx, claim, "set_phase", phase=name, now_ms=tx.now_ms)
    return int(_claimed(tx, claim)["faults"])


def progress(tx: Transaction, claim: Claim, values: Mapping[str, Any]) -> None:
    _change(tx, claim, "set_progress", progress=_encode(values).decode())


def checkpoint(tx: Transaction, claim: Claim, values: Mapping[str, Any], blobs: Mapping[str, int]) -> None:
    """Merge `values`, key by key, into the checkpoint; `blobs` are sizes in bytes by digest."""
    merged = {**_decode(_claimed(tx, claim)["checkpoint"]), **values}
    _change(tx, claim, "set_checkpoint", checkpoint=_encode(merged).decode())
    for digest, size_bytes in blobs.items():
        tx.db.execute(_INSERT_BLOB, (claim.job.id, digest, size_bytes))


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
    tx.publish(job_topic(claim.job.id))
