"""The history of jobs, as it is and as it grows: of one job, and of all that a caller may see."""

from collections.abc import Collection, Sequence

import msgspec
from aiohttp import web

from imagejobd.api.intake import Intake
from imagejobd.api.listing import read_kinds
from imagejobd.api.streams import Piece, Streams, frame, last_event_id, latest_job, wants_events
from imagejobd.api.wire import iso, json_response, number, parameters
from imagejobd.model.job import Event
from imagejobd.store.protocol import EVENT_TOPIC, job_topic

EVENTS_MAX = 500

_encode = msgspec.json.Encoder().encode


def routes(intake: Intake, streams: Streams) -> list[web.RouteDef]:
    api = EventsApi(intake, streams)
    return [
        web.get("/api/v2/jobs/{id}/events", api.of_job),
        web.get("/api/v2/events", api.of_all, allow_head=False),  # aiohttp would send the stream to HEAD too
    ]


class EventsApi:
    def __init__(self, intake: Intake, streams: Streams) -> None:
        self._intake = intake
        self._store = intake.store
        self._streams = streams

    async def of_job(self, request: web.Request) -> web.StreamResponse:
        """The job's history from old to new, `EVENTS_MAX` at most; the last `id` is the next request's `after`.

        For `Accept: text/event-stream` all of it and what follows, until the job has ended.
        """
        job = await self._intake.job(request)
        after = number("after", parameters(request, "after").get("after"), 0)
        if not wants_events(request):
            events = await self._store.changes_since(after, job_id=job.id, limit=EVENTS_MAX)
            return json_response(
                [{"id": event.id, "at": iso(event.at_ms), "type": event.type, "data": event.data} for event in events]
            )

        async def read(cursor: int) -> Piece:
            # Asked before the history is read: what happens to a job happens before it ends, or with that.
            state = (await latest_job(self._store, job)).state
            events = await self._store.changes_since(cursor, job_id=job.id, limit=EVENTS_MAX)
            return _piece(cursor, events, events, is_ended=state.is_final)

        last_id = last_event_id(request)
        cursor = await self._reached(after if last_id is None else last_id)
        return await self._streams.send_events(request, job_topic(job.id), cursor, read, name="events")

    async def of_all(self, request: web.Request) -> web.StreamResponse:
        """What happens to all jobs that the caller may see, from now on or after an event; it never ends."""
        query = parameters(request, "kind", "after")
        kinds = read_kinds(query, self._intake.kinds) or frozenset(self._intake.kinds)
        sees = self._intake.caller(request).sees

        async def read(cursor: int) -> Piece:
            events = await self._store.changes_since(cursor, job_id=None, limit=EVENTS_MAX)
            visible = [event for event in events if sees in (None, event.tenant) and event.kind in kinds]
            return _piece(cursor, events, visible)

        cursor = last_event_id(request)
        if cursor is None:
            cursor = number("after", query.get("after"), -1)
        cursor = await self._reached(cursor)
        return await self._streams.send_events(request, EVENT_TOPIC, cursor, read, name=(sees, kinds))

    async def _reached(self, cursor: int) -> int:
        """The place, or now for one that the history has not come to, as after an older backup was restored: there
        nobody would hear of anything, or share what is read with others. Negative ones stand for now, too."""
        last = await self._store.last_event()
        return last if cursor < 0 else min(cursor, last)


def _piece(cursor: int, events: Sequence[Event], visible: Collection[Event], *, is_ended: bool = False) -> Piece:
    has_more = len(events) == EVENTS_MAX
    last = events[-1].id if events else cursor
    return Piece(b"".join(map(_frame, visible)), last, has_more=has_more, is_last=is_ended and not has_more)


def _frame(event: Event) -> bytes:
    data = {"job": event.uuid, "at": iso(event.at_ms), "data": event.data}
    return frame(event.id, event.type, _encode(data))
