"""The native API, `/api/v2`: every kind of job, every option, problem+json errors (RFC 9457)."""

from http import HTTPStatus
from typing import Any

from aiohttp import web

from imagejobd.api.bodies import base64_chunks, is_multipart, parts, read_body, read_part
from imagejobd.api.intake import JOB_MAX_BYTES, Intake, Submission, Uploads, new_job, parse_submission, with_options
from imagejobd.api.wire import iso, json_response, send
from imagejobd.model.errors import ErrorCode, Fault, NotFound, Permanent, invalid
from imagejobd.model.job import Enqueued, Event, Job, JobId, Phase, State, is_uuid
from imagejobd.model.kind import JobKind, Upload
from imagejobd.store.protocol import Filter, job_topic

LIST_PARAMETERS = frozenset({"state", "kind", "tenant", "label", "limit", "cursor"})
PAGE_DEFAULT, PAGE_MAX = 50, 500
EVENTS_MAX = 500
LOG_BLOCKS_MAX = 64
# A follower is told of every commit; this only bounds how late it is noticed that its client has gone.
FOLLOW_POLL_S = 5.0


def routes(intake: Intake) -> list[web.RouteDef]:
    api = NativeApi(intake)
    return [
        web.post("/api/v2/jobs", api.submit),
        web.get("/api/v2/jobs", api.list_jobs),
        web.get("/api/v2/jobs/{id}", api.show),
        web.get("/api/v2/jobs/{id}/log", api.log, allow_head=False),  # aiohttp would send the stream to HEAD too
        web.get("/api/v2/jobs/{id}/events", api.events),
        web.post("/api/v2/jobs/{id}/cancel", api.cancel),
        web.post("/api/v2/jobs/{id}/retry", api.retry),
    ]


class NativeApi:
    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._store = intake.store

    async def submit(self, request: web.Request) -> web.Response:
        """Accept a job: 201 with the job once it is on disk, 200 when its idempotency key had already made it."""
        caller = self._intake.caller(request)
        async with self._intake.uploads(caller) as uploads:
            if is_multipart(request):
                submission, upload = await self._multipart(request, uploads)
            else:
                submission = parse_submission(await read_body(request, self._intake.server, uploads.hold_json))
                upload = await self._context(submission, uploads)
            kind = self._kind(submission)
            accepted = await self._intake.parse(kind, submission.fields(), upload)
            job = new_job(kind.name, accepted, caller)
            enqueued = await self._intake.submit(with_options(job, submission, request.headers.get("Idempotency-Key")))
        return await self._receipt(enqueued)

    async def _receipt(self, enqueued: Enqueued) -> web.Response:
        job = await self._store.get(enqueued.uuid, tenant=None)
        status = HTTPStatus.CREATED if enqueued.is_new else HTTPStatus.OK
        location = {"Location": f"/api/v2/jobs/{enqueued.uuid}"}
        return json_response(self._render(job) if job else {"id": enqueued.uuid}, status, headers=location)

    def _kind(self, submission: Submission) -> JobKind:
        kind = self._intake.kinds.get(submission.kind)
        if kind is None:
            raise invalid(f"unknown kind {submission.kind!r}; this daemon has: {', '.join(self._intake.kinds)}")
        return kind

    async def _context(self, submission: Submission, uploads: Uploads) -> Upload | None:
        if submission.context is None:
            return None
        return await uploads.receive(self._kind(submission), base64_chunks(submission.context, "context"))

    async def list_jobs(self, request: web.Request) -> web.Response:
        """Jobs from new to old, without the long parts of their specs; `next` is the cursor of the following page.

        Only those that the caller may see, whichever `tenant` is asked for.
        """
        query = request.query
        if unknown := sorted(set(query) - LIST_PARAMETERS):
            raise invalid(f"unknown query parameter {unknown[0]!r}; known: {', '.join(sorted(LIST_PARAMETERS))}")
        sees, wanted = self._intake.caller(request).sees, query.get("tenant")
        if sees is not None and wanted not in (None, sees):
            return json_response({"jobs": [], "next": None})
        which = Filter(
            tenant=wanted or sees,
            kind=query.get("kind"),
            state=_state(query.get("state")),
            label=_label(query.get("label")),
        )
        limit = _number("limit", query.get("limit"), PAGE_DEFAULT)
        cursor = _number("cursor", query.get("cursor"), 0) or None
        page = await self._store.list_jobs(which, cursor=cursor, limit=max(1, min(limit, PAGE_MAX)))
        return json_response({"jobs": [self._render(job) for job in page.jobs], "next": page.next_cursor})

    async def show(self, request: web.Request) -> web.Response:
        """One job with its phases; while it is queued also how many jobs go before it."""
        job = await self._job(request)
        body = self._render(job) | {"phases": [_render_phase(phase) for phase in await self._store.phases(job.id)]}
        if job.state is State.QUEUED:
            body["position"] = await self._store.position(job)
        return json_response(body)

    async def events(self, request: web.Request) -> web.Response:
        """The job's history from old to new, `EVENTS_MAX` at most; the last `id` is the next request's `after`."""
        job = await self._job(request)
        after = _number("after", request.query.get("after"), 0)
        events = await self._store.changes_since(after, job_id=job.id, limit=EVENTS_MAX)
        return json_response([_render_event(event) for event in events])

    async def cancel(self, request: web.Request) -> web.Response:
        """Cancel: 200 when it is already cancelled, 202 while the running work is being stopped, 409 when ended."""
        job = await self._job(request)
        state = await self._store.request_cancel(job.uuid, tenant=job.tenant)
        if state is None:
            raise _unknown(job.uuid)
        if state in (State.SUCCEEDED, State.FAILED):
            raise Permanent(ErrorCode.CONFLICT, f"the job has already {state}; there is nothing to cancel")
        status = HTTPStatus.OK if state is State.CANCELLED else HTTPStatus.ACCEPTED
        return json_response({"id": job.uuid, "state": state}, status)

    async def retry(self, request: web.Request) -> web.Response:
        """Ask once more for what a job that failed or was cancelled should have done: 201 with the new job.

        409 for a job that has not ended, that succeeded, or whose passwords were deleted when it ended.
        """
        job = await self._job(request)
        if job.state not in (State.FAILED, State.CANCELLED):
            raise Permanent(
                ErrorCode.CONFLICT, f"the job is {job.state}; only a failed or cancelled one is tried again"
            )
        enqueued = await self._intake.submit(await self._store.repeat(job))
        return await self._receipt(enqueued)

    def _render(self, job: Job) -> dict[str, Any]:
        return render(job) | {"waiting_for": self._intake.waiting_for(job)}

    async def log(self, request: web.Request) -> web.StreamResponse:
        """The job's log as text; with `follow=1` it goes on until the job ends or nobody listens any more."""
        job = await self._job(request)
        follow = request.query.get("follow", "0") not in ("0", "false", "")
        response = web.StreamResponse(headers={"Content-Type": "text/plain; charset=utf-8", "X-Accel-Buffering": "no"})
        await response.prepare(request)
        offset = 0
        with self._store.watch(job_topic(job.id)) as job_watch:
            while True:
                # Asked before the log is read: what a job writes, it writes before it ends.
                latest = await self._store.get(job.uuid, tenant=None) if follow else None
                offset = await self._write_log(response, job.id, offset)
                if latest is None or latest.state.is_final or _has_gone(request):
                    break
                await job_watch.changed(FOLLOW_POLL_S)
        await response.write_eof()
        return response

    async def _write_log(self, response: web.StreamResponse, job_id: JobId, offset: int) -> int:
        while blocks := await self._store.read_log(job_id, from_offset=offset, max_blocks=LOG_BLOCKS_MAX):
            data = "".join(block.text for block in blocks).encode()
            await send(response, data, idle_s=self._intake.server.body_idle_s)
            offset += len(data)
        return offset

    async def _job(self, request: web.Request) -> Job:
        """The job named in the path, by UUID or by number; another tenant's is not found."""
        name = request.match_info["id"]
        tenant = self._intake.caller(request).sees
        job = None
        if is_uuid(name):
            job = await self._store.get(name.lower(), tenant=tenant)
        elif name.isascii() and name.isdecimal() and len(name) < 19:
            job = await self._store.get_by_id(JobId(int(name)), tenant=tenant)
        if job is None:
            raise _unknown(name)
        return job

    async def _multipart(self, request: web.Request, uploads: Uploads) -> tuple[Submission, Upload | None]:
        """A `job` part (the JSON) followed by a `context` part (the tar)."""
        submission: Submission | None = None
        upload: Upload | None = None
        async for part in parts(request, self._intake.server):
            if part.name == "job" and submission is None:
                submission = parse_submission(await read_part(part, JOB_MAX_BYTES, uploads.hold_json))
                upload = await self._context(submission, uploads)
            elif part.name == "context" and submission is not None and upload is None:
                upload = await uploads.receive(self._kind(submission), part.chunks())
            else:
                raise invalid("a multipart request has a part named job (JSON) and then one named context (tar)")
        if submission is None:
            raise invalid("the multipart part named job (JSON) is missing")
        return submission, upload


def error_response(request: web.Request, fault: Fault, status: HTTPStatus) -> web.Response:
    """A problem document; `code` is the stable, machine-readable part."""
    problem = {"title": status.phrase, "status": int(status), "code": fault.code, "detail": fault.message}
    response = json_response(problem, status)
    response.content_type = "application/problem+json"
    return response


def render(job: Job) -> dict[str, Any]:
    """A job as the native API shows it: times in ISO 8601, absent things null."""
    return {
        "id": job.uuid,
        "number": job.id,
        "kind": job.kind,
        "state": job.state,
        "phase": job.phase,
        "tenant": job.tenant,
        "client": job.client,
        "submitter": job.submitter,
        "spec": job.spec,
        "progress": job.progress,
        "result": job.result,
        "error": job.error,
        "attempt": job.attempt,
        "crashes": job.crashes,
        "faults": job.faults,
        "retry_of": job.retry_of,
        "priority": job.priority,
        "labels": job.labels,
        "idempotency_key": job.idempotency_key,
        "log_bytes": job.log_bytes,
        "not_before": iso(job.not_before_ms),
        "cancel_requested_at": iso(job.cancel_requested_ms),
        "created_at": iso(job.created_ms),
        "started_at": iso(job.started_ms),
        "finished_at": iso(job.finished_ms),
    }


def _render_phase(phase: Phase) -> dict[str, Any]:
    return {
        "name": phase.name,
        "attempt": phase.attempt,
        "started_at": iso(phase.started_ms),
        "finished_at": iso(phase.finished_ms),
    }


def _render_event(event: Event) -> dict[str, Any]:
    return {"id": event.id, "at": iso(event.at_ms), "type": event.type, "data": event.data}


def _unknown(name: str) -> Permanent:
    return NotFound(f"there is no job {name!r}")


def _has_gone(request: web.Request) -> bool:
    """Whether the client has closed the connection; nothing tells a handler that only waits."""
    return request.transport is None or request.transport.is_closing()


def _state(text: str | None) -> State | None:
    try:
        return State(text) if text else None
    except ValueError:
        raise invalid(f"state {text!r} is not one of {', '.join(State)}") from None


def _label(text: str | None) -> tuple[str, str] | None:
    if not text:
        return None
    name, equals, value = text.partition("=")
    if not equals:
        raise invalid("label must be written name=value")
    return name, value


def _number(name: str, text: str | None, default: int) -> int:
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise invalid(f"{name} must be a whole number")
    return int(text)
