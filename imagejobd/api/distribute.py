"""The distribute API (`/api/distribute/image`), wire-compatible with the service it replaces.

A client knows the registries of a job by the endpoints it sent, four states, and `{"msg", "status"}` for everything
that went wrong. The document has two statuses for a request that is refused: 404 when the source says that the image
is not there, 400 for all else that the request itself is to blame for.
"""

from collections.abc import Collection
from http import HTTPStatus
from typing import Any

from aiohttp import web

from imagejobd.api.bodies import read_body
from imagejobd.api.distribute_request import (
    REQUEST_HINT,
    REQUEST_MAX_BYTES,
    configured_hosts,
    parse_request,
    refusal_words,
)
from imagejobd.api.door import Caller, Door, new_job
from imagejobd.api.wire import iso, json_response
from imagejobd.kinds.distribute.outcomes import endpoints
from imagejobd.model.errors import ErrorCode, Fault, Permanent, invalid
from imagejobd.model.ids import is_uuid
from imagejobd.model.job import Job
from imagejobd.model.state import State
from imagejobd.model.work import Accepted

KIND = "distribute"

STARTED = "Image sync started"
NO_IMAGE = "Image not found"
UNKNOWN_JOB = "job with id not found"

# What keeps a request from being read at all has statuses of its own (413, 408).
NOT_READ = frozenset({ErrorCode.TOO_LARGE, ErrorCode.TIMEOUT})
VALUES = {State.SUCCEEDED: "FINISHED", State.FAILED: "FAILED", State.CANCELLED: "FAILED", State.RUNNING: "RUNNING"}


def routes(door: Door, registries: Collection[str]) -> list[web.RouteDef]:
    """`registries` are the hosts that the operator has configured, as the configuration names them."""
    api = DistributeApi(door, registries)
    return [
        web.post("/api/distribute/image", api.distribute),
        web.get("/api/distribute/image/{id}", api.status),
    ]


class DistributeApi:
    def __init__(self, door: Door, registries: Collection[str]) -> None:
        self._door = door
        self._kind = door.kinds[KIND]
        self._configured = configured_hosts(registries)

    async def distribute(self, request: web.Request) -> web.Response:
        """Accept a distribution. The answer is sent after the job is on disk."""
        caller = self._door.caller(request)
        job = new_job(KIND, await self._accepted(request, caller), caller)
        try:
            enqueued = await self._door.submit(job)
        except Permanent as fault:
            raise _refused(fault) from None
        answer = {"id": enqueued.uuid, "msg": STARTED, "status": "success"}
        return json_response(answer, HTTPStatus.CREATED)

    async def status(self, request: web.Request) -> web.Response:
        uuid = request.match_info["id"]
        tenant = self._door.caller(request).sees
        job = await self._door.store.get(uuid.lower(), tenant=tenant) if is_uuid(uuid) else None
        if job is None or job.kind != KIND:
            raise Permanent(ErrorCode.NOT_FOUND, UNKNOWN_JOB)
        return json_response(render(job))

    async def _accepted(self, request: web.Request, caller: Caller) -> Accepted:
        """The request as the kind takes it. Raises `Permanent`: invalid in the words of the document, else too large or
        too slow."""
        async with self._door.uploads(caller) as uploads:
            try:
                body = await read_body(
                    request, self._door.server, uploads.hold_json, max_bytes=REQUEST_MAX_BYTES, hint=REQUEST_HINT
                )
                return self._kind.parse(parse_request(body, self._configured))
            except Permanent as fault:
                if fault.code in NOT_READ:
                    raise
                raise invalid(f"Failed to parse data: {refusal_words(fault)}") from None


def render(job: Job) -> dict[str, Any]:
    """A job in the words of the document, its keys in the document's order."""
    told = endpoints(job)
    value = _value(job)
    body: dict[str, Any] = {
        "value": value,
        "started_at": iso(job.created_ms, "microseconds"),
        "finished_endpoints": told.finished,
        "skipped_clusters": told.skipped,
        "finished_at": iso(job.finished_ms, "microseconds"),
    }
    # What has failed only for now is tried again, and is none of a client's business until then.
    if told.failed and value == "FAILED":
        body["failed_endpoints"] = [{"endpoint": endpoint, "error": error} for endpoint, error in told.failed]
    return body


def error_response(request: web.Request, fault: Fault, status: HTTPStatus) -> web.Response:
    """How this API says no."""
    return json_response({"msg": fault.message, "status": "error"}, status)


def _value(job: Job) -> str:
    """A job that waits to be tried again is under way for this API, which knows of no second attempt."""
    if job.state is State.QUEUED:
        return "QUEUED" if job.started_ms is None else "RUNNING"
    return VALUES[job.state]


def _refused(fault: Permanent) -> Permanent:
    if fault.code is ErrorCode.NOT_FOUND:
        return Permanent(ErrorCode.NOT_FOUND, NO_IMAGE)
    return invalid(fault.message)
