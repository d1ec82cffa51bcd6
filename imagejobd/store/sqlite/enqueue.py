"""Taking jobs in: a whole run of them in one statement, because this is what the daemon does most at once."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from imagejobd.model.errors import ErrorCode, Permanent, Temporary
from imagejobd.model.job import Enqueued, JobId, NewJob
from imagejobd.store.protocol import EVENT_TOPIC, QUEUE_TOPIC
from imagejobd.store.sqlite.database import load
from imagejobd.store.sqlite.writer import Transaction

QUEUE_FULL_RETRY_AFTER_S = 10.0
# Jobs whose terms are read one by one by whoever looks for a term.
NEW_TERMS_MAX = 256

_SQL = load("enqueue")
_encode = msgspec.json.Encoder().encode
_encode_canonical = msgspec.json.Encoder(order="deterministic").encode


class JobRow(msgspec.Struct, frozen=True):
    """A new job as the statement `insert_jobs` takes it: `submitter`, `spec`, `labels` and `secret_names` are JSON
    text."""

    uuid: str
    kind: str
    tenant: str
    client: str
    submitter: str
    spec: str
    priority: int
    not_before_ms: int | None
    labels: str
    idempotency_key: str | None
    fingerprint: str | None
    has_secret: int
    secret_names: str
    retry_of: str | None


class EnqueueRequest(msgspec.Struct, frozen=True):
    """A request to take a job in, made ready on the caller's side; `blobs` are sizes in bytes by digest, `terms` what
    it is found by."""

    row: JobRow
    blobs: Mapping[str, int]
    terms: Sequence[str]
    sealed: bytes | None
    queue_max: int
    tenant_queue_max: int | None = None
    tenant_stored_max_bytes: int | None = None


# Tenant and idempotency key.
Key = tuple[str, str]


class _Known(msgspec.Struct, frozen=True):
    """The job that an idempotency key has made before."""

    id: JobId
    uuid: str
    fingerprint: str


def enqueue_request(job: NewJob, *, sealed: bytes | None, blobs: Mapping[str, int], **bounds: Any) -> EnqueueRequest:
    """The request for `job`; the other arguments are fields of `EnqueueRequest`."""
    row = JobRow(
        uuid=job.uuid,
        kind=job.kind,
        tenant=job.tenant,
        client=job.client,
        submitter=_encode(job.submitter).decode(),
        spec=_encode(job.spec).decode(),
        priority=job.priority,
        not_before_ms=job.not_before_ms,
        labels=_encode(job.labels).decode(),
        idempotency_key=job.idempotency_key,
        fingerprint=None if job.idempotency_key is None else fingerprint(job),
        has_secret=int(sealed is not None),
        secret_names=_encode(sorted(job.secrets)).decode(),
        retry_of=job.retry_of,
    )
    return EnqueueRequest(row, blobs, _terms(job), sealed, **bounds)


def fingerprint(job: NewJob) -> str:
    """A hash of what a job is to do.

    Without the secrets, which must not be guessable from the database, and without `not_before_ms`, which callers
    reckon from their clock and which so differs when they repeat themselves.
    """
    fields = [job.kind, job.spec, job.labels, job.blobs, job.priority]
    return hashlib.sha256(_encode_canonical(fields)).hexdigest()


def _terms(job: NewJob) -> list[str]:
    """What the job is found by, as migrations/0010_pause.sql has it."""
    images = {f"image={name}" for image in job.images for name in (image.canonical, image.repository_only.canonical)}
    return sorted(images) + sorted({f"submitter={claim}" for claim in job.submitter.values()})


def enqueue(tx: Transaction, requests: Sequence[EnqueueRequest]) -> list[Enqueued | Temporary | Permanent]:
    """Store all that fit and are new. Answers `queue_full`, `storage_full` and `conflict` for those that do not."""
    depth, last_id, first_new_id = tx.db.execute(_SQL["queue_depth"]).fetchone()
    known = _known(tx, requests)
    retries = _retries(tx, requests)
    fresh: list[EnqueueRequest] = []
    answers: list[Enqueued | Temporary | Permanent] = []
    for request in requests:
        key = _key(request)
        if key is not None and key in known:
            answers.append(_repeated(request, known[key]))
        elif (conflict := _retry_conflict(tx, request, retries)) is not None:
            answers.append(conflict)
        elif depth + len(fresh) >= request.queue_max:
            answers.append(_queue_full(request.queue_max))
        elif (refusal := _over_tenant_bounds(tx, request, fresh)) is not None:
            answers.append(refusal)
        else:
            fresh.append(request)
            job_id = JobId(last_id + len(fresh))
            answers.append(Enqueued(job_id, request.row.uuid, is_new=True))
            if key is not None:
                known[key] = _Known(job_id, request.row.uuid, request.row.fingerprint or "")
            if request.row.retry_of is not None:
                retries[request.row.retry_of] = request.row.uuid
    if fresh:
        _insert(tx, fresh, last_id)
        if first_new_id is not None and last_id - first_new_id >= NEW_TERMS_MAX:
            tx.db.execute(_SQL["sort_terms"])
            tx.db.execute(_SQL["forget_new_terms"])
    return answers


def _key(request: EnqueueRequest) -> Key | None:
    key = request.row.idempotency_key
    return None if key is None else (request.row.tenant, key)


def _known(tx: Transaction, requests: Sequence[EnqueueRequest]) -> dict[Key, _Known]:
    pairs = [key for request in requests if (key := _key(request)) is not None]
    if not pairs:
        return {}
    rows = tx.db.execute(_SQL["known_keys"], {"pairs": _encode(pairs).decode()}).fetchall()
    return {(tenant, key): _Known(*job) for tenant, key, *job in rows}


def _repeated(request: EnqueueRequest, earlier: _Known) -> Enqueued | Permanent:
    if earlier.fingerprint == request.row.fingerprint:
        return Enqueued(earlier.id, earlier.uuid, is_new=False)
    return Permanent(
        ErrorCode.CONFLICT,
        f"the idempotency key {request.row.idempotency_key!r} belongs to job {earlier.uuid}, which was asked for "
        "differently: use a new key for a new job",
    )


def _retries(tx: Transaction, requests: Sequence[EnqueueRequest]) -> dict[str, str]:
    """Of the jobs that are to be tried again, those that were already, with the jobs that they were tried again as."""
    uuids = [request.row.retry_of for request in requests if request.row.retry_of is not None]
    if not uuids:
        return {}
    return dict(map(tuple, tx.db.execute(_SQL["retries_of"], {"uuids": _encode(uuids).decode()}).fetchall()))


def _retry_conflict(tx: Transaction, request: EnqueueRequest, retries: Mapping[str, str]) -> Permanent | None:
    """Why a job cannot be tried again: it was already, or its payload has gone since somebody looked."""
    uuid = request.row.retry_of
    if uuid is None:
        return None
    if uuid in retries:
        return Permanent(
            ErrorCode.CONFLICT, f"job {uuid} was tried again already, as job {retries[uuid]}: retry that one"
        )
    if request.blobs.keys() - {digest for (digest,) in tx.db.execute(_SQL["blobs_of"], (uuid,))}:
        return payload_gone(uuid)
    return None


def payload_gone(uuid: str) -> Permanent:
    why = "its payload is no longer kept (retention.payload_days); submit it again"
    return Permanent(ErrorCode.CONFLICT, f"job {uuid} cannot be tried again: {why}")


def _queue_full(queue_max: int, whose: str = "", key: str = "limits.queue_max") -> Temporary:
    return Temporary(
        ErrorCode.QUEUE_FULL,
        f"{queue_max} jobs {whose}are waiting, which is the limit ({key}): try again later",
        retry_after_s=QUEUE_FULL_RETRY_AFTER_S,
    )


def _over_tenant_bounds(tx: Transaction, request: EnqueueRequest, fresh: Sequence[EnqueueRequest]) -> Temporary | None:
    """Why the tenant can have no further job now, beside the `fresh` ones; None where it can."""
    tenant, queue_max, stored_max_bytes = request.row.tenant, request.tenant_queue_max, request.tenant_stored_max_bytes
    others = [other for other in fresh if other.row.tenant == tenant] if queue_max or stored_max_bytes else []
    if queue_max is not None:
        (depth,) = tx.db.execute(_SQL["tenant_depth"], (tenant,)).fetchone()
        if depth + len(others) >= queue_max:
            return _queue_full(queue_max, f"of tenant {tenant!r} ", "limits.per_tenant.queue_max")
    if stored_max_bytes is not None:
        (stored_bytes,) = tx.db.execute(_SQL["tenant_storage"], (tenant,)).fetchone()
        if stored_bytes + sum(sum(one.blobs.values()) for one in (*others, request)) > stored_max_bytes:
            return Temporary(
                ErrorCode.STORAGE_FULL,
                f"the payloads that are kept for tenant {tenant!r} may be {stored_max_bytes} bytes "
                f"(limits.per_tenant.stored_max_bytes) and are {stored_bytes} without this one: "
                "those of ended jobs go after retention.payload_days",
                retry_after_s=QUEUE_FULL_RETRY_AFTER_S,
            )
    return None


def _insert(tx: Transaction, fresh: Sequence[EnqueueRequest], last_id: int) -> None:
    rows = _encode([request.row for request in fresh]).decode()
    tx.db.execute(_SQL["insert_jobs"], {"jobs": rows, "last_id": last_id, "now_ms": tx.now_ms})
    for job_id, request in enumerate(fresh, last_id + 1):
        if request.sealed is not None:
            tx.db.execute(_SQL["insert_secret"], (job_id, request.sealed))
        for digest, size_bytes in request.blobs.items():
            tx.db.execute(_SQL["insert_blob"], (job_id, digest, size_bytes))
    terms = [(number, request.row.tenant, request.terms) for number, request in enumerate(fresh) if request.terms]
    if terms:
        tx.db.execute(_SQL["insert_terms"], {"terms": _encode(terms).decode(), "last_id": last_id})
    tx.publish(QUEUE_TOPIC)
    tx.publish(EVENT_TOPIC)
