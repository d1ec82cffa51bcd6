"""What is done to jobs from outside a run: cancelling, giving up on those that wait too long, forgetting old ones.

What the daemon remembers of its Docker Engine: who it is there, and which public bases it has pulled.
"""

from collections.abc import Callable, Collection, Sequence

import msgspec

from imagejobd.model.errors import ErrorCode
from imagejobd.model.job import JobError, JobId, State, Transition, next_state
from imagejobd.model.ownership import PulledBase
from imagejobd.store.protocol import CANCEL_TOPIC, Pruned, job_topic
from imagejobd.store.sqlite.database import load
from imagejobd.store.sqlite.readers import Readers
from imagejobd.store.sqlite.writer import Transaction, Writer

_SQL = load("maintenance")
_encode = msgspec.json.Encoder().encode


def request_cancel(tx: Transaction, uuid: str, *, tenant: str | None) -> State | None:
    found = tx.db.execute(_SQL["find"], {"uuid": uuid, "tenant": tenant}).fetchone()
    if found is None:
        return None
    job_id, state = JobId(found["id"]), State(found["state"])
    tx.publish(CANCEL_TOPIC)
    if state is State.QUEUED:
        _end_queued(tx, [job_id], Transition.CANCEL, None)
        return next_state(state, Transition.CANCEL)
    if state is State.RUNNING:
        tx.db.execute(_SQL["request_cancel"], {"id": job_id, "now_ms": tx.now_ms})
        tx.publish(job_topic(job_id))
    return state


def expire(tx: Transaction, ids: Sequence[JobId]) -> list[str]:
    """Fail those of `ids` that still wait and never ran; returns their UUIDs."""
    error = JobError(ErrorCode.TIMEOUT, "the job waited longer than the queue's time limit and was never started")
    return _end_queued(tx, ids, Transition.FAIL, error)


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
    return [row["uuid"] for row in ended]


def prune(tx: Transaction, *, jobs_before_ms: int, logs_before_ms: int, blobs_before_ms: int, batch_max: int) -> Pruned:
    """`batch_max` rows of what is too old.

    What hangs on a job goes before the job itself, each part only where room is left in the batch, so that none grows
    by what a deletion would take along.
    """
    logs = _prune_of_jobs(tx, "logs", max(logs_before_ms, jobs_before_ms), batch_max)
    blobs = _prune_of_jobs(tx, "blobs", max(blobs_before_ms, jobs_before_ms), batch_max - logs)
    blobs += _prune(tx, "contents", batch_max - logs - blobs, before_ms=blobs_before_ms)
    tx.db.execute(_SQL["prune_secrets"], {"before_ms": blobs_before_ms})
    jobs, others = _prune_jobs(tx, jobs_before_ms, batch_max - logs - blobs)
    rows = logs + blobs + jobs + others
    if rows < batch_max:
        tx.db.execute(_SQL["prune_lanes"])
    return Pruned(jobs=jobs, logs=logs, blobs=blobs, rows=rows)


def _prune_jobs(tx: Transaction, before_ms: int, limit: int) -> tuple[int, int]:
    """The oldest jobs with all that is left of them: how many of them, and how many other rows."""
    oldest = tx.db.execute(_SQL["oldest"], {"before_ms": before_ms, "limit": limit}).fetchall()
    ids = _encode([row["id"] for row in oldest]).decode()
    others = 0
    for what in ("events", "phases", "labels"):
        others += _prune(tx, what, limit - others, ids=ids)
    return _prune(tx, "jobs", limit - others, ids=ids), others


def _prune_of_jobs(tx: Transaction, what: str, before_ms: int, limit: int) -> int:
    """Logs or blob references of old jobs; the jobs that have none left are told so."""
    if limit <= 0:
        return 0
    gone = tx.db.execute(_SQL[f"prune_{what}"], {"before_ms": before_ms, "limit": limit}).fetchall()
    if gone:
        ids = sorted({row["job_id"] for row in gone})
        tx.db.execute(_SQL[f"note_pruned_{what}"], {"ids": _encode(ids).decode()})
    return len(gone)


def _prune(tx: Transaction, what: str, limit: int, **values: int | str) -> int:
    if limit <= 0:
        return 0
    return tx.db.execute(_SQL[f"prune_{what}"], {**values, "limit": limit}).rowcount


def probe(tx: Transaction, check: Callable[[], None]) -> None:
    """Change a page, and look at all files of the database."""
    check()
    tx.db.execute(_SQL["probe"], {"now_ms": tx.now_ms})


def note_key(tx: Transaction, fingerprint: str) -> None:
    """Remember which key secrets are sealed with from now on."""
    tx.db.execute(_SQL["note_key"], {"fingerprint": fingerprint})


_RECORDS_SQL = load("engine_records")


class EngineRecords:
    """Implements `model.bases.PulledBases`."""

    def __init__(self, writer: Writer, readers: Readers) -> None:
        self._writer = writer
        self._readers = readers

    async def installation(self) -> str:
        """The id that was given to this database as it was made; a copy of it has the same."""
        [row] = await self._readers.all(_RECORDS_SQL["installation"])
        return str(row["id"])

    async def known(self, uuids: Collection[str]) -> set[str]:
        """Those of `uuids` that are jobs of this store, ended ones too."""
        rows = await self._readers.all(_RECORDS_SQL["known"], {"uuids": msgspec.json.encode(list(uuids)).decode()})
        return {row["uuid"] for row in rows}

    async def pulled(self, name: str, image_id: str) -> None:
        await self._write("pulled", name=name, image_id=image_id)

    async def used(self, name: str) -> None:
        await self._write("used", name=name)

    async def bases(self) -> list[PulledBase]:
        rows = await self._readers.all(_RECORDS_SQL["bases"])
        return [PulledBase(row["name"], row["image_id"], row["used_ms"]) for row in rows]

    async def forget(self, base: PulledBase) -> None:
        await self._write("forget", name=base.name, image_id=base.image_id)

    async def _write(self, statement: str, **values: str) -> None:
        await self._writer.do(
            lambda tx: tx.db.execute(_RECORDS_SQL[statement], values | {"now_ms": tx.now_ms}).rowcount
        )
