"""The run API (`/run`, `/status`), wire-compatible with the service it replaces.

A client sends a Dockerfile as a form and is answered in one line of text; one that asks for JSON gets that. It polls
the status for a 200: until the job has ended the answer is 202, and then one line says how that was.
"""

from http import HTTPStatus
from typing import Any

from aiohttp import hdrs, web

from imagejobd.api.bodies import is_multipart, parts, read_part
from imagejobd.api.ignored import note_ignored
from imagejobd.api.intake import Intake, Uploads, new_job
from imagejobd.api.wire import exact_json_response, words_of
from imagejobd.dockerfile.policy import DOCKERFILE_MAX_BYTES
from imagejobd.model.errors import ErrorCode, Fault, NotFound, Permanent, invalid
from imagejobd.model.job import Job, State
from imagejobd.model.kind import Accepted
from imagejobd.model.text import one_line

KIND = "run"
# Parts that nobody asked for are read past, because forms of browsers have such; but not without end.
PARTS_MAX = 32
OTHER_PARTS_MAX_BYTES = 1024 * 1024
REASON_MAX_CHARS = 1000
ID_MAX_CHARS = 80

FORM_HINT = "send a multipart/form-data body with the Dockerfile as its field named file"


def routes(intake: Intake) -> list[web.RouteDef]:
    api = RunApi(intake)
    return [web.post("/run", api.run), web.get("/status", api.status)]


class RunApi:
    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._kind = intake.kinds[KIND]

    async def run(self, request: web.Request) -> web.Response:
        """Accept a Dockerfile. The answer is sent after the job is on disk."""
        caller = self._intake.caller(request)
        async with self._intake.uploads(caller) as uploads:
            accepted = await self._parsed(await self._dockerfile(request, uploads))
            enqueued = await self._intake.submit(new_job(KIND, accepted, caller))
        if _wants_json(request):
            return exact_json_response({"id": enqueued.uuid})
        return web.Response(text=f"Job was launched with id {enqueued.uuid}")

    async def _dockerfile(self, request: web.Request, uploads: Uploads) -> str:
        """The text of the field `file`, sent as a value or as a file of any name. All others are ignored."""
        if not is_multipart(request):
            raise invalid(f"the request is not multipart; {FORM_HINT}")
        body: bytearray | None = None
        others: list[str] = []
        number = other_bytes = 0
        async for part in parts(request, self._intake.server):
            number += 1
            if number > PARTS_MAX:
                raise invalid(f"the form has more than {PARTS_MAX} parts; {FORM_HINT}")
            if part.name != "file":
                others.append(part.name)
                async for chunk in part.chunks:
                    other_bytes += len(chunk)
                    if other_bytes > OTHER_PARTS_MAX_BYTES:
                        why = f"the form's other fields are larger than {OTHER_PARTS_MAX_BYTES} bytes"
                        raise invalid(f"{why}; {FORM_HINT}")
            elif body is None:
                body = await read_part(part, DOCKERFILE_MAX_BYTES, uploads.hold_json, hint="no Dockerfile needs that")
            else:
                raise invalid("the form has two fields named file; one job takes one Dockerfile")
        note_ignored(request, others)
        return _text(body)

    async def _parsed(self, dockerfile: str) -> Accepted:
        """Raises `Permanent(policy)` also for what cannot be read: to this API a form that holds a bad Dockerfile is a
        good request for what cannot be done."""
        try:
            return await self._intake.parse(self._kind, {"dockerfile": dockerfile})
        except Permanent as fault:
            if fault.code is not ErrorCode.INVALID:
                raise
            raise Permanent(ErrorCode.POLICY, fault.message) from None

    async def status(self, request: web.Request) -> web.Response:
        uuid = request.query.get("id", "")
        if not uuid:
            raise invalid("the request names no job; ask for /status?id=…")
        job = await self._intake.job_by_uuid(request, uuid, KIND)
        if job is None:
            name = one_line(uuid[:ID_MAX_CHARS], ID_MAX_CHARS)
            raise NotFound(f"Job with id {name} was not found")
        word = await self._word(job)
        status = HTTPStatus.OK if job.state.is_final else HTTPStatus.ACCEPTED
        if _wants_json(request):
            return exact_json_response(render(job, word), status)
        return web.Response(text=sentence(job, word), status=status)

    async def _word(self, job: Job) -> str:
        """Where a job is, in one word."""
        match job.state:
            case State.SUCCEEDED:
                return "Successful"
            case State.FAILED | State.CANCELLED:
                return "Failed"
        phase = await self._intake.latest_phase(job)
        if phase is None:
            return "Queued" if job.state is State.QUEUED else "Building"
        return "Building" if phase == "building" else "Running"


def sentence(job: Job, word: str) -> str:
    """A job in the words of the document, which a client takes to pieces."""
    match word:
        case "Successful":
            return f"Job {job.uuid} was Successful - Model performance : {float((job.result or {})['perf']):f}"
        case "Failed":
            return f"Job {job.uuid} was Failed - {one_line(_reason(job), REASON_MAX_CHARS)}"
        case _:
            return f"Job {job.uuid} is {word}"


def render(job: Job, word: str) -> dict[str, Any]:
    """A job as JSON, its keys in the document's order; what it does not have is null."""
    result = job.result or {}
    return {
        "id": job.uuid,
        "status": word,
        "phase": job.phase,
        "perf": result.get("perf"),
        "metrics": result.get("metrics"),
        "error": _reason(job) if word == "Failed" else None,
    }


def error_response(request: web.Request, fault: Fault, status: HTTPStatus) -> web.Response:
    """How this API says no: one line of text, or JSON for a client that asks for it."""
    if _wants_json(request):
        return exact_json_response({"error": words_of(fault)}, status)
    return web.Response(text=one_line(words_of(fault), REASON_MAX_CHARS), status=status)


def _wants_json(request: web.Request) -> bool:
    """Whether a client asks for JSON. One that names text as well, as axios does, gets what the original answered."""
    accept = ",".join(request.headers.getall(hdrs.ACCEPT, [])).lower()
    types = {media_type.partition(";")[0].strip() for media_type in accept.split(",")}
    return "application/json" in types and "text/plain" not in types


def _reason(job: Job) -> str:
    if job.state is State.CANCELLED:
        return "cancelled"
    return job.error.message if job.error else "unknown"


def _text(body: bytearray | None) -> str:
    if body is None:
        raise invalid(f"the form has no field named file; {FORM_HINT}")
    if not body.strip():
        raise invalid("the field file is empty; it is the Dockerfile to run")
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise invalid(f"the Dockerfile is not UTF-8: {error.reason} at byte {error.start}") from None
