"""The schedules of the configuration: when each runs next, and what became of its last run."""

from collections.abc import Awaitable, Callable, Sequence

from aiohttp import web

from imagejobd.api.intake import Intake
from imagejobd.api.wire import iso, json_response, parameters
from imagejobd.model.errors import ErrorCode, Permanent
from imagejobd.model.job import Json
from imagejobd.model.schedule import ScheduleStatus

Statuses = Callable[[], Awaitable[Sequence[ScheduleStatus]]]


async def no_schedules() -> Sequence[ScheduleStatus]:
    return ()


def routes(intake: Intake, statuses: Statuses) -> list[web.RouteDef]:
    async def show(request: web.Request) -> web.Response:
        """All of them, for admins and for callers without a token where none is required."""
        caller = intake.caller(request)
        if not (caller.is_admin or caller.is_anonymous):
            raise Permanent(ErrorCode.DENIED, "only subjects in auth.admin_subjects may see the schedules")
        parameters(request)
        return json_response({"schedules": [render(status) for status in await statuses()]})

    return [web.get("/api/v2/schedules", show)]


def render(status: ScheduleStatus) -> Json:
    """A schedule as the API shows it: times in ISO 8601, absent things null."""
    return {
        "name": status.name,
        "cron": status.cron,
        "timezone": status.timezone,
        "kind": status.kind,
        "next_run": iso(status.next_ms),
        "last_run": iso(status.last_ms),
        "last_skipped": iso(status.skipped_ms),
        "job": status.job,
        "state": status.state,
    }
