"""The distribute API (`/api/distribute/image`), wire-compatible with the service it replaces.

A client knows the registries of a job by the endpoints it sent, four states, and `{"msg", "status"}` for everything
that went wrong. The document has two statuses for a request that is refused: 404 when the source says that the image
is not there, 400 for all else that the request itself is to blame for.

A request has the fields that the original's source declares and no others, each of the type that it has there; what
they may hold beyond that is for the kind to check. The original's errors were what its schema library (marshmallow)
printed: Python dictionaries that lead to the field, with that library's words for a wrong type, a null, an unknown
field. They have that form here, and these words.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from aiohttp import web

from imagejobd.api.bodies import read_body
from imagejobd.api.ignored import note_ignored
from imagejobd.api.intake import Caller, Intake, new_job
from imagejobd.api.wire import NOT_JSON, Explained, detail_of, exact_json_response, iso
from imagejobd.jobs.distribute.fields import FieldFault, boolean, parse_endpoint
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
# What the original's source declares for its own use.
UNREAD = ("issuer", "retries_left", "id", "status")
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
            if fault.code is ErrorCode.NOT_FOUND:
                raise Explained(fault.code, NO_IMAGE, fault.message) from None
            raise invalid(fault.message) from None
        answer = {"id": enqueued.uuid, "msg": STARTED, "status": "success"}
        return exact_json_response(answer, HTTPStatus.CREATED)

    async def status(self, request: web.Request) -> web.Response:
        job = await self._intake.job_by_uuid(request, request.match_info["id"], KIND)
        if job is None:
            raise NotFound(UNKNOWN_JOB)
        return exact_json_response(render(job, await self._intake.store.pushes(job.id)))

    async def _accepted(self, request: web.Request, caller: Caller) -> Accepted:
        """The request as the kind takes it. Raises `Permanent`: invalid in the words of the document, too large or too
        slow."""
        async with self._intake.uploads(caller) as uploads:
            try:
                body = await read_body(
                    request, self._intake.server, uploads.hold_json, max_bytes=REQUEST_MAX_BYTES, hint=REQUEST_HINT
                )
                spec, ignored = parse_request(body, self._configured)
                note_ignored(request, ignored)
                return self._kind.parse(spec)
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
    return exact_json_response({"msg": fault.message, "status": "error"} | detail_of(fault), status)


def parse_request(body: bytes | bytearray, configured: frozenset[str]) -> tuple[Json, list[str]]:
    """The body as the distribute kind's spec, and the fields that are ignored. `configured` see `configured_hosts`.

    Raises `FieldFault` for the first field that is missing or that is no endpoint, `Permanent(invalid)` for all that
    are unknown or of another type.
    """
    try:
        value = _decode(body)
    except NOT_JSON as error:
        raise invalid(f"the request body is not valid JSON: {error}") from None
    try:
        request = _request(value)
    except _WrongTypes as wrong:
        raise invalid(str(wrong.errors)[:WORDS_MAX_CHARS]) from None
    spec = {
        "source": _spec(request["source"], "source", configured),
        "targets": [
            _spec({"overwrite": False} | target, f"targets[{place}]", configured)
            for place, target in enumerate(request["targets"])
        ],
    }
    return spec, _ignored(request)


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
    if fault.is_missing:
        return f"Missing field: {fault.name!r}"
    why: Any = [fault.why]
    for name, place in reversed(_STEP.findall(fault.field) or [("_schema", "")]):
        why = {name: {int(place): why} if place else why}
    return str(why)[:WORDS_MAX_CHARS]


def _ignored(request: Json) -> list[str]:
    """What the original had for itself, and what an `auth` says of tokens beside a login (see `parse_auth`)."""
    ignored = [name for name in UNREAD if name in request]
    places = {"source": request["source"]} | {f"targets[{place}]": one for place, one in enumerate(request["targets"])}
    for path, place in places.items():
        auth = place.get("auth", {})
        if "basicauth" in auth:
            ignored += [f"{path}.auth.{name}" for name in auth if name != "basicauth"]
        elif "url" in auth and "token" in auth:
            ignored.append(f"{path}.auth.token")
    return ignored


class _WrongTypes(Exception):
    """`errors` is what marshmallow would say: a list of texts, or such by field or place."""

    def __init__(self, errors: Any) -> None:
        super().__init__()
        self.errors = errors


# Takes a value that is not null. Raises `_WrongTypes`, or `FieldFault` for a missing field.
_Load = Callable[[Any], Any]


def _object(required: Mapping[str, _Load], optional: Mapping[str, _Load]) -> _Load:
    """Of what is `optional` null is as if it were not there."""

    def load(value: Any) -> Json:
        if not isinstance(value, dict):
            raise _WrongTypes({"_schema": ["Invalid input type."]})
        loads = {**required, **optional}
        errors: dict[str, Any] = {name: ["Unknown field."] for name in value if name not in loads}
        if not errors and (missing := next((name for name in required if name not in value), None)):
            raise FieldFault.missing(missing)
        fields: Json = {}
        for name in loads:
            if name not in value or (value[name] is None and name in optional):
                continue
            try:
                fields[name] = _not_null(loads[name], value[name])
            except _WrongTypes as wrong:
                errors[name] = wrong.errors
        if errors:
            raise _WrongTypes(errors)
        return fields

    return load


def _list(load_item: _Load, *, items_max: int) -> _Load:
    def load(value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise _WrongTypes(["Not a valid list."])
        if len(value) > items_max:
            raise _WrongTypes([f"has {len(value)} entries; the limit is {items_max}"])
        entries, errors = [], {}
        for place, item in enumerate(value):
            try:
                entries.append(_not_null(load_item, item))
            except _WrongTypes as wrong:
                errors[place] = wrong.errors
        if errors:
            raise _WrongTypes(errors)
        return entries

    return load


def _not_null(load: _Load, value: Any) -> Any:
    if value is None:
        raise _WrongTypes(["Field may not be null."])
    return load(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _WrongTypes(["Not a valid string."])
    return value


def _text_or_object(value: Any) -> Any:
    """The original takes an object only as the text of one; the document shows it as it is."""
    return value if isinstance(value, dict) else _text(value)


def _boolean(value: Any) -> bool:
    meaning = boolean(value)
    if not isinstance(meaning, bool):
        raise _WrongTypes(["Not a valid boolean."])
    return meaning


def _unread(value: Any) -> None:
    """Taken, whatever it is."""


_login = _object({"user": _text, "password": _text}, {})
_auth = _object(
    {},
    {
        **dict.fromkeys(("url", "token_type", "token"), _text),
        **dict.fromkeys(("header", "json"), _text_or_object),
        "basicauth": _login,
    },
)
_source = _object(dict.fromkeys(("endpoint", "image", "ref"), _text), {"verify_tls": _boolean, "auth": _auth})
_target = _object(
    {"endpoint": _text},
    {"image": _text, "ref": _text, "overwrite": _boolean, "verify_tls": _boolean, "auth": _auth},
)
_request = _object(
    {"source": _source, "targets": _list(_target, items_max=TARGETS_MAX)},
    dict.fromkeys(UNREAD, _unread),
)


def _spec(registry: Json, path: str, configured: frozenset[str]) -> Json:
    """The fields as the kind has them. A request's silence is the original's `verify_tls=false`, but never weakens
    what the operator has configured: a login or authority that is set up for a host goes with verified TLS."""
    endpoint = parse_endpoint(registry["endpoint"], f"{path}.endpoint")
    if "verify_tls" in registry or configured & {endpoint.host, endpoint.key}:
        return registry
    return registry | {"verify_tls": False}
