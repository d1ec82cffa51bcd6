"""The durable queue on SQLite: verbs in, each one transaction of the writer or one read.

Only this folder knows SQL. The class has five parts: here are its opening, the verbs that need the vault, and topics;
`transitions.py` changes running jobs, `maintenance.py` does what no run needs, `queries.py` reads and `statistics.py`
counts. Only the writer's connection writes; everything that is read was committed.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path

import msgspec

from imagejobd.model.clock import now_ms
from imagejobd.model.errors import ErrorCode, Permanent, StoreFailed, Temporary
from imagejobd.model.job import Claim, Enqueued, Job, JobError, NewJob, State
from imagejobd.model.secrets import Secret
from imagejobd.store.lock import DatabaseFile, hold_database
from imagejobd.store.protocol import Capacity, Ending
from imagejobd.store.sqlite.claim import Started, claim
from imagejobd.store.sqlite.database import (
    Inspection,
    check_not_lost,
    close_database,
    load,
    open_database,
    stopped_cleanly,
)
from imagejobd.store.sqlite.engine_records import EngineRecords
from imagejobd.store.sqlite.enqueue import enqueue, enqueue_request, payload_gone
from imagejobd.store.sqlite.maintenance import Maintenance
from imagejobd.store.sqlite.queries import Queries
from imagejobd.store.sqlite.readers import Readers
from imagejobd.store.sqlite.schedule_records import ScheduleRecords
from imagejobd.store.sqlite.statistics import Statistics
from imagejobd.store.sqlite.transitions import Transitions
from imagejobd.store.sqlite.webhook_records import WebhookRecords
from imagejobd.store.sqlite.writer import Writer
from imagejobd.store.statistics import Commits
from imagejobd.store.vault import Vault

_SQL = load("secrets")
_decode_list = msgspec.json.Decoder(list[str]).decode


class TopicSubscription:
    """Remembers whether its topic was published. Made by `Topics.watch`."""

    def __init__(self) -> None:
        self._is_changed = asyncio.Event()

    def publish(self) -> None:
        self._is_changed.set()

    async def changed(self, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                await self._is_changed.wait()
        except TimeoutError:
            return False
        self._is_changed.clear()
        return True


class Topics:
    """Who waits for which commits, by topic. Lives on the event loop; a topic that nobody watches costs nothing."""

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


class SqliteStore(Queries, Transitions, Maintenance, Statistics):
    """Implements `Store` of store/protocol.py, which says what each verb promises."""

    def __init__(
        self,
        path: Path,
        *,
        vault: Vault,
        writer: Writer,
        readers: Readers,
        topics: Topics,
        file: DatabaseFile,
        commits: Commits,
        blob_size: Callable[[str], int],
    ) -> None:
        self._path = path
        self._vault = vault
        self._blob_size = blob_size
        self._writer = writer
        self._readers = readers
        self._topics = topics
        self._file = file
        self.commits = commits
        self.engine = EngineRecords(writer, readers)
        self.webhooks = WebhookRecords(writer, readers, vault)
        self.schedules = ScheduleRecords(writer, readers)

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
        check_not_lost(path, has_content=has_content)
        was_clean = stopped_cleanly(path)
        with hold_database(path) as file:
            topics, commits = Topics(), Commits()
            writer = Writer(
                lambda: open_database(path, has_content=has_content),
                close_database,
                clock=clock,
                publish=topics.publish,
                check=file.check,
                observe=commits.add,
            )
            await writer.open()
            try:
                async with Readers.open(path) as readers:
                    store = cls(
                        path,
                        vault=vault,
                        writer=writer,
                        readers=readers,
                        topics=topics,
                        file=file,
                        commits=commits,
                        blob_size=blob_size,
                    )
                    with contextlib.nullcontext() if was_clean else _inspecting(path, writer):
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
        request = enqueue_request(
            job,
            sealed=self._vault.seal(job.uuid, job.secrets) if job.secrets else None,
            blobs={digest: self._blob_size(digest) for digest in job.blobs},
            queue_max=queue_max,
            tenant_queue_max=tenant_queue_max,
            tenant_stored_max_bytes=tenant_stored_max_bytes,
        )
        return await self._writer.run(enqueue, request)

    async def repeat(self, job: Job, secrets: Mapping[str, Secret] | None = None) -> NewJob:
        row = await self._readers.first(_SQL["needs"], {"id": job.id})
        sealed: bytes | None = row["sealed"] if row else None
        blobs = tuple(_decode_list(row["blobs"])) if row else ()
        payload = job.spec.get("context") or ("content" not in job.spec and job.spec.get("payload"))
        if payload and payload not in blobs:
            raise payload_gone(job.uuid)
        own = self._vault.open(job.uuid, sealed) if sealed else {}
        return NewJob(
            kind=job.kind,
            spec=job.spec,
            tenant=job.tenant,
            client=job.client,
            submitter=job.submitter,
            priority=job.priority,
            labels=job.labels,
            secrets=_all_secrets(job, {**own, **(secrets or {})}),
            blobs=blobs,
            retry_of=job.uuid,
        )

    async def claim(self, worker: str, capacity: Capacity) -> list[Claim]:
        jobs = await self._writer.do(lambda tx: claim(tx, worker, capacity))
        return [opened for started in jobs if (opened := await self._open_secrets(started)) is not None]

    async def _open_secrets(self, started: Started) -> Claim | None:
        """The claim with its secrets; a job whose secrets can't be opened fails here and harms no other."""
        bare = Claim(job=started.job, token=started.token, secrets={})
        if started.sealed is None:
            return bare
        try:
            return msgspec.structs.replace(bare, secrets=self._vault.open(started.job.uuid, started.sealed))
        except Permanent as fault:
            # On a full disk it stays running until the next start: the other claims are not lost with it.
            with contextlib.suppress(Temporary):
                await self.finish(bare, Ending(State.FAILED, error=JobError.of(fault)))
            return None

    async def register_key(self) -> int:
        """Note which key secrets are sealed with now. Where it is another one than before: how many jobs that have not
        ended have secrets which it does not open."""
        known = await self._readers.first(_SQL["known_key"])
        fingerprint = self._vault.key_fingerprint
        if known is not None and known["fingerprint"] == fingerprint:
            return 0
        await self._writer.do(lambda tx: tx.db.execute(_SQL["note_key"], {"fingerprint": fingerprint}).rowcount)
        if known is None:
            return 0
        rows = await self._readers.all(_SQL["sealed"])
        return await asyncio.to_thread(lambda: sum(not self._vault.opens(row["uuid"], row["sealed"]) for row in rows))

    def watch(self, topic: str) -> AbstractContextManager[TopicSubscription]:
        return self._topics.watch(topic)


def _all_secrets(job: Job, secrets: Mapping[str, Secret]) -> Mapping[str, Secret]:
    """`secrets`, if they are those that the job came with. Of jobs from before names were kept nobody knows which."""
    if unknown := sorted(secrets.keys() - set(job.secret_names)) if job.secret_names or not job.has_secret else []:
        known = ", ".join(job.secret_names) or "none"
        raise Permanent(ErrorCode.INVALID, f"job {job.uuid} has no secret {unknown[0][:80]!r}; it has: {known}")
    if missing := sorted(set(job.secret_names) - secrets.keys()):
        why = f"its secrets were deleted when it ended; send them again, as secrets: {', '.join(missing)}"
        raise Permanent(ErrorCode.CONFLICT, f"job {job.uuid} cannot be tried again: {why}")
    if job.has_secret and not secrets:
        why = "its passwords were deleted when it ended; submit it again with them"
        raise Permanent(ErrorCode.CONFLICT, f"job {job.uuid} cannot be tried again: {why}")
    return secrets


@contextmanager
def _inspecting(path: Path, writer: Writer) -> Iterator[None]:
    """Look for damage meanwhile; where there is some, the store stops."""
    loop = asyncio.get_running_loop()

    def report(damage: StoreFailed) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the next start finds it again
            loop.call_soon_threadsafe(writer.fail, damage)

    inspection = Inspection(path, report)
    try:
        yield
    finally:
        inspection.stop()
