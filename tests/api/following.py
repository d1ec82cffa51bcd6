"""How the tests of the API follow what goes on: jobs with a log, and streams of events as they come."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import aiohttp
from bare_app import BareApp

from harness.event_stream import EventParser, StreamEvent
from imagejobd.model.job import Claim, State
from imagejobd.store.protocol import Ending

DONE = Ending(State.SUCCEEDED, result={})
SSE = {"Accept": "text/event-stream"}


async def job_with_log(app: BareApp, *texts: str, ended: bool = False) -> Claim:
    """A job that runs, or has `ended`, and has written these texts."""
    await app.submit()
    claim = await app.claimed()
    for text in texts:
        await app.store.log(claim, text)
    if ended:
        await app.store.finish(claim, DONE)
    return claim


@asynccontextmanager
async def stream(
    app: BareApp, path: str, headers: Mapping[str, str] | None = None
) -> AsyncIterator[AsyncIterator[StreamEvent]]:
    """The events of a stream, one by one as they come."""
    async with app.client.get(path, headers=SSE | dict(headers or {})) as response:
        assert response.status == 200, await response.text()
        assert response.content_type == "text/event-stream"
        yield events_of(response)


async def events_of(response: aiohttp.ClientResponse) -> AsyncIterator[StreamEvent]:
    parser = EventParser()
    async for received in response.content.iter_any():
        for event in parser.feed(received):
            yield event


async def all_events(app: BareApp, path: str, headers: Mapping[str, str] | None = None) -> list[StreamEvent]:
    async with stream(app, path, headers) as events:
        return [event async for event in events]
