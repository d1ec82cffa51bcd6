"""The native API, `/api/v2`: every kind of job, every option, problem+json errors (RFC 9457)."""

from datetime import datetime
from http import HTTPStatus
from typing import Any

import msgspec
from aiohttp import web

from imagejobd.api import retry
from imagejobd.api.bodies import base64_chunks, is_multipart, parts, read_body, read_part
from imagejobd.api.intake import Intake, Uploads, new_job
from imagejobd.api.listing import FILTER_PARAMETERS, TIME_HINT, epoch_ms, read_filter, read_kind
from imagejobd.api.streams import Streams
from imagejobd.api.webhook import WebhookRequest, submit_with_webhook
from imagejobd.api.wire import NOT_JSON, iso, json_response, number, parameters, too_large, words_of
from imagejobd.model.clock import now_ms
from imagejobd.model.errors import ErrorCode, Fault, NotFound, Permanent, invalid
from imagejobd.model.job import (
    IDEMPOTENCY_KEY_MAX_CHARS,
    PRIORITY_MAX,
    PRIORITY_MIN,
    Enqueued,
    Job,
    Json,
    NewJob,
    State,
    check_labels,
)
from imagejobd.model.kind import JobKind, Upload

LIST_PARAMETERS = (*FILTER_PARAMETERS, "limit", "cursor")
PAGE_DEFAULT, PAGE_MAX = 50, 500
# How long a request may wait for a job's end. Proxies give up after a minute or so, and clients know their own.
WAIT_MAX_S = 600
# A job without the tar that may come with it.
JOB_MAX_BYTES = 2 * 1024 * 1024
# Between the values of a spec: small ones take time and memory by their number.
COMMAS_MAX = 100_000
RENDERED = (
    *("kind", "state", "phase", "tenant", "client", "submitter", "spec", "progress", "result", "error", "attempt"),
    *("crashes", "faults", "retry_of", "secret_names", "priority", "labels", "idempotency_key", "log_bytes"),
)


def routes(intake: Intake, streams: Streams) -> list[web.RouteDef]:
    api = NativeApi(intake, streams)
    return [
        web.post("/api/v2/jobs", api.submit),
        web.get("/api/v2/jobs", api.list_jobs),
        web.get("/api/v2/jobs/{id}", api.show),
        web.post("/api/v2/jobs/{id}/cancel", api.cancel),
        web.post("/api/v2/jobs/{id}/retry", api.retry),
        web.post("/api/v2/jobs/retry", api.retry_many),
    ]


class Submission(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /api/v2/jobs`. `context` is a tar in base64; a multipart part of that name does the same."""

    kind: str
    spec: msgspec.Raw
    context: str | None = None
    priority: int = 0
    not_before: datetime | None = None
    labels: dict[str, str] = {}
    webhook: WebhookRequest | None = None

    def fields(self) -> Json:
        """`spec`, decoded only within a bound: a document of many small values takes many times its size in memory."""
        if len(self.spec) > JOB_MAX_BYTES:
            raise too_large("spec", JOB_MAX_BYTES, "send files as the context of the request")
        if bytes(self.spec).count(b",") > COMMAS_MAX:
            raise Permanent(ErrorCode.TOO_LARGE, f"spec has more than {COMMAS_MAX} commas; no job needs that")
        try:
            return msgspec.json.decode(self.spec, type=Json)
        except NOT_JSON as error:
            raise invalid(f"spec is not valid: {error}") from None


class NativeApi:
    def __init__(self, intake: Intake, streams: Streams) -> None:
        self._intake = intake
        self._store = intake.store
        self._streams = streams

    async def submit(self, request: web.Request) -> web.Response:
        """Accept a job: 201 with the job once it is on disk, 200 when its idempotency key had already made it."""
        parameters(request)
        caller = self._intake.caller(request)
        async with self._intake.uploads(caller) as uploads:
            if is_multipart(request):
                submission, upload = await self._multipart(request, uploads)
            else:
                submission = _parse(await read_body(request, self._intake.server, uploads.hold_json))
                upload = await self._context(submission, uploads)
            kind = self._kind(submission)
            accepted = await self._intake.parse(kind, submission.fields(), upload)
            job = new_job(kind.name, accepted, caller)
            job = _with_options(job, submission, request.headers.get("Idempotency-Key"))
            enqueued = await submit_with_webhook(self._intake, job, submission.webhook)
        return await self._receipt(enqueued)

    async def _receipt(self, enqueued: Enqueued) -> web.Response:
        job = await self._store.get(enqueued.uuid, tenant=None)
        status = HTTPStatus.CREATED if enqueued.is_new else HTTPStatus.OK
        location = {"Location": f"/api/v2/jobs/{enqueued.uuid}"}
        return json_response(self._render(job) if job else {"id": enqueued.uuid}, status, headers=location)

    def _kind(self, submission: Submission) -> JobKind:
        return self._intake.kinds[read_kind(submission.kind, self._intake.kinds)]

    async def _context(self, submission: Submission, uploads: Uploads) -> Upload | None:
        if submission.context is None:
            return None
        chunks = base64_chunks(submission.context, "context")
        return await uploads.receive(self._kind(submission), chunks, submission.fields())

    async def list_jobs(self, request: web.Request) -> web.Response:
        """Jobs from new to old, without the long parts of their specs; `next` is the cursor of the following page, null
        at the end. A page may be short, or empty, although there is another one.

        Only those that the caller may see, whichever `tenant` is asked for.
        """
        query = parameters(request, *LIST_PARAMETERS)
        which = read_filter(query, self._intake.kinds, self._intake.caller(request))
        limit = number("limit", query.get("limit"), PAGE_DEFAULT)
        cursor = number("cursor", query.get("cursor"), 0) or None
        if which is None:
            return json_response({"jobs": [], "next": None})
        page = await self._store.list_jobs(which, cursor=cursor, limit=max(1, min(limit, PAGE_MAX)))
        return json_response({"jobs": [self._render(job) for job in page.jobs], "next": page.next_cursor})

    async def show(self, request: web.Request) -> web.Response:
        """One job with its phases; while it is queued also how many of its tenant's jobs go before it, unless it waits
        for a time (`not_before`) and has no place among them, and in how many seconds it probably starts. With `wait`
        the answer comes when it has ended, or after so many seconds."""
        job = await self._intake.job(request)
        wait_s = number("wait", parameters(request, "wait").get("wait"), 0)
        if wait_s > WAIT_MAX_S:
            raise invalid(f"wait may be {WAIT_MAX_S} seconds at most; ask again after that")
        if wait_s > 0:
            job = await self._streams.ended(request, job, wait_s)
        phases = [
            {
                "name": phase.name,
                "attempt": phase.attempt,
                "started_at": iso(phase.started_ms),
                "finished_at": iso(phase.finished_ms),
            }
            for phase in await self._store.phases(job.id)
        ]
        body = self._render(job) | {"phases": phases}
        if job.state is State.QUEUED:
            is_delayed = job.not_before_ms is not None and job.not_before_ms > now_ms()
            body["position"] = None if is_delayed else await self._store.position(job)
            body["eta_seconds"] = await self._intake.eta_s(job)
        return json_response(body)

    async def cancel(self, request: web.Request) -> web.Response:
        """Cancel: 200 when it is already cancelled, 202 while the running work is being stopped, 409 when ended."""
        parameters(request)
        job = await self._intake.job(request)
        state = await self._store.request_cancel(job.uuid, tenant=job.tenant)
        if state is None:
            raise NotFound(f"there is no job {job.uuid!r}")
        if state in (State.SUCCEEDED, State.FAILED):
            raise Permanent(ErrorCode.CONFLICT, f"the job has already {state}; there is nothing to cancel")
        status = HTTPStatus.OK if state is State.CANCELLED else HTTPStatus.ACCEPTED
        return json_response({"id": job.uuid, "state": state}, status)

    async def retry(self, request: web.Request) -> web.Response:
        """Ask once more for what a job that failed or was cancelled should have done: 201 with the new job.

        409 for a job that has not ended, that succeeded, that was tried again already, or whose secrets were deleted
        when it ended: the body may have them (`RetryRequest`).
        """
        parameters(request)
        job = await self._intake.job(request)
        async with self._intake.uploads(self._intake.caller(request)) as uploads:
            body = await read_body(request, self._intake.server, uploads.hold_json)
            enqueued = await retry.retry(self._intake, job, retry.parse(body, retry.RetryRequest).secrets)
        return await self._receipt(enqueued)

    async def retry_many(self, request: web.Request) -> web.Response:
        """Try many jobs again, by a filter (`RetryManyRequest`): 200 with those that were, those that could not be and
        why, and a cursor where there are more."""
        parameters(request)
        caller = self._intake.caller(request)
        async with self._intake.uploads(caller) as uploads:
            body = await read_body(request, self._intake.server, uploads.hold_json)
        return json_response(await retry.retry_many(self._intake, retry.parse(body, retry.RetryManyRequest), caller))

    def _render(self, job: Job) -> dict[str, Any]:
        return render(job) | {"waiting_for": self._intake.waiting_for(job)}

    async def _multipart(self, request: web.Request, uploads: Uploads) -> tuple[Submission, Upload | None]:
        """A `job` part (the JSON) followed by a `context` part (the tar)."""
        submission: Submission | None = None
        upload: Upload | None = None
        async for part in parts(request, self._intake.server):
            if part.name == "job" and submission is None:
                submission = _parse(await read_part(part, JOB_MAX_BYTES, uploads.hold_json))
                upload = await self._context(submission, uploads)
            elif part.name == "context" and submission is not None and upload is None:
                upload = await uploads.receive(self._kind(submission), part.chunks, submission.fields())
            else:
                raise invalid("a multipart request has a part named job (JSON) and then one named context (tar)")
        if submission is None:
            raise invalid("the multipart part named job (JSON) is missing")
        return submission, upload


def error_response(request: web.Request, fault: Fault, status: HTTPStatus) -> web.Response:
    """A problem document; `code` is the stable, machine-readable part."""
    problem = {"title": status.phrase, "status": int(status), "code": fault.code, "detail": words_of(fault)}
    response = json_response(problem, status)
    response.content_type = "application/problem+json"
    return response


def render(job: Job) -> dict[str, Any]:
    """A job as the native API shows it: times in ISO 8601, absent things null."""
    fields = {name: getattr(job, name) for name in RENDERED}
    times = {
        "not_before": iso(job.not_before_ms),
        "cancel_requested_at": iso(job.cancel_requested_ms),
        "created_at": iso(job.created_ms),
        "started_at": iso(job.started_ms),
        "finished_at": iso(job.finished_ms),
    }
    progress = job.progress | {"percent": _percent(job)}
    return {"id": job.uuid, "number": job.id, **fields, "progress": progress, **times}


def _percent(job: Job) -> int | None:
    """How much of the phase is done that a job is in, or failed in; None where nobody knows."""
    if job.state is State.SUCCEEDED:
        return 100
    return None if job.state is State.QUEUED else job.progress.get("percent")


def _parse(body: bytearray) -> Submission:
    """Decode the JSON. Raises `Permanent(invalid)` that names the field."""
    if not body.strip():
        raise invalid('the request body is empty; it is the job as JSON: {"kind": …, "spec": {…}}')
    try:
        return msgspec.json.decode(body, type=Submission)
    except NOT_JSON as error:
        hint = f"; {TIME_HINT}" if "`$.not_before`" in str(error) else ""
        raise invalid(f"the job is not valid: {error}{hint}") from None


def _with_options(job: NewJob, submission: Submission, key: str | None) -> NewJob:
    """`job` with what the submission says besides its spec, and its idempotency key."""
    if not PRIORITY_MIN <= submission.priority <= PRIORITY_MAX:
        raise invalid(f"priority must be between {PRIORITY_MIN} and {PRIORITY_MAX}")
    check_labels(submission.labels)
    if key is not None and not (0 < len(key) <= IDEMPOTENCY_KEY_MAX_CHARS and key.isascii() and key.isprintable()):
        raise invalid(f"Idempotency-Key must be 1 to {IDEMPOTENCY_KEY_MAX_CHARS} printable ASCII characters")
    return msgspec.structs.replace(
        job,
        priority=submission.priority,
        not_before_ms=None if submission.not_before is None else epoch_ms("not_before", submission.not_before),
        labels=submission.labels,
        idempotency_key=key,
    )
