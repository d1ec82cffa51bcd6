"""What is asked of the store: each query reads a bounded number of rows, however long the history is.

The one place that knows which column is which field. Nothing here writes.
"""

from itertools import product
from pathlib import Path
from sqlite3 import Row
from typing import Any

import msgspec

from imagejobd.model.errors import ErrorCode
from imagejobd.model.job import FINAL, Event, Job, JobError, JobId, Json, Phase, Push, State
from imagejobd.store.protocol import Filter, LogBlock, Page, Stats
from imagejobd.store.sqlite.database import load
from imagejobd.store.sqlite.readers import Readers

_SQL = load("queries")
_json = msgspec.json.Decoder(Json)
_labels = msgspec.json.Decoder(dict[str, str])
_push = msgspec.json.Decoder(Push)
# Row ids are below it: where a listing without a cursor starts.
_END = 2**63 - 1


class Queries:
    """The verbs of `SqliteStore` that read."""

    _path: Path
    _readers: Readers

    async def get(self, uuid: str, *, tenant: str | None) -> Job | None:
        row = await self._readers.first(_SQL["by_uuid"], {"uuid": uuid, "tenant": tenant})
        return None if row is None else job(row)

    async def get_by_id(self, job_id: JobId, *, tenant: str | None) -> Job | None:
        row = await self._readers.first(_SQL["by_id"], {"id": job_id, "tenant": tenant})
        return None if row is None else job(row)

    async def list_jobs(self, which: Filter, *, cursor: int | None, limit: int) -> Page:
        # Reads `limit` rows of the history and the queue, but for a label: that walks the jobs which carry it and so is
        # quick for labels that few jobs carry, or when most of them fit the rest of the filter.
        values: dict[str, Any] = {"tenant": which.tenant, "kind": which.kind, "state": which.state}
        values |= {"below": _END if cursor is None else cursor, "limit": limit + 1}
        if which.label is not None:
            values |= {"key": which.label[0], "value": which.label[1]}
            rows = list(await self._readers.all(_SQL["labelled"].format(listed=_SQL["listed"]), values))
        elif which.tenant is None and which.kind is None and which.state is None:
            rows = list(await self._readers.all(_SQL["newest"].format(listed=_SQL["listed"]), values))
        else:
            rows = await self._list_merged(which, values)
        jobs = [job(row) for row in rows[:limit]]
        return Page(jobs, jobs[-1].id if len(rows) > limit else None)

    async def _list_merged(self, which: Filter, values: dict[str, Any]) -> list[Row]:
        """Merge one ordered range for each kind and final state that the filter leaves open, and what has not ended."""
        states = [which.state] if which.state is not None else list(State)
        kinds = [which.kind] if which.kind is not None else await self._kinds(which.tenant)
        one_range = _SQL["ended_of_all" if which.tenant is None else "ended_of_tenant"]
        ranges = []
        for number, (kind, state) in enumerate(product(kinds, sorted(FINAL.intersection(states)))):
            ranges.append(one_range.format(kind=f":kind{number}", state=f":state{number}"))
            values |= {f"kind{number}": kind, f"state{number}": state}
        if not FINAL.issuperset(states):
            ranges.append(_SQL["not_ended"])
        if not ranges:
            return []
        page = _SQL["page"].format(listed=_SQL["listed"], ranges="union all\n".join(ranges))
        return list(await self._readers.all(page, values))

    async def _kinds(self, tenant: str | None) -> list[str]:
        statement = _SQL["all_kinds" if tenant is None else "kinds_of_tenant"]
        return [row["kind"] for row in await self._readers.all(statement, () if tenant is None else (tenant,))]

    async def position(self, job: Job) -> int:
        if job.state is not State.QUEUED:
            return 0
        values = {"tenant": job.tenant, "kind": job.kind, "priority": job.priority, "id": job.id}
        row = await self._readers.first(_SQL["position"], values)
        return int(row["position"]) if row else 0

    async def phases(self, job_id: JobId) -> list[Phase]:
        rows = await self._readers.all(_SQL["phases"], (job_id,))
        return [Phase(row["name"], row["attempt"], row["started_ms"], row["finished_ms"]) for row in rows]

    async def pushes(self, job_id: JobId) -> list[Push]:
        return [_push.decode(row["push"]) for row in await self._readers.all(_SQL["pushes"], (job_id,))]

    async def read_log(self, job_id: JobId, *, from_offset: int, max_blocks: int) -> list[LogBlock]:
        values = {"job_id": job_id, "from_offset": from_offset, "limit": max_blocks}
        return [LogBlock(row["offset"], row["text"]) for row in await self._readers.all(_SQL["log_from"], values)]

    async def changes_since(self, event_id: int, *, job_id: JobId | None, limit: int) -> list[Event]:
        statement = _SQL["events" if job_id is None else "events_of_job"]
        values = {"event_id": event_id, "limit": limit}
        if job_id is not None:
            values["job_id"] = job_id
        return [
            Event(row["id"], row["job_id"], row["at_ms"], row["type"], _json.decode(row["data"]))
            for row in await self._readers.all(statement, values)
        ]

    async def live(self) -> set[str]:
        return {row["uuid"] for row in await self._readers.all(_SQL["live"])}

    async def cancel_requests(self, worker: str) -> list[str]:
        return [row["uuid"] for row in await self._readers.all(_SQL["cancel_requests"], (worker,))]

    async def referenced_blobs(self) -> set[str]:
        return {row["digest"] for row in await self._readers.all(_SQL["referenced_blobs"])}

    async def stats(self) -> Stats:
        counts = list(await self._readers.all(_SQL["counts"]))
        try:
            wal_bytes = self._path.with_name(self._path.name + "-wal").stat().st_size
        except FileNotFoundError:
            wal_bytes = 0
        return Stats(
            queued={row["kind"]: row["queued"] for row in counts},
            running={row["kind"]: row["running"] for row in counts},
            wal_bytes=wal_bytes,
        )


def job(row: Row) -> Job:
    """A job from a row with all columns of its table."""
    return Job(
        id=JobId(row["id"]),
        uuid=row["uuid"],
        kind=row["kind"],
        tenant=row["tenant"],
        client=row["client"],
        submitter=_json.decode(row["submitter"]),
        spec=_json.decode(row["spec"]),
        state=State(row["state"]),
        phase=row["phase"],
        progress=_json.decode(row["progress"]),
        checkpoint=_json.decode(row["checkpoint"]),
        result=None if row["result"] is None else _json.decode(row["result"]),
        error=None if row["error_code"] is None else JobError(ErrorCode(row["error_code"]), row["error_message"]),
        attempt=row["attempt"],
        crashes=row["crashes"],
        crashes_in_phase=row["crashes_in_phase"],
        faults=row["faults"],
        faults_since_ms=row["faults_since_ms"],
        fault_phase=row["fault_phase"],
        waits_for=row["waits_for"],
        has_secret=bool(row["has_secret"]),
        retry_of=row["retry_of"],
        priority=row["priority"],
        not_before_ms=row["not_before_ms"],
        labels=_labels.decode(row["labels"]),
        idempotency_key=row["idempotency_key"],
        log_bytes=row["log_bytes"],
        cancel_requested_ms=row["cancel_requested_ms"],
        worker=row["worker"],
        created_ms=row["created_ms"],
        started_ms=row["started_ms"],
        finished_ms=row["finished_ms"],
    )
