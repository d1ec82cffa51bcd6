"""Who waits for which commits. Lives on the event loop; the writer rings it after each commit.

A ring says that something happened and never what: the watcher reads the store again.

The store on SQLite: verbs in, each carried out by the writer or by a reader.

Only this folder knows SQL. Only the writer's one connection writes (store/writer.py); everything read here was
committed.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from imagejobd.model.clock import now_ms
from imagejobd.model.errors import ErrorCode, Permanent, StoreFailed, Temporary
from imagejobd.model.job import Claim, Enqueued, Event, Job, JobError, JobId, Json, NewJob, Phase, State
from imagejobd.store.lock import DatabaseFile, hold_database
from imagejobd.store.protocol import Capacity, Ending, Filter, IsOver, LogBlock, Page, Pruned, Rescued, Stats
from imagejobd.store.sqlite import enqueue, maintenance, queries, transitions
from imagejobd.store.sqlite.claim import Started, claim
from imagejobd.store.sqlite.database import Inspection, check_kept, close_database, open_database, stopped_cleanly
from imagejobd.store.sqlite.maintenance import EngineRecords
from imagejobd.store.sqlite.readers import Readers
from imagejobd.store.sqlite.writer import Writer
from imagejobd.store.vault import Vault


class TopicSubscription:
    """One watcher's memory of whether its topic rang. Made by `Bell.watch`."""

    def __init__(self) -> None:
        self._rang = asyncio.Event()

    def publish(self) -> None:
        self._rang.set()

    async def changed(self, timeout_s: float) -> bool:
        """Wait for a ring since the watch began or last answered; False when `timeout_s` passed without one."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._rang.wait()
        except TimeoutError:
            return False
        self._rang.clear()
        return True


class Topics:
    """All watches by topic. A topic without watchers costs nothing."""

    def __init__(self) -> None:
        self._watches: dict[str, set[TopicSubscription]] = {}

    @contextmanager
    def watch(self, topic: str) -> Iterator[TopicSubscription]:
        watch = TopicSubscription()
        self._watches.setdefault(topic, set()).add(watch)
        try:
            yield watch
        finally:
            self._watches[topic].discard(watch)
            if not self._watches[topic]:
                del self._watches[topic]

    def publish(self, topics: Iterable[str]) -> None:
        for topic in topics:
            for watch in self._watches.get(topic, ()):
                watch.publish()


class SqliteStore:
    """Implements `store/protocol.py:Store`; its promises are told there."""

    def __init__(
        self,
        path: Path,
        *,
        vault: Vault,
        writer: Writer,
        readers: Readers,
        topics: Topics,
        file: DatabaseFile,
        blob_size: Callable[[str], int],
    ) -> None:
        self._path = path
        self._vault = vault
        self._blob_size = blob_size
        self._writer = writer
        self._readers = readers
        self._topics = topics
        self._file = file
        self.engine = EngineRecords(writer, readers)

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        path: Path,
        *,
        vault: Vault,
        clock: Callable[[], int] = now_ms,
        has_content: bool = False,
        blob_size: Callable[[str], int] = lambda digest: 0,
    ) -> AsyncIterator["SqliteStore"]:
        """Open and migrate the database at `path`; on leaving, carry out what is queued and close it cleanly.

        The caller holds the folder (store/lock.py), and says whether it has payloads of jobs; `blob_size` tells the
        bytes of one by its digest. Raises `Permanent` for a file that can't be used.
        """
        check_kept(path, has_content=has_content)
        was_clean = stopped_cleanly(path)
        with hold_database(path) as file:
            topics = Topics()
            writer = Writer(
                lambda: open_database(path, has_content=has_content),
                close_database,
                clock=clock,
                ring=topics.publish,
                check=file.check,
            )
            await writer.open()
            try:
                async with Readers.open(path) as readers:
                    store = cls(
                        path, vault=vault, writer=writer, readers=readers, topics=topics, file=file, blob_size=blob_size
                    )
                    with contextlib.nullcontext() if was_clean else _inspected(path, writer):
                        yield store
            finally:
                await writer.close()

    @property
    def failed(self) -> asyncio.Future[str]:
        """Resolves with the reason when the database can't be trusted any more: the daemon must stop, non-zero."""
        return self._writer.failed

    async def enqueue(
        self,
        job: NewJob,
        *,
        queue_max: int,
        tenant_queue_max: int | None = None,
        tenant_stored_max_bytes: int | None = None,
    ) -> Enqueued:
        sealed = self._vault.seal(job.uuid, job.secrets) if job.secrets else None
        request = enqueue.enqueue_request(
            job,
            sealed=sealed,
            blobs=self._sizes(job.blobs),
            queue_max=queue_max,
            tenant_queue_max=tenant_queue_max,
            tenant_stored_max_bytes=tenant_stored_max_bytes,
        )
        return await self._writer.run(enqueue.enqueue, request)

    def _sizes(self, blobs: Collection[str]) -> dict[str, int]:
        return {digest: self._blob_size(digest) for digest in blobs}

    async def repeat(self, job: Job) -> NewJob:
        sealed, blobs = await queries.needs(self._readers, job.id)
        if job.has_secret and sealed is None:
            why = "its passwords were deleted when it ended; submit it again with them"
            raise Permanent(ErrorCode.CONFLICT, f"job {job.uuid} cannot be tried again: {why}")
        payload = job.spec.get("context") or ("content" not in job.spec and job.spec.get("payload"))
        if payload and payload not in blobs:
            why = "its payload is no longer kept (retention.payload_days); submit it again"
            raise Permanent(ErrorCode.CONFLICT, f"job {job.uuid} cannot be tried again: {why}")
        return NewJob(
            kind=job.kind,
            spec=job.spec,
            tenant=job.tenant,
            client=job.client,
            submitter=job.submitter,
            priority=job.priority,
            labels=job.labels,
            secrets=self._vault.open(job.uuid, sealed) if sealed else {},
            blobs=blobs,
            retry_of=job.uuid,
        )

    async def claim(self, worker: str, room: Capacity) -> list[Claim]:
        started = await self._writer.do(lambda tx: claim(tx, worker, room))
        return [opened for one in started if (opened := await self._open_secrets(one)) is not None]

    async def _open_secrets(self, started: Started) -> Claim | None:
        """The claim with its secrets; a job whose secrets can't be opened fails here and harms no other."""
        if started.sealed is None:
            return Claim(job=started.job, token=started.token, secrets={})
        try:
            secrets = self._vault.open(started.job.uuid, started.sealed)
        except Permanent as fault:
            lost = Claim(job=started.job, token=started.token, secrets={})
            # On a full disk it stays running until the next start: the other claims are not lost with it.
            with contextlib.suppress(Temporary):
                await self.finish(lost, Ending(State.FAILED, error=JobError.of(fault)))
            return None
        return Claim(job=started.job, token=started.token, secrets=secrets)

    async def cancel_requests(self, worker: str) -> list[str]:
        return await queries.cancel_requests(self._readers, worker)

    async def enter_phase(self, claim: Claim, name: str) -> int:
        return await self._writer.do(lambda tx: transitions.set_phase(tx, claim, name))

    async def checkpoint(self, claim: Claim, values: Mapping[str, Any], *, blobs: Collection[str] = ()) -> None:
        sizes = self._sizes(blobs)
        await self._writer.do(lambda tx: transitions.checkpoint(tx, claim, values, sizes))

    async def log(self, claim: Claim, text: str) -> None:
        await self._writer.do(lambda tx: transitions.log(tx, claim, text))

    async def progress(self, claim: Claim, values: Mapping[str, Any]) -> None:
        await self._writer.do(lambda tx: transitions.progress(tx, claim, values))

    async def note(self, claim: Claim, event: str, data: Json) -> None:
        await self._writer.do(lambda tx: transitions.note(tx, claim, event, data))

    async def finish(self, claim: Claim, ending: Ending) -> None:
        await self._writer.run(transitions.leave, transitions.ending_way(claim, ending))

    async def retry(
        self,
        claim: Claim,
        error: JobError,
        *,
        not_before_ms: int,
        waits_for: str | None = None,
        is_attempt: bool = True,
    ) -> None:
        await self._writer.do(
            lambda tx: transitions.retry(
                tx, claim, error, not_before_ms=not_before_ms, waits_for=waits_for, is_attempt=is_attempt
            )
        )

    async def answered(self, peer: str | None) -> int:
        return await self._writer.do(lambda tx: transitions.answered(tx, peer))

    async def try_one(self, peer: str, kinds: Collection[str]) -> None:
        await self._writer.do(lambda tx: transitions.try_one(tx, peer, kinds))

    async def drain(self, worker: str) -> None:
        await self._writer.do(lambda tx: transitions.drain(tx, worker))

    async def clamp_delays(self, set_back_ms: int) -> int:
        return await self._writer.do(lambda tx: transitions.clamp_delays(tx, set_back_ms))

    async def interrupt(self, claim: Claim) -> None:
        await self._writer.do(lambda tx: transitions.interrupt(tx, claim))

    async def request_cancel(self, uuid: str, *, tenant: str | None) -> State | None:
        return await self._writer.do(lambda tx: maintenance.request_cancel(tx, uuid, tenant=tenant))

    async def rescue(self, worker: str, *, crashes_max: int) -> list[Rescued]:
        return await self._writer.do(lambda tx: transitions.rescue(tx, worker, crashes_max=crashes_max))

    async def expire(self, *, due_before_ms: int, is_over: IsOver | None = None) -> list[str]:
        found = await queries.unstarted(self._readers, due_before_ms=due_before_ms)
        ids = [job_id for job_id, kind, due_ms in found if is_over is None or is_over(kind, due_ms)]
        return await self._writer.do(lambda tx: maintenance.expire(tx, ids)) if ids else []

    async def prune(self, *, jobs_before_ms: int, logs_before_ms: int, blobs_before_ms: int, batch_max: int) -> Pruned:
        return await self._writer.do(
            lambda tx: maintenance.prune(
                tx,
                jobs_before_ms=jobs_before_ms,
                logs_before_ms=logs_before_ms,
                blobs_before_ms=blobs_before_ms,
                batch_max=batch_max,
            )
        )

    async def get(self, uuid: str, *, tenant: str | None) -> Job | None:
        return await queries.get(self._readers, uuid, tenant=tenant)

    async def get_by_id(self, job_id: JobId, *, tenant: str | None) -> Job | None:
        return await queries.get_by_id(self._readers, job_id, tenant=tenant)

    async def list_jobs(self, which: Filter, *, cursor: int | None, limit: int) -> Page:
        return await queries.list_jobs(self._readers, which, cursor=cursor, limit=limit)

    async def position(self, job: Job) -> int:
        return await queries.position(self._readers, job)

    async def phases(self, job_id: JobId) -> list[Phase]:
        return await queries.phases(self._readers, job_id)

    async def read_log(self, job_id: JobId, *, from_offset: int, max_blocks: int) -> list[LogBlock]:
        return await queries.read_log(self._readers, job_id, from_offset=from_offset, max_blocks=max_blocks)

    async def changes_since(self, event_id: int, *, job_id: JobId | None, limit: int) -> list[Event]:
        return await queries.changes_since(self._readers, event_id, job_id=job_id, limit=limit)

    async def live(self) -> set[str]:
        return await queries.live(self._readers)

    async def referenced_blobs(self) -> set[str]:
        return await queries.referenced_blobs(self._readers)

    async def stats(self) -> Stats:
        return await queries.stats(self._readers, wal_bytes=self._wal_bytes())

    def _wal_bytes(self) -> int:
        try:
            return self._path.with_name(self._path.name + "-wal").stat().st_size
        except FileNotFoundError:
            return 0

    async def probe(self) -> None:
        await self._writer.do(lambda tx: maintenance.probe(tx, self._file.check_companions))

    async def take_up_key(self) -> int:
        """Note which key secrets are sealed with now. Where it is another one than before: how many jobs that have not
        ended have secrets which it does not open."""
        known = await queries.known_key(self._readers)
        if known == self._vault.key_fingerprint:
            return 0
        await self._writer.do(lambda tx: maintenance.note_key(tx, self._vault.key_fingerprint))
        if known is None:
            return 0
        sealed = await queries.sealed(self._readers)
        return await asyncio.to_thread(lambda: sum(not self._vault.opens(uuid, secrets) for uuid, secrets in sealed))

    async def optimize(self) -> None:
        await self._writer.do(lambda tx: tx.db.execute("pragma optimize").fetchall())

    def watch(self, topic: str) -> AbstractContextManager[TopicSubscription]:
        return self._topics.watch(topic)


@contextlib.contextmanager
def _inspected(path: Path, writer: Writer) -> Iterator[None]:
    """Look for damage meanwhile; what is found stops the store."""
    loop = asyncio.get_running_loop()

    def found(damage: StoreFailed) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the next start finds it again
            loop.call_soon_threadsafe(writer.fail, damage)

    inspection = Inspection(path, found)
    try:
        yield
    finally:
        inspection.stop()
