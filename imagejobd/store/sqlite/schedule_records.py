"""How far each schedule of the configuration has come, and the jobs that they make."""

from collections.abc import Mapping

import msgspec

from imagejobd.model.errors import Permanent, Temporary
from imagejobd.model.job import Enqueued, NewJob
from imagejobd.store.schedules import ScheduleRecord
from imagejobd.store.sqlite.database import load
from imagejobd.store.sqlite.enqueue import enqueue, enqueue_request
from imagejobd.store.sqlite.readers import Readers
from imagejobd.store.sqlite.writer import Transaction, Writer

_SQL = load("schedules")
_encode = msgspec.json.Encoder().encode


class ScheduleRecords:
    """Implements `store.schedules.ScheduleRecords`."""

    def __init__(self, writer: Writer, readers: Readers) -> None:
        self._writer = writer
        self._readers = readers

    async def begin(self, rules: Mapping[str, str]) -> None:
        values = {"rules": _encode(rules).decode()}

        def act(tx: Transaction) -> None:
            tx.db.execute(_SQL["begin"], values | {"now_ms": tx.now_ms})
            tx.db.execute(_SQL["forget_others"], values)

        await self._writer.do(act)

    async def all(self) -> dict[str, ScheduleRecord]:
        rows = await self._readers.all(_SQL["all"])
        return {name: ScheduleRecord(*fields) for name, *fields in map(tuple, rows)}

    async def run(
        self, name: str, due_ms: int, job: NewJob, *, queue_max: int, tenant_queue_max: int | None = None
    ) -> Enqueued | None:
        request = enqueue_request(job, sealed=None, blobs={}, queue_max=queue_max, tenant_queue_max=tenant_queue_max)
        values = {"name": name, "due_ms": due_ms, "job": job.uuid}

        def act(tx: Transaction) -> Enqueued | Temporary | Permanent | None:
            if tx.db.execute(_SQL["is_busy"], values).fetchone()[0]:
                tx.db.execute(_SQL["skip"], values)
                return None
            [answer] = enqueue(tx, [request])
            if isinstance(answer, Enqueued):
                tx.db.execute(_SQL["run"], values)
            return answer

        answer = await self._writer.do(act)
        # A refusal is raised by the writer.
        return answer if isinstance(answer, Enqueued) else None

    async def settle(self, name: str, at_ms: int) -> None:
        await self._writer.do(lambda tx: tx.db.execute(_SQL["settle"], {"name": name, "at_ms": at_ms}).rowcount)
