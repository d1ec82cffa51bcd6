"""The distribute API (`/api/distribute/image`), wire-compatible with the service it replaces.

A client knows the registries of a job by the endpoints it sent, four states, and `{"msg", "status"}` for everything
that went wrong. The document has two statuses for a request that is refused: 404 when the source says that the image
is not there, 400 for all else that the request itself is to blame for.

A request has the document's fields and no others; what they may hold is for the kind to check. The original's errors
were what its schema library (marshmallow) printed, Python dictionaries that lead to the field. They have that form
here, and that library's words for a field that is missing or unknown.
"""

import re
from collections.abc import Collection, Iterable
from http import HTTPStatus
from typing import Any

import msgspec
from aiohttp import web

from imagejobd.api.bodies import read_body
from imagejobd.api.intake import Caller, Intake, new_job
from imagejobd.api.wire import NOT_JSON, iso, json_response
from imagejobd.jobs.distribute.fields import FieldFault, Problem, convert, items, parse_endpoint, read_fields, wrong
from imagejobd.jobs.distribute.spec import TARGETS_MAX
from imagejobd.jobs.distribute.table import endpoints
from imagejobd.model.errors import ErrorCode, Fault, NotFound, Permanent, invalid
from imagejobd.model.job import Job, Json, Push, State
from imagejobd.model.kind import Accepted

KIND = "distribute"
REQUEST_MAX_BYTES = 1024 * 1024
REQUEST_HINT = "it holds only endpoints and logins"
WORDS_MAX_CHARS = 1000

STARTED = "Image sync started"
NO_IMAGE = "Image not found"
UNKNOWN_JOB = "job with id not found"

# What keeps a request from being read at all has statuses of its own (413, 408).
NOT_READ = frozenset({ErrorCode.TOO_LARGE, ErrorCode.TIMEOUT})
VALUES = {State.SUCCEEDED: "FINISHED", State.FAILED: "FAILED", State.CANCELLED: "FAILED"}

_decode = msgspec.json.Decoder().decode
# `targets[2]` and `auth` of `source.auth.url`.
_STEP = re.compile(r"([^.\[\]]+)(?:\[([0-9]{1,6})\])?", re.DOTALL)


def routes(intake: Intake, registries: Collection[str]) -> list[web.RouteDef]:
    """`registries` are the hosts that the operator has configured, as the configuration names them."""
    api = DistributeApi(intake, registries)
    return [
        web.post("/api/distribute/image", api.distribute),
        web.get("/api/distribute/image/{id}", api.status),
    ]


class DistributeApi:
    def __init__(self, intake: Intake, registries: Collection[str]) -> None:
        self._intake = intake
        self._kind = intake.kinds[KIND]
        self._configured = configured_hosts(registries)

    async def distribute(self, request: web.Request) -> web.Response:
        """Accept a distribution. The answer is sent after the job is on disk."""
        caller = self._intake.caller(request)
        job = new_job(KIND, await self._accepted(request, caller), caller)
        try:
            enqueued = await self._intake.submit(job)
        except Permanent as fault:
            raise (NotFound(NO_IMAGE) if fault.code is ErrorCode.NOT_FOUND else invalid(fault.message)) from None
        answer = {"id": enqueued.uuid, "msg": STARTED, "status": "success"}
        return json_response(answer, HTTPStatus.CREATED)

    async def status(self, request: web.Request) -> web.Response:
        job = await self._intake.job_by_uuid(request, request.match_info["id"], KIND)
        if job is None:
            raise NotFound(UNKNOWN_JOB)
        return json_response(render(job, await self._intake.store.pushes(job.id)))

    async def _accepted(self, request: web.Request, caller: Caller) -> Accepted:
        """The request as the kind takes it. Raises `Permanent`: invalid in the words of the document, too large or too
        slow."""
        async with self._intake.uploads(caller) as uploads:
            try:
                body = await read_body(
                    request, self._intake.server, uploads.hold_json, max_bytes=REQUEST_MAX_BYTES, hint=REQUEST_HINT
                )
                return self._kind.parse(parse_request(body, self._configured))
            except Permanent as fault:
                if fault.code in NOT_READ:
                    raise
                raise invalid(f"Failed to parse data: {refusal_words(fault)}") from None


def render(job: Job, pushes: Iterable[Push]) -> dict[str, Any]:
    """A job in the words of the document, its keys in the document's order."""
    targets = endpoints(job, pushes)
    # One that waits to be tried again is under way for this API, which knows of no second attempt.
    is_waiting = job.state is State.QUEUED and job.started_ms is None
    value = "QUEUED" if is_waiting else VALUES.get(job.state, "RUNNING")
    body: dict[str, Any] = {
        "value": value,
        "started_at": iso(job.created_ms, "microseconds"),
        "finished_endpoints": targets.finished,
        "skipped_clusters": targets.skipped,
        "finished_at": iso(job.finished_ms, "microseconds"),
    }
    # What has failed only for now is tried again, and is none of a client's business until then.
    if targets.failed and value == "FAILED":
        body["failed_endpoints"] = [{"endpoint": endpoint, "error": error} for endpoint, error in targets.failed]
    return body


def error_response(request: web.Request, fault: Fault, status: HTTPStatus) -> web.Response:
    """How this API says no."""
    return json_response({"msg": fault.message, "status": "error"}, status)


def parse_request(body: bytes | bytearray, configured: frozenset[str]) -> Json:
    """The body as the distribute kind's spec. `configured` see `configured_hosts`.

    Raises `FieldFault` for the first field in the document's order that is missing, unknown or of another type, else
    `Permanent(invalid)`.
    """
    try:
        value = _decode(body)
    except NOT_JSON as error:
        raise invalid(f"the request body is not valid JSON: {error}") from None
    request = convert(read_fields(value, ""), _Request, "")
    source = convert(read_fields(request.source, "source"), _Source, "source")
    targets = items(request.targets, "targets", most=TARGETS_MAX)
    if not targets:
        raise wrong("targets", "Shorter than minimum length 1.")
    places = [(target, f"targets[{place}]") for place, target in enumerate(targets)]
    return {
        "source": _spec(source, "source", configured),
        "targets": [_spec(convert(read_fields(target, at), _Target, at), at, configured) for target, at in places],
    }


def configured_hosts(names: Iterable[str]) -> frozenset[str]:
    """The hosts that configuration names, in all ways that an endpoint can mean them: a scheme's port may be said.

    Raises `FieldFault` for what is no host."""
    hosts: set[str] = set()
    for name in names:
        endpoint = parse_endpoint(name, "registry")
        has_port = endpoint.key == endpoint.host
        hosts |= {endpoint.host} if has_port else {endpoint.host, f"{endpoint.host}:443", f"{endpoint.host}:80"}
    return frozenset(hosts)


def refusal_words(fault: Permanent) -> str:
    """What the original printed for such a fault; it never quotes a value."""
    if not isinstance(fault, FieldFault):
        return fault.message
    if fault.problem is Problem.MISSING:
        return f"Missing field: {fault.name!r}"
    why: Any = ["Unknown field." if fault.problem is Problem.UNKNOWN else fault.why]
    for name, place in reversed(_STEP.findall(fault.field) or [("_schema", "")]):
        why = {name: {int(place): why} if place else why}
    return str(why)[:WORDS_MAX_CHARS]


class _Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    source: Any
    targets: Any


class _Source(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    endpoint: str
    image: str
    ref: str
    verify_tls: bool | None = None
    auth: Any = None


class _Target(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    endpoint: str
    image: str | None = None
    ref: str | None = None
    overwrite: bool = False
    verify_tls: bool | None = None
    auth: Any = None


def _spec(registry: _Source | _Target, path: str, configured: frozenset[str]) -> Json:
    """The fields as the kind has them. A request's silence is the original's `verify_tls=false`, but never weakens
    what the operator has configured: a login or authority that is set up for a host goes with verified TLS."""
    spec: Json = msgspec.structs.asdict(registry)
    endpoint = parse_endpoint(registry.endpoint, f"{path}.endpoint")
    if registry.verify_tls is None and not configured & {endpoint.host, endpoint.key}:
        spec["verify_tls"] = False
    return {name: value for name, value in spec.items() if value is not None}
