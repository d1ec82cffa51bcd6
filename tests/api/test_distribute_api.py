"""The distribute API on a real store: what is accepted, what is refused and how, and what is told of a job."""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from asking_kind import AskingKind
from bare_app import BareApp, bare_app

from imagejobd.api.distribute import REQUEST_MAX_BYTES
from imagejobd.api.intake import Server
from imagejobd.model.errors import ErrorCode, Fault, NotFound, Permanent, Temporary
from imagejobd.model.job import JobError, NewJob, Push, State
from imagejobd.store.protocol import Ending

PATH = "/api/distribute/image"
REQUEST: dict[str, Any] = {
    "source": {"endpoint": "http://registry.example:5000/v2", "image": "team/app", "ref": "1.0"},
    "targets": [{"endpoint": "mirror.example"}],
}
UNKNOWN = "01890a5d-ac96-774b-bcce-b302099a8057"
KEYS = ["value", "started_at", "finished_endpoints", "skipped_clusters", "finished_at"]
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}000\+00:00")


@pytest.fixture
def kind() -> AskingKind:
    """Stands for the distribute kind where only its word about the source matters."""
    return AskingKind("distribute")


@pytest.fixture
async def app(tmp_path: Path, kind: AskingKind) -> AsyncIterator[BareApp]:
    async with bare_app(tmp_path, kinds={"distribute": kind}) as app:
        yield app


async def ask(app: BareApp, method: str, path: str, **options: Any) -> tuple[aiohttp.ClientResponse, Any]:
    async with app.client.request(method, path, **options) as response:
        assert response.headers["Content-Type"] == "application/json; charset=utf-8"
        return response, await response.json()


async def refused(app: BareApp, status: int, **options: Any) -> str:
    """What the API says to a request that it does not take."""
    response, body = await ask(app, "POST", PATH, **options)
    assert response.status == status
    assert list(body)[:2] == ["msg", "status"]
    assert body["status"] == "error"
    return str(body["msg"])


async def accepted(app: BareApp) -> str:
    response, body = await ask(app, "POST", PATH, json=REQUEST)
    assert response.status == 201
    return str(body["id"])


async def told(app: BareApp, job: str) -> dict[str, Any]:
    response, body = await ask(app, "GET", f"{PATH}/{job}")
    assert response.status == 200
    assert list(body)[: len(KEYS)] == KEYS
    assert TIME.fullmatch(body["started_at"])
    return dict(body)


async def test_accepted(app: BareApp) -> None:
    """201 with the three keys in the document's order, once the job is in the store."""
    async with app.client.post(PATH, json=REQUEST) as response:
        assert response.status == 201
        found = re.fullmatch(r'\{"id":"(.*)","msg":"Image sync started","status":"success"\}', await response.text())
    assert found
    job = await app.store.get(found[1], tenant="local")
    assert job is not None
    assert (job.kind, job.state) == ("distribute", State.QUEUED)
    assert job.spec["source"]["endpoint"] == "http://registry.example:5000/v2"


@pytest.mark.parametrize(
    ("fault", "status", "msg"),
    [
        (NotFound("registry r: manifest of a:1: answered 404"), 404, "Image not found"),
        (Permanent(ErrorCode.DENIED, "registry r asks for a login"), 400, "registry r asks for a login"),
        (Permanent(ErrorCode.EGRESS, "10.0.0.1 is off limits"), 400, "10.0.0.1 is off limits"),
        (Permanent(ErrorCode.REGISTRY_UNAVAILABLE, "not trusted"), 400, "not trusted"),
    ],
)
async def test_what_the_source_says(app: BareApp, kind: AskingKind, fault: Fault, status: int, msg: str) -> None:
    """404 where the image is not there, 400 with the reason for every other final word; nothing is queued."""
    kind.answer = fault
    assert await refused(app, status, json=REQUEST) == msg
    assert not (await app.store.stats()).queued.get("distribute")


async def test_source_that_may_come_back(app: BareApp, kind: AskingKind) -> None:
    """A source that can't be reached now is left to the job."""
    kind.answer = Temporary(ErrorCode.REGISTRY_UNAVAILABLE, "connection refused")
    assert (await told(app, await accepted(app)))["value"] == "QUEUED"


async def test_request_that_is_wrong(app: BareApp, kind: AskingKind) -> None:
    """400 in the words of the original, before the source is asked."""
    assert await refused(app, 400, data=b"{") == (
        "Failed to parse data: the request body is not valid JSON: Input data was truncated"
    )
    assert await refused(app, 400, json={"source": {}}) == "Failed to parse data: Missing field: 'targets'"
    packed = await refused(app, 400, data=b"{}", headers={"Content-Encoding": "gzip"})
    assert packed.startswith("Failed to parse data: Content-Encoding")
    assert await refused(app, 400, data=b"", headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert not kind.asked


async def test_request_that_is_too_large(tmp_path: Path, kind: AskingKind) -> None:
    """413 in this API's form; nothing in the document is as large as a tar."""
    async with bare_app(tmp_path, kinds={"distribute": kind}, settings=Server()) as app:
        msg = await refused(app, 413, data=b" " * (REQUEST_MAX_BYTES + 1))
    assert f"{REQUEST_MAX_BYTES} bytes" in msg


async def test_full_queue(tmp_path: Path, kind: AskingKind) -> None:
    """503 with Retry-After in this API's form."""
    async with bare_app(tmp_path, kinds={"distribute": kind}, queue_max=1) as app:
        await accepted(app)
        response, body = await ask(app, "POST", PATH, json=REQUEST)
        assert (response.status, body["status"]) == (503, "error")
        assert int(response.headers["Retry-After"]) > 0


async def test_job_through_its_states(app: BareApp) -> None:
    """QUEUED, then RUNNING also while it waits for its next attempt, then FINISHED."""
    job = await accepted(app)
    queued = await told(app, job)
    assert (queued["value"], queued["finished_at"]) == ("QUEUED", None)
    claim = await app.claimed("distribute")
    assert (await told(app, job))["value"] == "RUNNING"
    await app.store.retry(claim, JobError(ErrorCode.TIMEOUT, "later"), not_before_ms=0)
    waiting = await told(app, job)
    assert waiting == queued | {"value": "RUNNING"}
    claim = await app.claimed("distribute")
    await app.store.finish(claim, Ending(State.SUCCEEDED, result={}))
    finished = await told(app, job)
    assert finished["value"] == "FINISHED"
    assert TIME.fullmatch(finished["finished_at"])
    assert finished["started_at"] == queued["started_at"]
    assert list(finished) == KEYS


async def test_cancelled_job_has_failed(app: BareApp) -> None:
    """The document knows no cancelling; what was not reached is listed with the reason, after all other keys."""
    job = await accepted(app)
    await app.store.request_cancel(job, tenant="local")
    cancelled = await told(app, job)
    assert cancelled["value"] == "FAILED"
    assert TIME.fullmatch(cancelled["finished_at"])
    assert list(cancelled) == [*KEYS, "failed_endpoints"]
    assert cancelled["failed_endpoints"] == [{"endpoint": "mirror.example", "error": "cancelled"}]


async def test_failure_is_told_when_it_is_final(app: BareApp) -> None:
    """An endpoint that has failed is in no list while the job goes on, because it is tried again."""
    job = await accepted(app)
    claim = await app.claimed("distribute")
    push = Push(image=0, target=0, registry="mirror.example", repository="app", error="it is down")
    await app.store.record_pushes(claim, [push])
    running = await told(app, job)
    assert list(running) == KEYS
    assert (running["finished_endpoints"], running["skipped_clusters"]) == ([], [])
    error = JobError(ErrorCode.COPY_FAILED, "1 of 1 targets failed")
    await app.store.finish(claim, Ending(State.FAILED, error=error))
    failed = await told(app, job)
    assert failed["value"] == "FAILED"
    assert failed["failed_endpoints"] == [{"endpoint": "mirror.example", "error": "it is down"}]


async def test_jobs_that_are_not_there(app: BareApp) -> None:
    """404 alike for an unknown id, none at all, another tenant's job, and one of another kind."""
    build = NewJob(kind="build", spec={})
    foreign = NewJob(kind="distribute", spec=REQUEST, tenant="other")
    for job in (build, foreign):
        await app.store.enqueue(job, queue_max=10)
    for name in (UNKNOWN, "1", "x" * 200, "%00", build.uuid, foreign.uuid):
        response, body = await ask(app, "GET", f"{PATH}/{name}")
        assert response.status == 404
        assert body == {"msg": "job with id not found", "status": "error"}


async def test_id_in_capitals(app: BareApp) -> None:
    """A UUID is one in any case."""
    assert await told(app, (await accepted(app)).upper())


async def test_head(app: BareApp) -> None:
    """HEAD is GET without the body, as for every other status."""
    job = await accepted(app)
    async with app.client.head(f"{PATH}/{job}") as response:
        assert (response.status, await response.read()) == (200, b"")
    async with app.client.head(f"{PATH}/{UNKNOWN}") as response:
        assert response.status == 404


async def test_what_this_api_has_not(app: BareApp) -> None:
    """404 and 405 below its prefix are in its own form, and what there is follows the document's keys."""
    response, body = await ask(app, "GET", "/api/distribute/images")
    assert (response.status, list(body), body["msg"]) == (404, ["msg", "status", "detail"], "Resource not found")
    assert f"the nearest are POST {PATH}, GET {PATH}/{{id}}" in body["detail"]
    assert "docs/apis.md" in body["detail"]
    response, body = await ask(app, "DELETE", PATH)
    detail = "allowed here: POST"
    assert (response.status, body) == (405, {"msg": "Method not allowed", "status": "error", "detail": detail})
    assert response.headers["Allow"] == "POST"


async def test_web_pages_are_kept_away(app: BareApp, kind: AskingKind) -> None:
    """403 in this API's form for a page of another site, before anything is asked on its word."""
    msg = await refused(app, 403, json=REQUEST, headers={"Origin": "https://elsewhere.example"})
    assert "elsewhere.example" in msg
    assert not kind.asked
