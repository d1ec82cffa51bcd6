"""The dispatcher API (`/api/v1/job`, `/images`), wire-compatible with the service it replaces.

Every request but `/ping` carries a JWT, which is looked at before anything else; a caller's tenant has no jobs but its
own. The document's own GET lines carry none: where the operator allows it (`auth.dispatch_reads_anonymous`), who asks
without a token may read a job's status and location, never its payload. A client knows three states, and
`{"code", "details", "error"}` for everything that went wrong.
"""

from contextlib import aclosing
from http import HTTPStatus
from typing import Any, cast

from aiohttp import web

from imagejobd.api.bodies import arrived_body, body_chunks, has_arrived
from imagejobd.api.dispatch_body import ChecksumMismatch, DispatchBody, check_body_size, payload_in
from imagejobd.api.downloads import serve
from imagejobd.api.ignored import note_ignored
from imagejobd.api.intake import Caller, Intake, new_job
from imagejobd.api.wire import exact_json_response, words_of
from imagejobd.jobs.dispatch import INLINE_MAX_BYTES, Content, DispatchKind, inlined
from imagejobd.model.errors import ErrorCode, Fault, NotFound
from imagejobd.model.job import LOCAL_TENANT, Enqueued, Job, State
from imagejobd.model.kind import Upload
from imagejobd.model.text import printable

KIND = "dispatch"

STATUSES = {State.SUCCEEDED: "SUCCESS", State.FAILED: "FAILED", State.CANCELLED: "FAILED"}
RUNNING = "RUNNING"
# `code` and `details` of the document.
NOT_UNDERSTOOD = (1, "can't unmarshal inputMessage message")
WRONG_CHECKSUM = (2, "Error during md5 validation")
DETAILS = {
    ErrorCode.INVALID: NOT_UNDERSTOOD,
    ErrorCode.TOO_LARGE: NOT_UNDERSTOOD,
    ErrorCode.TIMEOUT: NOT_UNDERSTOOD,
    ErrorCode.UNAUTHENTICATED: (2, "JWT is invalid"),
    ErrorCode.NOT_FOUND: (0, "error during getting job"),
}


def routes(intake: Intake, *, reads_anonymous: bool = False) -> list[web.RouteDef]:
    """`reads_anonymous` is `auth.dispatch_reads_anonymous`."""
    api = DispatchApi(intake, reads_anonymous=reads_anonymous)
    return [
        web.post("/api/v1/job", api.dispatch),
        web.get("/api/v1/job/{id}", api.show),
        web.get("/api/v1/job/{id}/status", api.status),
        web.get("/images/{id}", api.image),
        web.get("/ping", ping),
    ]


class DispatchApi:
    def __init__(self, intake: Intake, *, reads_anonymous: bool) -> None:
        self._intake = intake
        self._reads_anonymous = reads_anonymous
        self._kind = cast(DispatchKind, intake.kinds[KIND])

    async def dispatch(self, request: web.Request) -> web.Response:
        """Accept a payload. The answer is sent after payload and job are on disk."""
        caller = self._intake.caller_with_token(request)
        body = DispatchBody(self._kind.payload_max_bytes)
        if _is_small(request):
            payload = body.feed(arrived_body(request))
            body.finish()
            enqueued = await self._enqueue(inlined(payload), body, caller)
        else:
            async with self._intake.uploads(caller) as uploads:
                check_body_size(request.content_length or 0, self._kind.payload_max_bytes)
                arriving = uploads.with_slot(body_chunks(request, self._intake.server))
                async with aclosing(payload_in(arriving, body)) as chunks:
                    upload = await uploads.receive(self._kind, chunks, {})
                enqueued = await self._enqueue(upload, body, caller)
        note_ignored(request, body.ignored())
        return exact_json_response({"id": str(enqueued.id)}, HTTPStatus.CREATED)

    async def _enqueue(self, upload: Upload, body: DispatchBody, caller: Caller) -> Enqueued:
        upload = Upload(upload.fields | {"md5": body.md5}, upload.blobs)
        return await self._intake.submit(new_job(KIND, self._kind.parse({}, upload), caller))

    async def show(self, request: web.Request) -> web.Response:
        job = await self._polled_job(request)
        return exact_json_response(render(job, self._output(job)))

    async def status(self, request: web.Request) -> web.Response:
        return exact_json_response({"status": _status(await self._polled_job(request))})

    async def image(self, request: web.Request) -> web.StreamResponse:
        """What the job has made, once it has succeeded and as long as it is kept."""
        self._intake.caller_with_token(request)
        job = await self._job(request)
        output = self._output(job)
        if output is None:
            raise NotFound(f"no image of job with id: {job.id}: {_absence(job)}")
        return await serve(request, output, name=f"job-{job.id}", idle_s=self._intake.server.body_idle_s)

    def _output(self, job: Job) -> Content | None:
        return self._kind.output(job) if job.state is State.SUCCEEDED else None

    async def _polled_job(self, request: web.Request) -> Job:
        """The job named in the path, for who asks what became of it."""
        if self._reads_anonymous and self._intake.caller(request).is_anonymous:
            return await self._job(request, of_any_tenant=True)
        self._intake.caller_with_token(request)
        return await self._job(request)

    async def _job(self, request: web.Request, *, of_any_tenant: bool = False) -> Job:
        """The job named in the path; another tenant's, or one of another kind, is not found."""
        name = request.match_info["id"]
        job = await self._intake.job_by_number(request, name, KIND, of_any_tenant=of_any_tenant)
        if job is None:
            raise NotFound(f"no job with id: {printable(name)}")
        return job


def _is_small(request: web.Request) -> bool:
    """Whether all of a payload has come with the request's head, and is one for its job's row: it needs no slot."""
    length = request.content_length
    return length is not None and length <= INLINE_MAX_BYTES and has_arrived(request)


async def ping(request: web.Request) -> web.Response:
    return web.Response(text="pong\n")


def render(job: Job, output: Content | None) -> dict[str, Any]:
    """A job in the words of the document, its keys in the document's order."""
    body: dict[str, Any] = {
        "id": str(job.id),
        "tenant_id": _number(job.tenant),
        "client_id": _number(job.client),
    }
    if output is not None:
        body["payload_location"] = f"/images/{job.id}"
    return body | {"status": _status(job)}


def error_response(request: web.Request, fault: Fault, status: HTTPStatus) -> web.Response:
    """How this API says no."""
    if isinstance(fault, ChecksumMismatch):
        code, details = WRONG_CHECKSUM
    elif status is HTTPStatus.METHOD_NOT_ALLOWED:
        code, details = 0, status.phrase
    else:
        code, details = DETAILS.get(fault.code, (0, status.phrase))
    return exact_json_response({"code": code, "details": details, "error": words_of(fault)}, status)


def _status(job: Job) -> str:
    return STATUSES.get(job.state, RUNNING)


def _absence(job: Job) -> str:
    if job.state is State.SUCCEEDED:
        return "it is no longer kept"
    return "the job has not ended" if not job.state.is_final else f"the job has {job.state}"


def _number(name: str) -> int:
    """A tenant or client as a number; who came without a token, for those who may see such jobs, is 0."""
    return 0 if name in ("", LOCAL_TENANT) else int(name)
