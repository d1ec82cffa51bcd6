"""What may be done to a running job, and the ways out of `running`.

Every verb of a run names the claim token; where the job has another one it changes nothing and raises `ClaimLost`.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from sqlite3 import Row
from typing import Any

import msgspec

from imagejobd.model.errors import ClaimLost, ErrorCode
from imagejobd.model.job import ENDINGS, Claim, JobError, JobId, Json, Push, State, Transition, Wait, next_state
from imagejobd.store.protocol import CANCEL_TOPIC, EVENT_TOPIC, QUEUE_TOPIC, Ending, Rescued, job_topic
from imagejobd.store.sqlite.database import load
from imagejobd.store.sqlite.writer import Transaction, Writer

_SQL = load("transitions")
_INSERT_BLOB = load("enqueue")["insert_blob"]
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Json).decode


class Transitions:
    """The verbs of `SqliteStore` that change running jobs, and those that wait for their next attempt."""

    _writer: Writer
    _blob_size: Callable[[str], int]

    async def enter_phase(self, claim: Claim, name: str) -> int:
        def act(tx: Transaction) -> int:
            _update(tx, claim, "set_phase", phase=name, now_ms=tx.now_ms)  # triggers keep the phases' history
            tx.publish(EVENT_TOPIC)
            return int(_claimed(tx, claim)["faults"])

        return await self._writer.do(act)

    async def progress(self, claim: Claim, values: Mapping[str, Any]) -> None:
        await self._writer.do(lambda tx: _update(tx, claim, "set_progress", progress=_encode(values).decode()))

    async def checkpoint(self, claim: Claim, values: Mapping[str, Any], *, blobs: Collection[str] = ()) -> None:
        rows = [(claim.job.id, digest, self._blob_size(digest)) for digest in blobs]

        def act(tx: Transaction) -> None:
            merged = {**_decode(_claimed(tx, claim)["checkpoint"]), **values}
            _update(tx, claim, "set_checkpoint", checkpoint=_encode(merged).decode())
            tx.db.executemany(_INSERT_BLOB, rows)

        await self._writer.do(act)

    async def log(self, claim: Claim, text: str) -> None:
        """What UTF-8 can't hold (a lone surrogate) becomes a question mark."""
        data = text.encode(errors="replace")

        def act(tx: Transaction) -> None:
            if data:
                _update(tx, claim, "append_log", text=data.decode(), size=len(data), now_ms=tx.now_ms)
            else:
                _claimed(tx, claim)

        await self._writer.do(act)

    async def note(self, claim: Claim, event: str, data: Json) -> None:
        text = _encode(data).decode()

        def act(tx: Transaction) -> None:
            _update(tx, claim, "append_event", type=event, data=text, now_ms=tx.now_ms)
            tx.publish(EVENT_TOPIC)

        await self._writer.do(act)

    async def record_pushes(self, claim: Claim, pushes: Sequence[Push]) -> None:
        rows = [_push_row(claim.job.id, push) for push in pushes]

        def act(tx: Transaction) -> None:
            _claimed(tx, claim)
            tx.db.executemany(_SQL["record_push"], [row | {"now_ms": tx.now_ms} for row in rows])
            tx.publish(job_topic(claim.job.id))

        await self._writer.do(act)

    async def finish(self, claim: Claim, ending: Ending) -> None:
        result = None if ending.result is None else _encode(ending.result).decode()
        move = ENDINGS[ending.state]
        change = state_change(claim.job.id, claim.token, move, error=ending.error, result=result)
        await self._writer.run(apply, change)

    async def retry(
        self,
        claim: Claim,
        error: JobError,
        *,
        not_before_ms: int,
        waits_for: str | None = None,
        is_attempt: bool = True,
    ) -> None:
        values = {"not_before_ms": not_before_ms, "waits_for": waits_for, "attempts_restored": int(not is_attempt)}

        def act(tx: Transaction) -> None:
            job = _claimed(tx, claim)
            _requeue(tx, claim, Transition.RETRY, error=error, faults=1, **values)
            before = (job["fault_phase"], job["error_code"], job["error_message"])
            if job["faults"] and before == (job["phase"], error.code, error.message):
                tx.db.execute(_SQL["forget_repeat"], {"id": claim.job.id})
                tx.db.execute(_SQL["forget_phases"], {"id": claim.job.id, "attempt": job["attempt"]})

        await self._writer.do(act)

    async def interrupt(self, claim: Claim) -> None:
        await self._writer.do(lambda tx: _requeue(tx, claim, Transition.INTERRUPT, attempts_restored=1))

    async def answered(self, peer: str | None) -> int:
        def act(tx: Transaction) -> int:
            count = tx.db.execute(_SQL["answered"], {"peer": peer}).rowcount
            if count:
                tx.publish(QUEUE_TOPIC)
            return count

        return await self._writer.do(act)

    async def try_one(self, peer: str, kinds: Collection[str]) -> None:
        values = {"peer": peer, "kinds": _encode(list(kinds)).decode()}

        def act(tx: Transaction) -> None:
            if tx.db.execute(_SQL["try_one"], values).rowcount:
                tx.publish(QUEUE_TOPIC)

        await self._writer.do(act)

    async def clamp_delays(self, set_back_ms: int) -> int:
        values = {"set_back_ms": set_back_ms}
        return await self._writer.do(
            lambda tx: tx.db.execute(_SQL["clamp_delays"], values | {"now_ms": tx.now_ms}).rowcount
        )

    async def drain(self, worker: str) -> None:
        await self._writer.do(lambda tx: tx.db.execute(_SQL["drain"], {"worker": worker}).rowcount)

    async def rescue(self, worker: str, *, crashes_max: int) -> list[Rescued]:
        return await self._writer.do(lambda tx: _rescue(tx, worker, crashes_max=crashes_max))


class StateChange(msgspec.Struct, frozen=True, kw_only=True):
    """How one job leaves `running`, as the statement `apply` takes it. `result` is JSON text; `crashes` and `faults`
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


def state_change(
    job_id: JobId, token: str, move: Transition, *, error: JobError | None = None, **values: Any
) -> StateChange:
    """The change that `move` is by the table of model/job.py."""
    state = next_state(State.RUNNING, move)
    if state is None:
        raise ValueError(f"a running job can't {move}")
    if error is not None:
        values |= {"error_code": error.code, "error_message": error.message}
    return StateChange(id=job_id, token=token, move=move, state=state, **values)


def apply(tx: Transaction, changes: Sequence[StateChange]) -> list[None]:
    """Take jobs out of `running`, all of them or none.

    Raises `ClaimLost` when one of the claims does not hold.
    """
    values = {"changes": _encode(changes).decode(), "now_ms": tx.now_ms}
    if tx.db.execute(_SQL["apply"], values).rowcount != len(changes):
        raise ClaimLost
    for change in changes:
        tx.publish(job_topic(change.id))
    tx.publish(EVENT_TOPIC)
    if any(change.state is State.QUEUED for change in changes):
        tx.publish(QUEUE_TOPIC)
    return [None] * len(changes)


def _requeue(tx: Transaction, claim: Claim, move: Transition, **values: Any) -> None:
    """Back to the queue, or to `cancelled` when that was asked for meanwhile."""
    if _claimed(tx, claim)["cancel_requested_ms"] is not None:
        # In the queue nobody would hear the request again.
        apply(tx, [state_change(claim.job.id, claim.token, Transition.CANCEL)])
        tx.publish(CANCEL_TOPIC)
    else:
        apply(tx, [state_change(claim.job.id, claim.token, move, **values)])


def _rescue(tx: Transaction, worker: str, *, crashes_max: int) -> list[Rescued]:
    """Take back what other workers left running: one daemon owns the file (store/lock.py), so they are gone."""
    orphans = tx.db.execute(_SQL["orphans"], {"worker": worker}).fetchall()
    is_alone = sum(not orphan["drained"] for orphan in orphans) == 1
    changes = [_rescue_change(orphan, crashes_max, is_alone=is_alone) for orphan in orphans]
    if changes:
        apply(tx, changes)
    return [Rescued(orphan["uuid"], change.state) for orphan, change in zip(orphans, changes, strict=True)]


def _rescue_change(orphan: Row, crashes_max: int, *, is_alone: bool) -> StateChange:
    job_id, token = orphan["id"], orphan["claim_token"]
    crashes = int(not orphan["drained"])
    alone = orphan["crashes_alone"] + 1 if is_alone else 0
    if orphan["cancel_requested_ms"] is not None:
        return state_change(job_id, token, Transition.CANCEL, crashes=crashes, crashes_alone=alone)
    if crashes and alone >= crashes_max:
        message = (
            f"the daemon died {alone} times in a row while this job, and no other, was running; look at its log and at "
            "the daemon's before you try it again"
        )
        error = JobError(ErrorCode.QUARANTINED, message)
        return state_change(job_id, token, Transition.FAIL, crashes=1, crashes_alone=alone, error=error)
    return state_change(job_id, token, Transition.RESCUE, crashes=crashes, crashes_alone=alone, attempts_restored=1)


def _push_row(job_id: JobId, push: Push) -> Json:
    row = msgspec.structs.asdict(push) | {"job_id": job_id, "tags": _encode(push.tags).decode()}
    wait: Wait = row.pop("wait")
    return row | {"waits_for": wait.peer, "not_before_ms": wait.not_before_ms, "wait_ms": wait.length_ms}


def _claimed(tx: Transaction, claim: Claim) -> Row:
    row: Row | None = tx.db.execute(_SQL["claimed"], {"id": claim.job.id, "token": claim.token}).fetchone()
    if row is None:
        raise ClaimLost
    return row


def _update(tx: Transaction, claim: Claim, statement: str, **values: Any) -> None:
    values |= {"id": claim.job.id, "token": claim.token}
    if tx.db.execute(_SQL[statement], values).rowcount != 1:
        raise ClaimLost
    tx.publish(job_topic(claim.job.id))
