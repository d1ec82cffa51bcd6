"""What the APIs share of taking jobs in: uploads are held while their request lasts, and jobs are kept durably.

Nothing is acknowledged that is not committed. Bytes that belong to no job in the end are left to the content store's
collection.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from itertools import islice
from weakref import WeakValueDictionary

import msgspec
import structlog
from aiohttp import web

from imagejobd.api.wire import busy
from imagejobd.model.bounds import KIB, MIB, Bytes, Count, Seconds
from imagejobd.model.errors import ErrorCode, NotFound, Permanent, Temporary
from imagejobd.model.job import (
    IMAGES_MAX,
    LOCAL_TENANT,
    Enqueued,
    Job,
    JobId,
    Json,
    NewJob,
    is_uuid,
    log_fields,
    log_image,
)
from imagejobd.model.kind import Accepted, JobKind, Upload
from imagejobd.store.protocol import Store

# A burst of uploads waits; only what lasts longer is refused.
SLOT_TIMEOUT_S = 10.0
# What is no larger takes no slot: it needs less memory than its connection, and is written in a moment.
UPLOAD_WITHOUT_SLOT_MAX_BYTES = 32 * KIB
# Row ids are below 2^63.
NUMBER_MAX_CHARS = 18
# Preflights of one kind under way at once, so that callers who name silent registries cannot gather without end: each
# may hold a manifest (4 MiB) twice while it is read.
PREFLIGHTS_MAX = 16
# A thread costs more than to read a spec of a few pages.
PARSED_AT_ONCE_MAX_CHARS = 16 * 1024
# Longer ones that are read at the same time: each takes the loop's turns at the interpreter, and a thread of those that
# write files.
LONG_PARSES_MAX = 2
# JSON bodies of all requests together, while they are in memory.
JSON_TOTAL_MAX_BYTES = 256 * MIB

log = structlog.get_logger("imagejobd.api")


class Server(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[server]`: listeners, the state folder, and bounds on requests."""

    listen: tuple[str, ...] | None = None
    hosts: tuple[str, ...] = ()
    state_dir: str = "/var/lib/imagejobd"
    drain_timeout_s: Seconds = 90.0
    json_max_bytes: Bytes = 32 * MIB
    body_idle_s: Seconds = 60.0
    uploads_max: Count = 8
    upload_timeout_s: Seconds = 3600.0


class QueueBounds(msgspec.Struct, frozen=True):
    """How many jobs may wait, in all and of one tenant, and how many bytes may be kept for a tenant."""

    queue_max: int
    tenant_queue_max: int | None = None
    tenant_stored_max_bytes: int | None = None


class Caller(msgspec.Struct, frozen=True):
    """Who asks. An anonymous caller is tenant `local`; `submitter` is what a token says of the person."""

    tenant: str = LOCAL_TENANT
    client: str = ""
    submitter: Json = {}
    is_admin: bool = False
    is_anonymous: bool = True

    @property
    def sees(self) -> str | None:
        """The tenant whose jobs it may see; None means every tenant's."""
        return None if self.is_admin else self.tenant


ANONYMOUS = Caller()
# Where the application puts who sent a request, before any handler sees it.
CALLER = web.RequestKey("caller", Caller)
NO_TOKEN = "the request carries no token: send Authorization: Bearer <JWT>"  # noqa: S105


async def _unknown_eta(job: Job) -> None:
    return None


class Intake:
    """What the APIs need of the rest of the daemon. `slots` are how many jobs of each kind run at once. `waiting_for`
    says what keeps a queued job from being next, be it a pause, or an engine or a registry that is away;
    `waiting_for_kind` what keeps all of a kind; `eta_s` in how many seconds one probably starts."""

    def __init__(
        self,
        store: Store,
        kinds: Mapping[str, JobKind],
        server: Server,
        *,
        bounds: QueueBounds,
        slots: Mapping[str, int] | None = None,
        waiting_for: Callable[[Job], str | None] = lambda job: None,
        waiting_for_kind: Callable[[str], str | None] = lambda kind: None,
        eta_s: Callable[[Job], Awaitable[float | None]] = _unknown_eta,
    ) -> None:
        self.store = store
        self.kinds = kinds
        self.server = server
        self.is_draining = False
        # Nobody is served any more, but for what was asked already.
        self.is_closing = False
        self.slots = slots or {}
        self.waiting_for = waiting_for
        self.waiting_for_kind = waiting_for_kind
        self.eta_s = eta_s
        self._bounds = bounds
        self._receive_until_s = 0.0
        self._receiving = 0
        self.upload_slots = UploadSlots(server.uploads_max)
        self._preflights = defaultdict[str, asyncio.Semaphore](lambda: asyncio.Semaphore(PREFLIGHTS_MAX))
        self._long_parses = asyncio.Semaphore(LONG_PARSES_MAX)
        self._json_free_bytes = max(JSON_TOTAL_MAX_BYTES, server.json_max_bytes)

    @property
    def queue_max(self) -> int:
        """How many jobs may wait, of all kinds and tenants."""
        return self._bounds.queue_max

    def caller(self, request: web.Request) -> Caller:
        """Who sent the request."""
        return request[CALLER]

    def caller_with_token(self, request: web.Request) -> Caller:
        """Who sent the request, where an anonymous caller is not taken. Raises `Permanent(unauthenticated)`."""
        caller = self.caller(request)
        if caller.is_anonymous:
            raise Permanent(ErrorCode.UNAUTHENTICATED, NO_TOKEN)
        return caller

    async def job_by_uuid(self, request: web.Request, uuid: str, kind: str | None = None) -> Job | None:
        """The job of that UUID, if the caller may see it, and if it is of that kind."""
        tenant = self.caller(request).sees
        job = await self.store.get(uuid.lower(), tenant=tenant) if is_uuid(uuid) else None
        return job if job is not None and kind in (None, job.kind) else None

    async def job_by_number(
        self, request: web.Request, number: str, kind: str | None = None, *, of_any_tenant: bool = False
    ) -> Job | None:
        """As `job_by_uuid`, by the job's row id; `of_any_tenant`: whoever asks may see it."""
        if not (number.isascii() and number.isdecimal() and len(number) <= NUMBER_MAX_CHARS):
            return None
        tenant = None if of_any_tenant else self.caller(request).sees
        job = await self.store.get_by_id(JobId(int(number)), tenant=tenant)
        return job if job is not None and kind in (None, job.kind) else None

    async def job(self, request: web.Request) -> Job:
        """The job that the path names as `id`, by UUID or by number. Raises `NotFound`, also for another tenant's."""
        name = request.match_info["id"]
        job = await self.job_by_uuid(request, name) or await self.job_by_number(request, name)
        if job is None:
            raise NotFound(f"there is no job {name!r}")
        return job

    async def latest_phase(self, job: Job) -> str | None:
        """The phase that a job is in or, between two attempts, was in last."""
        if job.phase is not None or job.state.is_final:
            return job.phase
        phases = await self.store.phases(job.id)
        return phases[-1].name if phases else None

    def drain(self, timeout_s: float) -> None:
        """Say from now on that the daemon stops. Jobs are still accepted, for its next start; who is sending one has
        `timeout_s` to finish."""
        self.is_draining = True
        self._receive_until_s = time.monotonic() + timeout_s

    @contextmanager
    def receiving(self) -> Iterator[None]:
        """While a request that may bring a job in is answered."""
        self._receiving += 1
        try:
            yield
        finally:
            self._receiving -= 1

    @property
    def is_receiving(self) -> bool:
        """Whether there are such requests, and the drain has time for them."""
        return self._receiving > 0 and time.monotonic() < self._receive_until_s

    @asynccontextmanager
    async def uploads(self, caller: Caller) -> AsyncIterator["Uploads"]:
        """What one request of `caller` brings in: held while the block lasts, afterwards only where a job refers to it.

        Raises `Permanent(timeout)` when the block takes longer than a request may.
        """
        uploads = Uploads(self, caller.tenant)
        limit_s = self.server.upload_timeout_s
        clock = asyncio.timeout(limit_s)
        try:
            async with clock:
                yield uploads
        except TimeoutError:
            if not clock.expired():
                raise
            message = f"the request took longer than server.upload_timeout_s = {limit_s:g} s"
            raise Permanent(ErrorCode.TIMEOUT, message) from None
        finally:
            uploads.release()

    def reserve_json(self, size_bytes: int) -> None:
        """Account for bytes of a JSON body, or give them back (negative). Raises `Temporary(queue_full)`."""
        if size_bytes > self._json_free_bytes:
            raise busy("too many large requests are being read")
        self._json_free_bytes -= size_bytes

    async def parse(self, kind: JobKind, spec: Json, upload: Upload | None = None) -> Accepted:
        """As `JobKind.parse`. A long Dockerfile takes tenths of a second to read, which others need not wait for."""
        texts = (*spec.values(), *(upload.fields.values() if upload else ()))
        if sum(len(text) for text in texts if isinstance(text, str)) <= PARSED_AT_ONCE_MAX_CHARS:
            return kind.parse(spec, upload)
        async with self._long_parses:
            return await asyncio.to_thread(kind.parse, spec, upload)

    async def submit(self, job: NewJob, *, with_preflight: bool = True) -> Enqueued:
        """Keep a job durably, unless its kind's preflight knows that it cannot be done (see `JobKind.preflight`).

        With an idempotency key nothing is asked: a repeated request must find its job whatever has changed outside.
        """
        if job.idempotency_key is None and with_preflight:
            await self._preflight(job)
        images = islice(self.kinds[job.kind].images(job), IMAGES_MAX)
        job = msgspec.structs.replace(job, images=tuple(images))
        enqueued = await self.store.enqueue(job, **msgspec.structs.asdict(self._bounds))
        event = "job accepted" if enqueued.is_new else "job asked for again under its idempotency key"
        log.info(event, job=enqueued.uuid, kind=job.kind, **log_fields(job), **log_image(job))
        return enqueued

    async def _preflight(self, job: NewJob) -> None:
        """Ask, unless too many ask already; a kind bounds how long it does. What cannot be known now, or may change, is
        left to the job."""
        preflights = self._preflights[job.kind]
        if preflights.locked():
            return
        async with preflights:
            with suppress(Temporary, TimeoutError):
                await self.kinds[job.kind].preflight(job)


class Uploads:
    """What one request brings in. Made by `Intake.uploads`."""

    def __init__(self, intake: Intake, tenant: str) -> None:
        self._intake = intake
        self._tenant = tenant
        self._slot: ExitStack | None = None
        self._received: list[tuple[JobKind, Upload]] = []
        self._json_bytes = 0

    async def receive(self, kind: JobKind, body: AsyncIterator[bytes], spec: Json) -> Upload:
        """Give `body` to the kind that is to work on it, with what is known of the `spec` by now. Raises
        `Temporary(queue_full)` as `with_slot` does."""
        try:
            upload = await kind.receive(self.with_slot(body), spec)
        finally:
            self._release_slot()
        self._received.append((kind, upload))
        return upload

    async def with_slot(self, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The same bytes; those of an upload that is not small, once this request has a slot.

        For an API that decodes a body before it is received. Raises `Temporary(queue_full)`.
        """
        size_bytes = 0
        async for chunk in body:
            size_bytes += len(chunk)
            if self._slot is None and size_bytes > UPLOAD_WITHOUT_SLOT_MAX_BYTES:
                self._slot = await self._intake.upload_slots.take(self._tenant)
            yield chunk

    def _release_slot(self) -> None:
        if self._slot is not None:
            self._slot.close()
            self._slot = None

    def hold_json(self, size_bytes: int) -> None:
        """Account for a piece of this request's JSON. Raises `Temporary(queue_full)` when there is too much."""
        self._intake.reserve_json(size_bytes)
        self._json_bytes += size_bytes

    def release(self) -> None:
        self._release_slot()
        self._intake.reserve_json(-self._json_bytes)
        self._json_bytes = 0
        for kind, upload in self._received:
            kind.release(upload)
        self._received.clear()


def new_job(kind: str, accepted: Accepted, caller: Caller) -> NewJob:
    return NewJob(
        kind=kind,
        spec=accepted.spec,
        secrets=accepted.secrets,
        blobs=accepted.blobs,
        tenant=caller.tenant,
        client=caller.client,
        submitter=caller.submitter,
    )


class UploadSlots:
    """`most` uploads at a time; one tenant has half of them at most, and always may have one."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._most_each = max(1, most // 2)
        self._all = asyncio.Semaphore(most)
        self._tenants: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def take(self, tenant: str) -> ExitStack:
        """Wait for a slot, which is free again when the stack is closed. Raises `Temporary(queue_full)` when none is
        free soon."""
        of_tenant = self._tenants.setdefault(tenant, asyncio.Semaphore(self._most_each))
        with ExitStack() as slot:
            try:
                async with asyncio.timeout(SLOT_TIMEOUT_S):
                    for semaphore in (of_tenant, self._all):
                        await semaphore.acquire()
                        slot.callback(semaphore.release)
            except TimeoutError:
                shares = f"server.uploads_max = {self._most}, one tenant's share {self._most_each}"
                raise busy(f"too many uploads are under way ({shares})") from None
            return slot.pop_all()
