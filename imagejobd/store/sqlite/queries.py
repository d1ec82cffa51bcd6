"""What is asked of the store: each query reads a bounded number of rows, however long the history is. Nothing here
writes."""

from pathlib import Path
from sqlite3 import Row

import msgspec

from imagejobd.model.job import Event, Job, JobId, Json, Phase, Push, State
from imagejobd.store.filters import Failures, Filter, Page, Place, Retryable
from imagejobd.store.protocol import Backlog, Depth, LogBlock, Pause
from imagejobd.store.sqlite import listing
from imagejobd.store.sqlite.database import load
from imagejobd.store.sqlite.readers import Readers
from imagejobd.store.sqlite.rows import job
from imagejobd.store.statistics import Stats

_SQL = load("queries")
_json = msgspec.json.Decoder(Json)
_push = msgspec.json.Decoder(Push)
_integers = msgspec.json.Decoder(tuple[int, ...]).decode
# Of the last jobs of a kind, for the time that the next ones will take.
DURATIONS_MAX = 50
# Blocks of a log that are counted at once on the way back from its end.
TAIL_BLOCKS = 64


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
        return await listing.list_jobs(self._readers, which, cursor=cursor, limit=limit)

    async def retryable(self, which: Failures, *, after: Place | None, limit: int) -> Retryable:
        return await listing.retryable(self._readers, which, after=after, limit=limit)

    async def pauses(self) -> dict[str, Pause]:
        rows = await self._readers.all(_SQL["pauses"])
        return {row["kind"]: Pause(row["reason"], row["since_ms"], row["paused_by"]) for row in rows}

    async def depths(self, tenant: str | None) -> dict[str, Depth]:
        values = {"tenant": tenant}
        oldest = {row["kind"]: row["created_ms"] for row in await self._readers.all(_SQL["oldest_ready"], values)}
        return {
            row["kind"]: Depth(row["queued"], row["running"], oldest.get(row["kind"]))
            for row in await self._readers.all(_SQL["depths"], values)
        }

    async def position(self, job: Job) -> int:
        if job.state is not State.QUEUED:
            return 0
        values = {"tenant": job.tenant, "kind": job.kind, "priority": job.priority, "id": job.id}
        row = await self._readers.first(_SQL["position"], values)
        return int(row["position"]) if row else 0

    async def backlog(self, job: Job) -> Backlog:
        position = await self.position(job)
        values = {"tenant": job.tenant, "kind": job.kind, "most_each": position + 1, "limit": DURATIONS_MAX}
        row = await self._readers.first(_SQL["backlog"], values)
        assert row is not None  # noqa: S101 - it has no condition
        return Backlog(position + row["others"], _integers(row["running_since_ms"]), _integers(row["durations_ms"]))

    async def phases(self, job_id: JobId) -> list[Phase]:
        rows = await self._readers.all(_SQL["phases"], (job_id,))
        return [Phase(row["name"], row["attempt"], row["started_ms"], row["finished_ms"]) for row in rows]

    async def pushes(self, job_id: JobId) -> list[Push]:
        return [_push.decode(row["push"]) for row in await self._readers.all(_SQL["pushes"], (job_id,))]

    async def read_log(
        self, job_id: JobId, *, from_offset: int, max_blocks: int, to_offset: int | None = None
    ) -> list[LogBlock]:
        values = {"job_id": job_id, "from_offset": from_offset, "limit": max_blocks}
        values["to_offset"] = listing.END if to_offset is None else to_offset
        return [LogBlock(row["offset"], row["text"]) for row in await self._readers.all(_SQL["log_from"], values)]

    async def log_tail(self, job_id: JobId, *, lines: int, end: int) -> int:
        if lines == 0:
            return end
        # The last lines begin behind as many line breaks as they are; one at the very end begins no further line.
        breaks, below = lines, end
        while rows := await self._breaks_below(job_id, below):
            for row in rows:
                below = row["offset"]
                is_end = below + row["size"] == end
                count = row["breaks"] - (is_end and row["is_line_end"])
                if count >= breaks:
                    return await self._line_start(job_id, below, breaks + (is_end and row["is_line_end"]))
                breaks -= count
        return below

    async def _breaks_below(self, job_id: JobId, below: int) -> list[Row]:
        values = {"job_id": job_id, "below": below, "limit": TAIL_BLOCKS}
        return list(await self._readers.all(_SQL["log_breaks"], values))

    async def _line_start(self, job_id: JobId, offset: int, breaks: int) -> int:
        """Where the line begins that has so many line breaks behind its start and before the end of its block."""
        blocks = await self.read_log(job_id, from_offset=offset, max_blocks=1)
        lines = blocks[0].text.encode().rsplit(b"\n", breaks) if blocks else []
        return offset + len(lines[0]) + 1 if len(lines) > breaks else offset

    async def is_log_pruned(self, job_id: JobId) -> bool:
        return await self._readers.first(_SQL["log_pruned"], (job_id,)) is not None

    async def changes_since(self, event_id: int, *, job_id: JobId | None, limit: int) -> list[Event]:
        statement = _SQL["events" if job_id is None else "events_of_job"]
        values = {"event_id": event_id, "limit": limit}
        if job_id is not None:
            values["job_id"] = job_id
        return [
            Event(
                row["id"],
                JobId(row["job_id"]),
                row["at_ms"],
                row["type"],
                _json.decode(row["data"]),
                row["uuid"],
                row["tenant"],
                row["kind"],
            )
            for row in await self._readers.all(statement, values)
        ]

    async def live(self) -> set[str]:
        return {row["uuid"] for row in await self._readers.all(_SQL["live"])}

    async def cancel_requests(self, worker: str) -> list[str]:
        return [row["uuid"] for row in await self._readers.all(_SQL["cancel_requests"], (worker,))]

    async def referenced_blobs(self) -> set[str]:
        return {row["digest"] for row in await self._readers.all(_SQL["referenced_blobs"])}

    async def stats(self) -> Stats:
        counts = list(await self._readers.all(_SQL["depths"], {"tenant": None}))
        try:
            wal_bytes = self._path.with_name(self._path.name + "-wal").stat().st_size
        except FileNotFoundError:
            wal_bytes = 0
        return Stats(
            queued={row["kind"]: row["queued"] for row in counts},
            running={row["kind"]: row["running"] for row in counts},
            wal_bytes=wal_bytes,
        )
