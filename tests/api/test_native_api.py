"""The native API on a real store: what is accepted, what is refused, and what is told of a job."""

import asyncio
from typing import Any

import aiohttp
import pytest
from bare_app import ENGINE_AWAY, MINIMAL, BareApp, bare_app

from imagejobd.model.job import State
from imagejobd.store.protocol import Ending

UNKNOWN = "01890a5d-ac96-774b-bcce-b302099a8057"


async def ask(app: BareApp, method: str, path: str, **options: Any) -> tuple[int, Any]:
    async with app.client.request(method, path, **options) as response:
        if response.status >= 400:
            assert response.content_type == "application/problem+json"
        return response.status, await response.json()


async def test_accepted_job_is_created_and_located(app: BareApp) -> None:
    """201 with the job and its place; the same is found by UUID, in any case, and by number."""
    async with app.client.post("/api/v2/jobs", json=MINIMAL | {"labels": {"a": "b"}, "priority": 3}) as response:
        assert response.status == 201
        job = await response.json()
        assert response.headers["Location"] == f"/api/v2/jobs/{job['id']}"
    assert (job["state"], job["labels"], job["priority"]) == ("queued", {"a": "b"}, 3)
    for name in (job["id"], job["id"].upper(), str(job["number"])):
        status, found = await ask(app, "GET", f"/api/v2/jobs/{name}")
        assert (status, found["id"]) == (200, job["id"])


async def test_context_in_base64_or_as_a_part(app: BareApp, context: bytes, context_base64: str) -> None:
    """Both ways of sending a tar give the same spec."""
    spec = {"image": "example.org/app"}
    encoded = await app.submit(spec=spec, context=context_base64)
    form = aiohttp.FormData()
    form.add_field("job", '{"kind": "build", "spec": {"image": "example.org/app"}}')
    form.add_field("context", context, filename="context.tar.gz")
    status, sent = await ask(app, "POST", "/api/v2/jobs", data=form)
    assert status == 201
    assert encoded["spec"] == sent["spec"]
    assert encoded["spec"]["context"].startswith("sha256:")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"kind": "bild", "spec": {}}, ["'bild'", "build"]),
        ({"kind": "build"}, ["spec"]),
        ({"spec": {}}, ["kind"]),
        (MINIMAL | {"prioritty": 1}, ["prioritty"]),
        (MINIMAL | {"priority": "high"}, ["priority"]),
        (MINIMAL | {"priority": 101}, ["priority", "100"]),
        (MINIMAL | {"not_before": "2030-01-01T00:00:00"}, ["not_before", "time zone"]),
        (MINIMAL | {"not_before": "0001-01-01T00:00:00+14:00"}, ["not_before"]),
        (MINIMAL | {"not_before": "9999-12-31T23:59:59-14:00"}, ["not_before"]),
        (MINIMAL | {"labels": {"a=b": "c"}}, ["a=b"]),
        (MINIMAL | {"labels": {"a\0": "c"}}, ["label", "printable"]),
        (MINIMAL | {"labels": {"a": "c\0d"}}, ["label", "printable"]),
        (MINIMAL | {"labels": {str(n): "" for n in range(33)}}, ["32 labels"]),
        (MINIMAL | {"spec": []}, ["spec"]),
        (MINIMAL | {"spec": {"image": "x"}}, ["exactly one"]),
        (MINIMAL | {"spec": {"image": "x", "dockerfile": "FROM a", "colour": "red"}}, ["colour"]),
        (MINIMAL | {"spec": {"image": "x", "context": "sha256:00"}}, ["spec.context"]),
        (MINIMAL | {"spec": {"image": "x"}, "context": "%"}, ["base64"]),
        ([], ["object"]),
    ],
)
async def test_refusals_name_what_is_wrong(app: BareApp, body: Any, words: list[str]) -> None:
    """400 with code `invalid` and a detail that names field and reason."""
    status, problem = await ask(app, "POST", "/api/v2/jobs", json=body)
    assert (status, problem["status"], problem["code"]) == (400, 400, "invalid")
    for word in words:
        assert word in problem["detail"]


async def test_bodies_over_their_bounds(app: BareApp) -> None:
    """413 for a body over json_max_bytes, with and without Content-Length, and for a spec over its own bound."""
    large = b'{"kind": "' + b"x" * 300_000 + b'"}'

    async def pieces() -> Any:
        yield large

    for data in (large, pieces()):
        status, problem = await ask(app, "POST", "/api/v2/jobs", data=data)
        assert (status, problem["code"]) == (413, "too_large")
        assert "262144 bytes" in problem["detail"]


async def test_idempotency_key(app: BareApp) -> None:
    """The same key and spec give the same job with 200; the key with another spec is a conflict."""
    headers = {"Idempotency-Key": "nightly-1"}
    first = await ask(app, "POST", "/api/v2/jobs", json=MINIMAL, headers=headers)
    again = await ask(app, "POST", "/api/v2/jobs", json=MINIMAL, headers=headers)
    assert (first[0], again[0]) == (201, 200)
    assert first[1]["id"] == again[1]["id"]
    status, problem = await ask(app, "POST", "/api/v2/jobs", json=MINIMAL | {"priority": 1}, headers=headers)
    assert (status, problem["code"]) == (409, "conflict")


async def test_idempotency_key_of_many_at_once(app: BareApp) -> None:
    """Of fifty equal requests at once exactly one creates the job, and all name it."""
    headers = {"Idempotency-Key": "herd"}
    answers = await asyncio.gather(
        *(ask(app, "POST", "/api/v2/jobs", json=MINIMAL, headers=headers) for _ in range(50))
    )
    assert sorted(status for status, _ in answers) == [200] * 49 + [201]
    assert len({job["id"] for _, job in answers}) == 1


@pytest.mark.parametrize("key", ["", "x" * 256, "é", "a\tb"])
async def test_bad_idempotency_keys(app: BareApp, key: str) -> None:
    """A key that is empty, too long or not printable ASCII is refused."""
    status, problem = await ask(app, "POST", "/api/v2/jobs", json=MINIMAL, headers={"Idempotency-Key": key})
    assert status == 400
    assert "Idempotency-Key" in problem["detail"]


async def test_listing(app: BareApp) -> None:
    """From new to old, page by page, filtered by state, kind and label."""
    jobs = [await app.submit(labels={"n": str(n % 2)}) for n in range(5)]
    newest_first = [job["id"] for job in reversed(jobs)]
    pages, cursor = [], ""
    while cursor is not None:
        _, page = await ask(app, "GET", f"/api/v2/jobs?limit=2&cursor={cursor or 0}")
        pages.append([job["id"] for job in page["jobs"]])
        cursor = page["next"]
    assert pages == [newest_first[:2], newest_first[2:4], newest_first[4:]]
    _, odd = await ask(app, "GET", "/api/v2/jobs?label=n=1")
    assert [job["id"] for job in odd["jobs"]] == newest_first[1::2]
    await ask(app, "POST", f"/api/v2/jobs/{newest_first[0]}/cancel")
    _, cancelled = await ask(app, "GET", "/api/v2/jobs?state=cancelled&kind=build")
    assert [job["id"] for job in cancelled["jobs"]] == newest_first[:1]
    assert (await ask(app, "GET", "/api/v2/jobs?kind=run"))[1] == {"jobs": [], "next": None}


@pytest.mark.parametrize("query", ["state=sleeping", "label=noequals", "limit=-1", "limit=x", "cursor=1e3", "limit=²"])
async def test_bad_filters_are_named(app: BareApp, query: str) -> None:
    """400 that names the parameter."""
    status, problem = await ask(app, "GET", f"/api/v2/jobs?{query}")
    assert status == 400
    assert query.partition("=")[0] in problem["detail"]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("kind=bild", "unknown kind 'bild'; this daemon has: build, run, dispatch, distribute"),
        ("state=queued&state=running", "query parameter 'state' is given twice"),
    ],
    ids=["unknown kind", "two states"],
)
async def test_filters_that_nothing_can_pass(app: BareApp, query: str, words: str) -> None:
    """400 with what there is, instead of a list that is empty or not what was asked for."""
    status, problem = await ask(app, "GET", f"/api/v2/jobs?{query}")
    assert status == 400
    assert words in problem["detail"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b" ", "the request body is empty"),
        (b'{"kind": "build", "spec": {}, "not_before": "tomorrow"}', "for example 2030-01-31T06:00:00Z"),
        (b'{"kind": "build", "spec": {}, "lables": {}}', "unknown field `lables`"),
    ],
    ids=["nothing", "no date", "misspelt"],
)
async def test_what_is_wrong_with_a_job_is_said(app: BareApp, body: bytes, words: str) -> None:
    """The field, and what it may be."""
    status, problem = await ask(app, "POST", "/api/v2/jobs", data=body)
    assert status == 400
    assert words in problem["detail"]


@pytest.mark.parametrize("path", ["/api/v2/jobs", "/ping", "/nowhere"])
async def test_nobody_is_told_versions(app: BareApp, path: str) -> None:
    """The Server header names the product alone, of answers and refusals."""
    async with app.client.get(path) as response:
        assert response.headers.getall("Server") == ["imagejobd"]


async def test_position_in_the_queue(app: BareApp) -> None:
    """A queued job tells how many go before it; one that runs does not."""
    first, second = await app.submit(), await app.submit()
    urgent = await app.submit(priority=10)
    positions = {}
    for job in (first, second, urgent):
        positions[job["id"]] = (await ask(app, "GET", f"/api/v2/jobs/{job['id']}"))[1]["position"]
    assert positions == {urgent["id"]: 0, first["id"]: 1, second["id"]: 2}
    claim = await app.claimed()
    assert "position" not in (await ask(app, "GET", f"/api/v2/jobs/{claim.job.uuid}"))[1]


async def test_a_delayed_job_has_no_position(app: BareApp) -> None:
    """It is before or behind nobody until its time has come; `not_before` says when that is."""
    await app.submit()
    for not_before, position in (("2990-01-01T00:00:00Z", None), ("2020-01-01T00:00:00Z", 1)):
        job = await app.submit(not_before=not_before)
        _, shown = await ask(app, "GET", f"/api/v2/jobs/{job['id']}")
        assert (shown["position"], shown["not_before"]) == (position, not_before.replace("Z", ".000+00:00"))


async def test_phases_are_shown(app: BareApp) -> None:
    """Each phase with its attempt, start and end; the one that goes on has no end."""
    await app.submit()
    claim = await app.claimed()
    await app.store.enter_phase(claim, "building")
    await app.store.enter_phase(claim, "pushing")
    _, job = await ask(app, "GET", f"/api/v2/jobs/{claim.job.uuid}")
    assert job["phase"] == "pushing"
    assert [(phase["name"], phase["attempt"], phase["finished_at"] is None) for phase in job["phases"]] == [
        ("building", 1, False),
        ("pushing", 1, True),
    ]


async def test_events_are_listed(app: BareApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job's history from old to new, in bounded pieces that `after` continues."""
    monkeypatch.setattr("imagejobd.api.events.EVENTS_MAX", 2)
    other, job = await app.submit(), await app.submit()
    await app.claimed()
    await app.store.request_cancel(other["id"], tenant=None)
    await app.store.request_cancel(job["id"], tenant=None)
    path = f"/api/v2/jobs/{other['id']}/events"
    _, first = await ask(app, "GET", path)
    _, rest = await ask(app, "GET", f"{path}?after={first[-1]['id']}")
    assert [event["type"] for event in first + rest] == ["enqueue", "claim", "request_cancel"]
    assert first[1]["data"] == {"worker": "worker", "attempt": 1}
    assert first[0]["at"].endswith("+00:00")
    status, problem = await ask(app, "GET", f"{path}?after=x")
    assert (status, problem["code"]) == (400, "invalid")


async def test_listings_leave_the_dockerfile_out(app: BareApp) -> None:
    """A page of jobs stays small whatever their Dockerfiles are; one job shows its own."""
    job = await app.submit()
    _, page = await ask(app, "GET", "/api/v2/jobs")
    assert page["jobs"][0]["spec"]["image"] == "example.org/app"
    assert "dockerfile" not in page["jobs"][0]["spec"]
    assert (await ask(app, "GET", f"/api/v2/jobs/{job['id']}"))[1]["spec"]["dockerfile"] == "FROM scratch\n"


async def test_cancel(app: BareApp) -> None:
    """200 for a queued job and for one already cancelled, 202 for a running one, 409 for an ended one, else 404."""
    running, queued = await app.submit(), await app.submit()
    claim = await app.claimed()
    assert claim.job.uuid == running["id"]

    async def cancel(uuid: str) -> int:
        return (await ask(app, "POST", f"/api/v2/jobs/{uuid}/cancel"))[0]

    assert [await cancel(queued["id"]), await cancel(queued["id"])] == [200, 200]
    assert await cancel(running["id"]) == 202
    await app.store.finish(claim, Ending(State.SUCCEEDED, result={}))
    assert await cancel(running["id"]) == 409
    assert await cancel(UNKNOWN) == 404


@pytest.mark.parametrize("name", [UNKNOWN, "0", "999999999999999999", "9" * 30, "²", "job", "%00", "%ff", "'--"])
async def test_unknown_jobs(app: BareApp, name: str) -> None:
    """404 as a problem document for whatever is no job, on every path below it."""
    for method, path in (("GET", ""), ("GET", "/log"), ("GET", "/events"), ("POST", "/cancel")):
        status, problem = await ask(app, method, f"/api/v2/jobs/{name}{path}")
        assert (status, problem["code"]) == (404, "not_found")


async def test_full_queue(tmp_path: Any) -> None:
    """With queue_max jobs waiting: 503, when to come again, and room after a cancellation."""
    async with bare_app(tmp_path, queue_max=1) as app:
        job = await app.submit()
        async with app.client.post("/api/v2/jobs", json=MINIMAL) as response:
            assert response.status == 503
            assert int(response.headers["Retry-After"]) > 0
            assert (await response.json())["code"] == "queue_full"
        async with app.client.post(
            "/api/v1/build", json={"image_name": "app", "dockerfile": "FROM scratch"}
        ) as response:
            assert response.status == 503
            assert "queue_max" in (await response.json())["Error"]
        await ask(app, "POST", f"/api/v2/jobs/{job['id']}/cancel")
        await app.submit()


async def test_draining(app: BareApp) -> None:
    """A daemon that stops says so in readyz, keeps jobs for its next life, and ends each connection with its answer."""
    app.intake.drain(timeout_s=60)
    async with app.client.post("/api/v2/jobs", json=MINIMAL) as response:
        assert (response.status, response.headers["Connection"]) == (201, "close")
    async with app.client.get("/readyz") as response:
        assert (response.status, response.headers["Connection"]) == (503, "close")
        assert (await response.json())["draining"] is True
    async with app.client.get("/api/v2/jobs") as response:
        assert [job["state"] for job in (await response.json())["jobs"]] == ["queued"]


async def test_health(app: BareApp) -> None:
    """Alive and ready without an engine, whose failure is reported: jobs can wait for it."""
    async with app.client.get("/healthz") as response:
        assert (response.status, await response.text()) == (200, "ok\n")
    async with app.client.get("/readyz") as response:
        report = await response.json()
        assert response.status == 200
    assert report["ready"] is True
    assert report["wal_bytes"] > 0
    assert report["store"] == "ok"
    assert report["engine"] == ENGINE_AWAY


async def test_a_failed_job_is_tried_again_as_a_new_one(app: BareApp) -> None:
    """A job that was cancelled is asked for once more, with its context; one that waits, and one whose password went
    with its end, are not."""
    job = await app.submit()
    status, problem = await ask(app, "POST", f"/api/v2/jobs/{job['id']}/retry")
    assert (status, problem["code"]) == (409, "conflict")
    assert "only a failed or cancelled one" in problem["detail"]
    await ask(app, "POST", f"/api/v2/jobs/{job['id']}/cancel")
    status, again = await ask(app, "POST", f"/api/v2/jobs/{job['id']}/retry")
    assert (status, again["retry_of"], again["spec"]) == (201, job["id"], job["spec"])
    assert again["id"] != job["id"]
    secret = await app.submit(spec=MINIMAL["spec"] | {"username": "u", "password": "p4ssw0rd"})
    await ask(app, "POST", f"/api/v2/jobs/{secret['id']}/cancel")
    status, problem = await ask(app, "POST", f"/api/v2/jobs/{secret['id']}/retry")
    assert (status, problem["code"]) == (409, "conflict")
    assert "send them again, as secrets: password" in problem["detail"]


async def test_a_failed_store_is_unavailable(app: BareApp) -> None:
    """Once the database can't be trusted, submissions are answered 503 with the reason, and so is readyz."""
    (app.folder / "imagejobd.db").rename(app.folder / "moved.db")
    for _ in range(2):
        async with app.client.post("/api/v2/jobs", json=MINIMAL) as response:
            assert response.status == 503
            assert int(response.headers["Retry-After"]) > 0
            assert "cannot be found any more" in (await response.json())["detail"]
    async with app.client.get("/readyz") as response:
        assert response.status == 503
        assert "cannot be found any more" in (await response.json())["store"]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/api/v2/job", "the nearest are POST /api/v2/jobs, GET /api/v2/jobs"),
        ("/api/v2/jobs/1/logs", "GET /api/v2/jobs/{id}/log"),
        ("/readyness", "GET /readyz"),
        ("/%F0%9F%90%8B", "described in docs/apis.md"),
        ("/" + "x" * 4000, "described in docs/apis.md"),
    ],
)
async def test_what_there_is_instead(app: BareApp, path: str, words: str) -> None:
    """404 names the routes that look like the path, where any do, and the page that describes all."""
    status, problem = await ask(app, "GET", path)
    assert (status, problem["code"]) == (404, "not_found")
    assert words in problem["detail"]
    assert "xxx" not in problem["detail"]
