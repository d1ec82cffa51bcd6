"""What is done to jobs from outside a run: cancelling, pausing, giving up on those that wait too long, forgetting old
ones.

And to the database itself: proving that it can be written, and keeping it quick.
"""

from collections.abc import Collection, Sequence

import msgspec

from imagejobd.model.errors import ErrorCode
from imagejobd.model.job import JobError, JobId, State, Transition, next_state
from imagejobd.store.lock import DatabaseFile
from imagejobd.store.protocol import CANCEL_TOPIC, EVENT_TOPIC, PAUSE_TOPIC, QUEUE_TOPIC, IsOver, Pruned, job_topic
from imagejobd.store.sqlite.database import load
from imagejobd.store.sqlite.readers import Readers
from imagejobd.store.sqlite.writer import Transaction, Writer

_SQL = load("maintenance")
_encode = msgspec.json.Encoder().encode


class Maintenance:
    """The verbs of `SqliteStore` that no run of a job needs."""

    _writer: Writer
    _readers: Readers
    _file: DatabaseFile

    async def request_cancel(self, uuid: str, *, tenant: str | None) -> State | None:
        def act(tx: Transaction) -> State | None:
            row = tx.db.execute(_SQL["find"], {"uuid": uuid, "tenant": tenant}).fetchone()
            if row is None:
                return None
            job_id, state = JobId(row["id"]), State(row["state"])
            tx.publish(CANCEL_TOPIC)
            if state is State.QUEUED:
                _end_queued(tx, [job_id], Transition.CANCEL, None)
                return next_state(state, Transition.CANCEL)
            if state is State.RUNNING:
                tx.db.execute(_SQL["request_cancel"], {"id": job_id, "now_ms": tx.now_ms})
                tx.publish(EVENT_TOPIC)
                tx.publish(job_topic(job_id))
            return state

        return await self._writer.do(act)

    async def pause(self, kinds: Collection[str], *, reason: str, by: str) -> None:
        values = {"kinds": _encode(list(kinds)).decode(), "reason": reason, "by": by}

        def act(tx: Transaction) -> None:
            tx.db.execute(_SQL["pause"], values | {"now_ms": tx.now_ms})
            tx.publish(PAUSE_TOPIC)

        await self._writer.do(act)

    async def resume(self, kinds: Collection[str]) -> None:
        values = {"kinds": _encode(list(kinds)).decode()}

        def act(tx: Transaction) -> None:
            tx.db.execute(_SQL["resume"], values)
            tx.publish(PAUSE_TOPIC)
            tx.publish(QUEUE_TOPIC)

        await self._writer.do(act)

    async def expire(self, *, due_before_ms: int, is_over: IsOver | None = None) -> list[str]:
        # A reader walks the queue, because the writer has better to do; those that started meanwhile stay as they are.
        rows = await self._readers.all(_SQL["unstarted"], {"before_ms": due_before_ms})
        ids = [JobId(row["id"]) for row in rows if is_over is None or is_over(row["kind"], row["due_ms"])]
        if not ids:
            return []
        error = JobError(ErrorCode.TIMEOUT, "the job waited longer than the queue's time limit and was never started")
        return await self._writer.do(lambda tx: _end_queued(tx, ids, Transition.FAIL, error))

    async def prune(self, *, jobs_before_ms: int, logs_before_ms: int, blobs_before_ms: int, batch_max: int) -> Pruned:
        # What hangs on a job goes before the job itself, each part only where room is left in the batch, so that none
        # grows by what a deletion would take along.
        def act(tx: Transaction) -> Pruned:
            logs = _prune_of_jobs(tx, "logs", max(logs_before_ms, jobs_before_ms), batch_max)
            blobs = _prune_of_jobs(tx, "blobs", max(blobs_before_ms, jobs_before_ms), batch_max - logs)
            blobs += _prune(tx, "contents", batch_max - logs - blobs, before_ms=blobs_before_ms)
            tx.db.execute(_SQL["prune_secrets"], {"before_ms": blobs_before_ms})
            jobs, others = _prune_jobs(tx, jobs_before_ms, batch_max - logs - blobs)
            rows = logs + blobs + jobs + others
            if rows < batch_max:
                tx.db.execute(_SQL["prune_lanes"])
            return Pruned(jobs=jobs, logs=logs, blobs=blobs, rows=rows)

        return await self._writer.do(act)

    async def probe(self) -> None:
        def act(tx: Transaction) -> None:
            self._file.check_companions()
            tx.db.execute(_SQL["probe"], {"now_ms": tx.now_ms})

        await self._writer.do(act)

    async def optimize(self) -> None:
        await self._writer.do(lambda tx: tx.db.execute("pragma optimize").fetchall())


def _end_queued(tx: Transaction, ids: Sequence[JobId], move: Transition, error: JobError | None) -> list[str]:
    values = {
        "ids": _encode(ids).decode(),
        "state": next_state(State.QUEUED, move),
        "move": move,
        "now_ms": tx.now_ms,
        "error_code": error and error.code,
        "error_message": error and error.message,
    }
    ended = tx.db.execute(_SQL["end_queued"], values).fetchall()
    for row in ended:
        tx.publish(job_topic(row["id"]))
    tx.publish(EVENT_TOPIC)
    return [row["uuid"] for row in ended]


def _prune_jobs(tx: Transaction, before_ms: int, limit: int) -> tuple[int, int]:
    """The oldest jobs with their last rows elsewhere: how many of them, and how many other rows."""
    oldest = tx.db.execute(_SQL["oldest"], {"before_ms": before_ms, "limit": limit}).fetchall()
    ids = _encode([row["id"] for row in oldest]).decode()
    others = 0
    for what in ("events", "phases", "pushes", "labels", "terms", "new_terms"):
        others += _prune(tx, what, limit - others, ids=ids)
    return _prune(tx, "jobs", limit - others, ids=ids), others


def _prune_of_jobs(tx: Transaction, what: str, before_ms: int, limit: int) -> int:
    """Logs or blob references of old jobs; jobs that have none any more are marked so."""
    if limit <= 0:
        return 0
    rows = tx.db.execute(_SQL[f"prune_{what}"], {"before_ms": before_ms, "limit": limit}).fetchall()
    if rows:
        ids = _encode(sorted({row["job_id"] for row in rows})).decode()
        if what == "logs":
            tx.db.execute(_SQL["record_pruned_logs"], {"ids": ids, "now_ms": tx.now_ms})
            tx.publish(EVENT_TOPIC)
        tx.db.execute(_SQL[f"note_pruned_{what}"], {"ids": ids})
    return len(rows)


def _prune(tx: Transaction, what: str, limit: int, **values: int | str) -> int:
    if limit <= 0:
        return 0
    return tx.db.execute(_SQL[f"prune_{what}"], {**values, "limit": limit}).rowcount
