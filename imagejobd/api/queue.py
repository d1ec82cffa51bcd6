"""The queue as a whole: how long it is, what it waits for, and stopping and starting the kinds of jobs.

A paused kind accepts jobs and starts none; what runs goes on. Who may pause is who may see everybody's jobs: admins,
and callers without a token where none is required.
"""

from collections.abc import Collection
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from imagejobd.api.bodies import read_body
from imagejobd.api.intake import Caller, Intake
from imagejobd.api.listing import read_kind
from imagejobd.api.wire import NOT_JSON, iso, json_response, parameters
from imagejobd.model.errors import ErrorCode, Permanent, invalid
from imagejobd.model.job import Json, log_fields
from imagejobd.store.protocol import Depth, Pause

REASON_MAX_CHARS = 500
ANONYMOUS_NAME = "anonymous"

_EMPTY = Depth(0, 0, None)


class PauseRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /api/v2/queue/pause`, which may be empty; no kind is all of them."""

    kind: str | None = None
    reason: str = ""


class ResumeRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /api/v2/queue/resume`, which may be empty; no kind is all of them."""

    kind: str | None = None


R = TypeVar("R", PauseRequest, ResumeRequest)


def routes(intake: Intake) -> list[web.RouteDef]:
    api = QueueApi(intake)
    return [
        web.get("/api/v2/queue", api.show),
        web.post("/api/v2/queue/pause", api.pause),
        web.post("/api/v2/queue/resume", api.resume),
    ]


class QueueApi:
    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._store = intake.store

    async def show(self, request: web.Request) -> web.Response:
        """How many jobs of each kind wait and run, of those that the caller may see; how many may run at once; since
        when the oldest is there that could start; and why none is started."""
        parameters(request)
        return json_response(await self._queue(self._intake.caller(request)))

    async def pause(self, request: web.Request) -> web.Response:
        """Start no more jobs of a kind, or of any, until it is resumed, also after a restart. A second pause changes
        the reason."""
        caller, body = await self._order(request, PauseRequest)
        if len(body.reason) > REASON_MAX_CHARS or not body.reason.isprintable():
            raise invalid(f"reason must be one line of at most {REASON_MAX_CHARS} printable characters")
        by = log_fields(caller).get("submitter") or caller.client or ANONYMOUS_NAME
        await self._store.pause(self._kinds(body.kind), reason=body.reason.strip(), by=by)
        return json_response(await self._queue(caller))

    async def resume(self, request: web.Request) -> web.Response:
        """Start jobs of a kind again, or of all. One that is not paused stays as it is."""
        caller, body = await self._order(request, ResumeRequest)
        await self._store.resume(self._kinds(body.kind))
        return json_response(await self._queue(caller))

    async def _order(self, request: web.Request, kind: type[R]) -> tuple[Caller, R]:
        """Who sends the request and what it says. Raises `Permanent(denied | invalid)`."""
        caller = self._intake.caller(request)
        if not (caller.is_admin or caller.is_anonymous):
            raise Permanent(ErrorCode.DENIED, "only subjects in auth.admin_subjects may pause and resume kinds of jobs")
        parameters(request)
        async with self._intake.uploads(caller) as uploads:
            body = await read_body(request, self._intake.server, uploads.hold_json)
        try:
            return caller, msgspec.json.decode(body if body.strip() else b"{}", type=kind)
        except NOT_JSON as error:
            raise invalid(f"the request is not valid: {error}") from None

    def _kinds(self, kind: str | None) -> Collection[str]:
        kinds = self._intake.kinds
        return kinds if kind is None else (read_kind(kind, kinds),)

    async def _queue(self, caller: Caller) -> Json:
        depths, pauses = await self._store.depths(caller.sees), await self._store.pauses()
        kinds = {name: self._kind(name, depths.get(name, _EMPTY), pauses.get(name)) for name in self._intake.kinds}
        return {"kinds": kinds, "queue_max": self._intake.queue_max}

    def _kind(self, name: str, depth: Depth, pause: Pause | None) -> dict[str, Any]:
        return {
            "queued": depth.queued,
            "running": depth.running,
            "slots": self._intake.slots.get(name),
            "oldest_queued_at": iso(depth.oldest_queued_ms),
            "waiting_for": pause.waiting if pause else self._intake.waiting_for_kind(name),
            "paused": pause and {"reason": pause.reason, "since": iso(pause.since_ms), "by": pause.by},
        }
