"""Turns at taking in uploads: a bound on what is written at once, of which no tenant can have all for itself.

What `POST /api/v2/jobs` is given: the frame around a spec. The spec itself is its kind's to check.

The door that every API's submissions pass: callers named, uploads held while a request lasts, jobs kept durably.

Nothing is acknowledged here that is not committed. Bytes that turn out to belong to no job are left to the content
store's collection.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from datetime import datetime
from weakref import WeakValueDictionary

import msgspec
import structlog
from aiohttp import web

from imagejobd.api.settings import Server
from imagejobd.api.wire import busy, iso, too_large
from imagejobd.model.bounds import KIB, MIB
from imagejobd.model.errors import ErrorCode, Permanent, Temporary, invalid
from imagejobd.model.job import (
    IDEMPOTENCY_KEY_MAX_CHARS,
    LABEL_MAX_CHARS,
    LABELS_MAX,
    LOCAL_TENANT,
    PRIORITY_MAX,
    PRIORITY_MIN,
    Enqueued,
    Job,
    Json,
    NewJob,
    log_fields,
    log_image,
)
from imagejobd.model.kind import Accepted, JobKind, Upload
from imagejobd.store.protocol import Store

# A burst of uploads waits its turn; only what lasts longer is refused.
TURN_TIMEOUT_S = 10.0


class UploadSlots:
    """`most` turns; one tenant holds half of them at most, and always may hold one."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._most_each = max(1, most // 2)
        self._all = asyncio.Semaphore(most)
        self._tenants: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def take(self, tenant: str) -> ExitStack:
        """Wait for a turn, which ends when what is returned is closed. Raises `Temporary(queue_full)` when none comes
        soon."""
        own = self._tenants.setdefault(tenant, asyncio.Semaphore(self._most_each))
        with ExitStack() as held:
            try:
                async with asyncio.timeout(TURN_TIMEOUT_S):
                    for turns in (own, self._all):
                        await turns.acquire()
                        held.callback(turns.release)
            except TimeoutError:
                shares = f"server.uploads_max = {self._most}, one tenant's share {self._most_each}"
                raise busy(f"too many uploads are under way ({shares})") from None
            return held.pop_all()


# A job without the tar that may come with it.
JOB_MAX_BYTES = 2 * 1024 * 1024
# Between the values of a spec: small ones take time and memory by their number.
COMMAS_MAX = 100_000
# 3000-01-01. Far beyond any use, and well within what dates can show in every time zone.
NOT_BEFORE_MAX_MS = 32_503_680_000_000


class Submission(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /api/v2/jobs`. `context` is a tar in base64; a multipart part of that name does the same."""

    kind: str
    spec: msgspec.Raw
    context: str | None = None
    priority: int = 0
    not_before: datetime | None = None
    labels: dict[str, str] = {}

    def fields(self) -> Json:
        """`spec`, decoded only within a bound: a document of many small values takes many times its size in memory."""
        if len(self.spec) > JOB_MAX_BYTES:
            raise too_large("spec", JOB_MAX_BYTES, "send files as the context of the request")
        if bytes(self.spec).count(b",") > COMMAS_MAX:
            raise Permanent(ErrorCode.TOO_LARGE, f"spec has more than {COMMAS_MAX} commas; no job needs that")
        try:
            return msgspec.json.decode(self.spec, type=Json)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise invalid(f"spec is not valid: {error}") from None


def parse_submission(body: bytearray) -> Submission:
    """Decode the JSON. Raises `Permanent(invalid)` that names the field."""
    try:
        return msgspec.json.decode(body, type=Submission)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(f"the job is not valid: {error}") from None


def with_options(job: NewJob, submission: Submission, idempotency_key: str | None) -> NewJob:
    """`job` with what the submission says besides its spec."""
    if not PRIORITY_MIN <= submission.priority <= PRIORITY_MAX:
        raise invalid(f"priority must be between {PRIORITY_MIN} and {PRIORITY_MAX}")
    _check_labels(submission.labels)
    _check_key(idempotency_key)
    return msgspec.structs.replace(
        job,
        priority=submission.priority,
        not_before_ms=_epoch_ms(submission.not_before),
        labels=submission.labels,
        idempotency_key=idempotency_key,
    )


def _check_key(key: str | None) -> None:
    if key is not None and not (0 < len(key) <= IDEMPOTENCY_KEY_MAX_CHARS and key.isascii() and key.isprintable()):
        raise invalid(f"Idempotency-Key must be 1 to {IDEMPOTENCY_KEY_MAX_CHARS} printable ASCII characters")


def _check_labels(labels: dict[str, str]) -> None:
    if len(labels) > LABELS_MAX:
        raise invalid(f"a job may have at most {LABELS_MAX} labels")
    for name, value in labels.items():
        if (
            not 0 < len(name) <= LABEL_MAX_CHARS
            or len(value) > LABEL_MAX_CHARS
            or "=" in name
            or not (name + value).isprintable()
        ):
            limits = f"names (without '=') and values are printable and have at most {LABEL_MAX_CHARS} characters"
            raise invalid(f"label {name[:LABEL_MAX_CHARS]!r}: {limits}")


def _epoch_ms(at: datetime | None) -> int | None:
    if at is None:
        return None
    if at.tzinfo is None:
        raise invalid("not_before must carry a time zone, for example 2030-01-31T06:00:00Z")
    at_ms = int(at.timestamp() * 1000)
    if not 0 <= at_ms <= NOT_BEFORE_MAX_MS:
        raise invalid(f"not_before must lie between {iso(0)} and {iso(NOT_BEFORE_MAX_MS)}")
    return at_ms


# What is no larger takes no turn: it needs less memory than its connection, and is written in a moment.
UPLOAD_WITHOUT_TURN_MAX_BYTES = 32 * KIB
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
# Where the application leaves whom it found a request to come from, before any handler sees it.
CALLER = web.RequestKey("caller", Caller)
NO_TOKEN = "the request carries no token: send Authorization: Bearer <JWT>"  # noqa: S105

log = structlog.get_logger("imagejobd.api")


class QueueBounds(msgspec.Struct, frozen=True):
    """How many jobs may wait, in all and of one tenant, and how many bytes may be kept for a tenant."""

    queue_max: int
    tenant_queue_max: int | None = None
    tenant_stored_max_bytes: int | None = None


class Intake:
    """What the API modules need of the rest of the daemon. `waiting_for` says what a queued job waits for that is not
    its turn."""

    def __init__(
        self,
        store: Store,
        kinds: Mapping[str, JobKind],
        server: Server,
        *,
        bounds: QueueBounds,
        waiting_for: Callable[[Job], str | None] = lambda job: None,
    ) -> None:
        self.store = store
        self.kinds = kinds
        self.server = server
        self.is_draining = False
        self.waiting_for = waiting_for
        self._bounds = bounds
        self._receive_until_s = 0.0
        self._receiving = 0
        self.upload_turns = UploadSlots(server.uploads_max)
        self._preflights = dict.fromkeys(kinds, 0)
        self._long_parses = asyncio.Semaphore(LONG_PARSES_MAX)
        self._json_room_bytes = max(JSON_TOTAL_MAX_BYTES, server.json_max_bytes)

    def caller(self, request: web.Request) -> Caller:
        """Who sent the request."""
        return request[CALLER]

    def identified(self, request: web.Request) -> Caller:
        """Who sent the request, where an anonymous caller is not taken. Raises `Permanent(unauthenticated)`."""
        caller = self.caller(request)
        if caller.is_anonymous:
            raise Permanent(ErrorCode.UNAUTHENTICATED, NO_TOKEN)
        return caller

    def drain(self, timeout_s: float) -> None:
        """Say from now on that the daemon stops. Jobs are taken all the same, for its next life; who is sending one has
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

    def take_json_room(self, size_bytes: int) -> None:
        """Account for bytes of a JSON body, or give them back (negative). Raises `Temporary(queue_full)`."""
        if size_bytes > self._json_room_bytes:
            raise busy("too many large requests are being read")
        self._json_room_bytes -= size_bytes

    async def parse(self, kind: JobKind, spec: Json, upload: Upload | None = None) -> Accepted:
        """As `Kind.parse`. A long Dockerfile takes tenths of a second to read, which others need not wait for."""
        texts = (*spec.values(), *(upload.fields.values() if upload else ()))
        if sum(len(text) for text in texts if isinstance(text, str)) <= PARSED_AT_ONCE_MAX_CHARS:
            return kind.parse(spec, upload)
        async with self._long_parses:
            return await asyncio.to_thread(kind.parse, spec, upload)

    async def submit(self, job: NewJob) -> Enqueued:
        """Keep a job durably, unless its kind's preflight knows that it cannot be done (see `Kind.preflight`).

        With an idempotency key nothing is asked: a repeated request must find its job whatever has changed outside.
        """
        if job.idempotency_key is None:
            await self._preflight(job)
        bounds = self._bounds
        enqueued = await self.store.enqueue(
            job,
            queue_max=bounds.queue_max,
            tenant_queue_max=bounds.tenant_queue_max,
            tenant_stored_max_bytes=bounds.tenant_stored_max_bytes,
        )
        event = "job accepted" if enqueued.is_new else "job asked for again under its idempotency key"
        log.info(event, job=enqueued.uuid, kind=job.kind, **log_fields(job), **log_image(job))
        return enqueued

    async def _preflight(self, job: NewJob) -> None:
        """Ask, where it is not too many who ask already; a kind bounds how long it does. What it could not be told, or
        what may change, is left to the job."""
        if self._preflights[job.kind] >= PREFLIGHTS_MAX:
            return
        self._preflights[job.kind] += 1
        try:
            await self.kinds[job.kind].preflight(job)
        except (Temporary, TimeoutError):
            pass
        finally:
            self._preflights[job.kind] -= 1


class Uploads:
    """The files of one request. Made by `Door.uploads`."""

    def __init__(self, intake: Intake, tenant: str) -> None:
        self._intake = intake
        self._tenant = tenant
        self._turn: ExitStack | None = None
        self._received: list[tuple[JobKind, Upload]] = []
        self._json_bytes = 0

    async def receive(self, kind: JobKind, body: AsyncIterator[bytes]) -> Upload:
        """Give `body` to the kind that is to work on it. Raises `Temporary(queue_full)` as `in_turn` does."""
        try:
            upload = await kind.receive(self.in_turn(body))
        finally:
            self._end_turn()
        self._received.append((kind, upload))
        return upload

    async def in_turn(self, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The same bytes; those of an upload that is not small, once it is this request's turn.

        For who turns a body into another one before it is received. Raises `Temporary(queue_full)`.
        """
        size_bytes = 0
        async for chunk in body:
            size_bytes += len(chunk)
            if self._turn is None and size_bytes > UPLOAD_WITHOUT_TURN_MAX_BYTES:
                self._turn = await self._intake.upload_turns.take(self._tenant)
            yield chunk

    def _end_turn(self) -> None:
        if self._turn is not None:
            self._turn.close()
            self._turn = None

    def hold_json(self, size_bytes: int) -> None:
        """Account for a piece of this request's JSON. Raises `Temporary(queue_full)` when there is too much."""
        self._intake.take_json_room(size_bytes)
        self._json_bytes += size_bytes

    def release(self) -> None:
        self._end_turn()
        self._intake.take_json_room(-self._json_bytes)
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
