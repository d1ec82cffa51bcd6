"""The history of jobs as it grows, and waiting for a job's end."""

import asyncio
import time
from pathlib import Path

import pytest
from bare_app import MINIMAL, BareApp, bare_app
from following import DONE, all_events, job_with_log, stream
from signing import bearer, by_secret, token

from harness.event_stream import StreamEvent
from imagejobd.api import events, native, streams


def types(found: list[StreamEvent]) -> list[str]:
    return [event.type for event in found]


async def test_a_jobs_events_until_it_ends(app: BareApp) -> None:
    """What has happened to it, what happens, and nothing of other jobs; the stream ends with the job."""
    claim = await job_with_log(app)
    await app.submit()
    async with stream(app, f"/api/v2/jobs/{claim.job.uuid}/events") as found:
        first, second = await anext(found), await anext(found)
        assert types([first, second]) == ["enqueue", "claim"]
        assert second.json["job"] == claim.job.uuid
        assert second.json["at"].endswith("+00:00")
        assert second.json["data"] == {"worker": "worker", "attempt": 1}
        await app.store.enter_phase(claim, "building")
        assert (await anext(found)).type == "enter_phase"
        await app.store.finish(claim, DONE)
        assert types([event async for event in found]) == ["leave_phase", "succeed"]


async def test_a_jobs_events_go_on_after_any_of_them(app: BareApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """From each id on the rest comes, also where it is more than is read at once; the header outdoes the URL."""
    monkeypatch.setattr(events, "EVENTS_MAX", 2)
    claim = await job_with_log(app)
    await app.store.enter_phase(claim, "building")
    await app.store.finish(claim, DONE)
    path = f"/api/v2/jobs/{claim.job.uuid}/events"
    whole = await all_events(app, path)
    assert types(whole) == ["enqueue", "claim", "enter_phase", "leave_phase", "succeed"]
    for seen, event in enumerate(whole, 1):
        assert await all_events(app, f"{path}?after=0", {"Last-Event-ID": event.id}) == whole[seen:]
        assert await all_events(app, f"{path}?after={event.id}") == whole[seen:]


async def test_events_of_all_jobs_from_now_on(app: BareApp) -> None:
    """Of every job, each once; with a cursor from there on, with kinds only theirs."""
    before = await app.submit()
    async with stream(app, "/api/v2/events") as found:
        job = await app.submit()
        first = await anext(found)
        assert (first.type, first.json["job"]) == ("enqueue", job["id"])
        await app.store.request_cancel(before["id"], tenant=None)
        cancelled = await anext(found)
        assert (cancelled.type, cancelled.json["job"]) == ("cancel", before["id"])
    for path, headers in (("/api/v2/events?after=0", {}), ("/api/v2/events?kind=run,build", {"Last-Event-ID": "0"})):
        async with stream(app, path, headers) as found:
            assert types([await anext(found) for _ in range(3)]) == ["enqueue", "enqueue", "cancel"]
    async with stream(app, "/api/v2/events?kind=distribute&after=0") as found:
        spec = {"source": {"endpoint": "http://127.0.0.1:1", "image": "a", "ref": "1"}, "targets": []}
        copy = await app.submit(kind="distribute", spec=spec)
        event = await anext(found)
        assert (event.type, event.json["job"]) == ("enqueue", copy["id"])


async def test_a_place_that_is_not_reached_yet_is_now(app: BareApp) -> None:
    """Who comes with the id of a newer history hears of what happens next, and does not wait for that id."""
    for path in ("/api/v2/events", "/api/v2/jobs/{id}/events"):
        job = await app.submit()
        async with stream(app, f"{path.format(id=job['id'])}?after=99999999999999999") as found, asyncio.timeout(5):
            await app.store.request_cancel(job["id"], tenant=None)
            assert (await anext(found)).json["job"] == job["id"]


async def test_events_of_other_tenants_are_not_seen(tmp_path: Path) -> None:
    """Each follower is told of what its caller may see, though one read serves all."""
    async with bare_app(tmp_path, auth=by_secret(tmp_path, admin_subjects=("root",))) as app:
        local = await app.submit()
        mine = bearer(token(tid=7))
        async with app.client.post("/api/v2/jobs", json=MINIMAL, headers=mine) as response:
            theirs = (await response.json())["id"]
        seen = {}
        for name, headers in (("local", {}), ("tenant", mine), ("admin", bearer(token(tid=8, sub="root")))):
            async with stream(app, "/api/v2/events?after=0", headers) as found:
                seen[name] = [(await anext(found)).json["job"] for _ in range(2 if name == "admin" else 1)]
        assert seen == {"local": [local["id"]], "tenant": [theirs], "admin": [local["id"], theirs]}
        async with app.client.get(f"/api/v2/jobs/{local['id']}/events", headers=mine) as response:
            assert response.status == 404


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/api/v2/events?kind=bild", "unknown kind 'bild'"),
        ("/api/v2/events?since=1", "unknown query parameter 'since'; known: kind, after"),
        ("/api/v2/events?after=x", "after must be a whole number"),
        ("/api/v2/jobs/{id}/events?kind=build", "unknown query parameter 'kind'; known: after"),
        ("/api/v2/jobs/{id}/events?after=1&after=2", "'after' is given twice"),
        ("/api/v2/jobs/{id}?wait=soon", "wait must be a whole number"),
        ("/api/v2/jobs/{id}?wait=601", "wait may be 600 seconds at most"),
        ("/api/v2/jobs/{id}?waits=1", "unknown query parameter 'waits'; known: wait"),
    ],
)
async def test_bad_parameters_are_named(app: BareApp, path: str, words: str) -> None:
    """400 that says which, and what there is."""
    job = await app.submit()
    async with app.client.get(path.format(id=job["id"])) as response:
        assert response.status == 400
        assert words in (await response.json())["detail"]


async def test_head_of_events(app: BareApp) -> None:
    """The head of a list is that of a list, whatever is accepted; a stream without end has none."""
    job = await app.submit()
    accept = {"Accept": "text/event-stream"}
    async with app.client.head(f"/api/v2/jobs/{job['id']}/events", headers=accept) as response:
        assert (response.status, response.content_type) == (200, "application/json")
    async with app.client.head("/api/v2/events", headers=accept) as response:
        assert response.status == 405


async def test_a_job_is_awaited(app: BareApp) -> None:
    """The answer comes when the job has ended, whoever waits; at once when it had."""
    claim = await job_with_log(app)

    async def wait() -> str:
        async with app.client.get(f"/api/v2/jobs/{claim.job.uuid}?wait=60") as response:
            return str((await response.json())["state"])

    waiting = [asyncio.create_task(wait()) for _ in range(5)]
    await app.store.enter_phase(claim, "building")
    await app.store.finish(claim, DONE)
    async with asyncio.timeout(10):
        assert set(await asyncio.gather(*waiting)) == {"succeeded"}
        assert await wait() == "succeeded"


async def test_waiting_ends_with_its_time(app: BareApp) -> None:
    """A job that goes on is answered as it is then."""
    job = await app.submit()
    began = time.monotonic()
    async with app.client.get(f"/api/v2/jobs/{job['id']}?wait=1") as response:
        assert (await response.json())["state"] == "queued"
    assert time.monotonic() - began >= 1


async def test_waiting_ends_with_the_daemon(app: BareApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits is answered before the connection is closed."""
    monkeypatch.setattr(streams, "FOLLOW_POLL_S", 0.01)
    job = await app.submit()
    asyncio.get_running_loop().call_later(0.1, setattr, app.intake, "is_closing", True)
    async with asyncio.timeout(10), app.client.get(f"/api/v2/jobs/{job['id']}?wait=600") as response:
        assert (await response.json())["state"] == "queued"
    assert native.WAIT_MAX_S == 600
