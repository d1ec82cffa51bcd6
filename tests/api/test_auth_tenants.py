"""Tenants see nothing of one another, on every path of every API: what is another's looks as if it did not exist."""

import base64
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
from bare_app import MINIMAL, BareApp, bare_app
from signing import bearer, by_secret, token

from imagejobd.model.job import Job, JobId, NewJob, State
from imagejobd.store.protocol import Ending

UNKNOWN_UUID, UNKNOWN_ID = "01890a5d-ac96-774b-bcce-b302099a8057", "987654321"

OWNER = bearer(token(tid=1))
COLLEAGUE = bearer(token(tid=1, oid=8, sub="joe"))
STRANGER = bearer(token(tid=2))
ADMIN = bearer(token(tid=3, sub="root"))
ANONYMOUS: dict[str, str] = {}

PAYLOAD = b"a picture, say"
DIGEST = f"sha256:{hashlib.sha256(PAYLOAD).hexdigest()}"

SPECS: dict[str, dict[str, Any]] = {
    "build": MINIMAL["spec"],
    "run": {"dockerfile": "FROM scratch\n"},
    "distribute": {
        "source": {"endpoint": "https://r.example", "image": "app", "ref": "1"},
        "targets": [{"endpoint": "https://s.example"}],
    },
    "dispatch": {"payload": DIGEST, "size_bytes": len(PAYLOAD), "content": base64.b64encode(PAYLOAD).decode()},
}
LOCATION = {"digest": DIGEST, "size_bytes": len(PAYLOAD), "media_type": "application/octet-stream"}


class Endpoint(NamedTuple):
    """One that speaks of a job of `kind`, named in the path by `{uuid}` or by `{id}`."""

    kind: str
    method: str
    path: str
    takes_anonymous: bool = True


NATIVE = (
    *(("GET", path) for path in ("", "/log", "/log?follow=0", "/events")),
    *(("POST", path) for path in ("/cancel", "/retry")),
)
# Every endpoint that names a job. A new one is a line here.
ENDPOINTS = [
    *(
        Endpoint(kind, method, f"/api/v2/jobs/{name}{path}")
        for kind, name in (("build", "{uuid}"), ("build", "{id}"), ("run", "{uuid}"), ("distribute", "{uuid}"))
        for method, path in NATIVE
    ),
    *(Endpoint("dispatch", "GET", f"/api/v2/jobs/{{id}}{path}") for path in ("", "/log", "/events")),
    Endpoint("build", "GET", "/api/v1/{uuid}/status"),
    Endpoint("build", "GET", "/api/v1/{uuid}/logs"),
    Endpoint("distribute", "GET", "/api/distribute/image/{uuid}"),
    Endpoint("run", "GET", "/status?id={uuid}"),
    Endpoint("dispatch", "GET", "/api/v1/job/{id}", takes_anonymous=False),
    Endpoint("dispatch", "GET", "/api/v1/job/{id}/status", takes_anonymous=False),
    Endpoint("dispatch", "GET", "/images/{id}", takes_anonymous=False),
]


class Submission(NamedTuple):
    """An endpoint that takes a job in: what it is sent, and the member of its answer that names the job."""

    path: str
    content: dict[str, Any]
    member: str = "id"
    takes_anonymous: bool = True
    is_form: bool = False


SUBMISSIONS = [
    Submission("/api/v2/jobs", MINIMAL),
    Submission("/api/v1/build", {"image_name": "a/b", "dockerfile": "FROM a"}, "JobIdentifier"),
    Submission("/api/distribute/image", SPECS["distribute"]),
    Submission("/run", {"file": "FROM a\n"}, is_form=True),
    Submission(
        "/api/v1/job",
        {"encoding": "base64", "MD5": hashlib.md5(PAYLOAD).hexdigest(), "content": base64.b64encode(PAYLOAD).decode()},
        takes_anonymous=False,
    ),
]


class Said(NamedTuple):
    status: int
    content_type: str
    body: str


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[BareApp]:
    async with bare_app(tmp_path, auth=by_secret(tmp_path, admin_subjects=("root",))) as app:
        yield app


async def enqueued(app: BareApp, kind: str, tenant: str = "1") -> Job:
    """A job that waits; a dispatched one has ended, so that it has an image."""
    made = await app.store.enqueue(NewJob(kind=kind, spec=SPECS[kind], tenant=tenant, client="7"), queue_max=100)
    if kind == "dispatch":
        result = {"what": "file", "location": LOCATION}
        await app.store.finish(await app.claimed(kind), Ending(State.SUCCEEDED, result=result))
    job = await app.store.get(made.uuid, tenant=None)
    assert job is not None
    return job


async def ask(app: BareApp, endpoint: Endpoint, uuid: str, number: str, caller: dict[str, str]) -> Said:
    """The answer, without the names of the job."""
    path = endpoint.path.format(uuid=uuid, id=number)
    async with app.client.request(endpoint.method, path, headers=caller) as response:
        body = (await response.text()).replace(uuid, "UUID").replace(number, "ID")
        return Said(response.status, response.content_type, body)


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda e: f"{e.kind} {e.method} {e.path}")
async def test_a_job_is_its_tenants(app: BareApp, endpoint: Endpoint) -> None:
    """To another tenant, and to an anonymous caller, a job is as unknown as one that never was; its own tenant and
    an admin see it."""
    job = await enqueued(app, endpoint.kind)
    for caller in (STRANGER, ANONYMOUS):
        theirs = await ask(app, endpoint, job.uuid, str(job.id), caller)
        assert theirs.status == (404 if caller or endpoint.takes_anonymous else 401)
        assert theirs == await ask(app, endpoint, UNKNOWN_UUID, UNKNOWN_ID, caller)
    for caller in (OWNER, COLLEAGUE, ADMIN):
        assert (await ask(app, endpoint, job.uuid, str(job.id), caller)).status in (200, 202, 409)


@pytest.mark.parametrize("endpoint", [e for e in ENDPOINTS if e.takes_anonymous], ids=lambda e: f"{e.kind} {e.path}")
async def test_the_jobs_of_anonymous_callers(app: BareApp, endpoint: Endpoint) -> None:
    """What was submitted without a token is the anonymous callers', and nobody's who has one but an admin."""
    job = await enqueued(app, endpoint.kind, "local")
    for caller in (OWNER, STRANGER):
        assert (await ask(app, endpoint, job.uuid, str(job.id), caller)).status == 404
    for caller in (ANONYMOUS, ADMIN):
        assert (await ask(app, endpoint, job.uuid, str(job.id), caller)).status in (200, 202, 409)


async def test_another_tenant_cannot_cancel(app: BareApp) -> None:
    """A cancellation by another tenant changes nothing; by an admin it counts."""
    job = await enqueued(app, "build")
    path = f"/api/v2/jobs/{job.uuid}/cancel"
    for caller, state in ((STRANGER, "queued"), (ANONYMOUS, "queued"), (ADMIN, "cancelled")):
        async with app.client.post(path, headers=caller):
            pass
        found = await app.store.get(job.uuid, tenant=None)
        assert found is not None
        assert found.state == state


@pytest.mark.parametrize("submission", SUBMISSIONS, ids=lambda s: s.path)
async def test_jobs_belong_to_who_sends_them(app: BareApp, submission: Submission) -> None:
    """Tenant, client and submitter of a job are those of the token, an admin's own too; without one it is `local`."""
    person = {"sub": "jane", "email": "jane@company.example"}
    expected = [(OWNER, "1", "7", person), (ADMIN, "3", "7", person | {"sub": "root"})]
    if submission.takes_anonymous:
        expected.append((ANONYMOUS, "local", "", {}))
    for caller, tenant, client, submitter in expected:
        answer = await submitted(app, submission, caller)
        name = answer[submission.member]
        find = (
            app.store.get_by_id(JobId(int(name)), tenant=None) if name.isdecimal() else app.store.get(name, tenant=None)
        )
        job = await find
        assert job is not None
        assert (job.tenant, job.client, job.submitter) == (tenant, client, submitter)


async def submitted(app: BareApp, submission: Submission, caller: dict[str, str]) -> dict[str, Any]:
    content: dict[str, Any] = {"json": submission.content}
    if submission.is_form:
        form = aiohttp.MultipartWriter("form-data")
        for name, value in submission.content.items():
            form.append(value).set_content_disposition("form-data", name=name)
        content = {"data": form}
    headers = caller | {"Accept": "application/json"}
    async with app.client.post(submission.path, headers=headers, **content) as response:
        assert response.status in (200, 201), await response.text()
        answer: dict[str, Any] = await response.json()
        return answer


async def test_the_dispatcher_wants_a_token(app: BareApp) -> None:
    """It takes no anonymous callers, also where the other APIs do, and says so before it looks at anything."""
    paths = [("POST", "/api/v1/job"), *((e.method, e.path.format(id="1")) for e in ENDPOINTS if not e.takes_anonymous)]
    for method, path in paths:
        async with app.client.request(method, path, data=b"no JSON") as response:
            assert response.status == 401
            assert response.headers["WWW-Authenticate"] == "Bearer"
            answer = await response.json()
            assert (answer["code"], answer["details"]) == (2, "JWT is invalid")
    async with app.client.get("/ping", headers=bearer("x")) as response:
        assert (response.status, await response.text()) == (200, "pong\n")


async def test_listings(app: BareApp) -> None:
    """A listing has the caller's tenant's jobs, an admin's has all; `tenant` narrows it and never widens it."""
    jobs: dict[str, list[str]] = {"1": [], "2": [], "local": []}
    for tenant, own in jobs.items():
        own += [(await enqueued(app, kind, tenant)).uuid for kind in ("build", "run")]
    every = [uuid for own in jobs.values() for uuid in own]

    async def listed(query: str, caller: dict[str, str]) -> list[str]:
        found: list[str] = []
        cursor = 0
        while cursor is not None:
            async with app.client.get(f"/api/v2/jobs?limit=2&cursor={cursor}&{query}", headers=caller) as response:
                page = await response.json()
            found += [job["id"] for job in page["jobs"]]
            cursor = page["next"]
        return found

    for caller, tenant in ((OWNER, "1"), (STRANGER, "2"), (ANONYMOUS, "local")):
        assert sorted(await listed("", caller)) == sorted(jobs[tenant])
        assert sorted(await listed(f"tenant={tenant}", caller)) == sorted(jobs[tenant])
        assert len(await listed("kind=run", caller)) == 1
        for other in {"1", "2", "local", "3", "%"} - {tenant}:
            assert await listed(f"tenant={other}", caller) == []
    assert sorted(await listed("", ADMIN)) == sorted(every)
    assert sorted(await listed("state=queued", ADMIN)) == sorted(every)
    assert sorted(await listed("tenant=2", ADMIN)) == sorted(jobs["2"])
    assert len(await listed("kind=run", ADMIN)) == 3


async def test_idempotency_keys_are_each_tenants_own(app: BareApp) -> None:
    """The same key in two tenants makes two jobs, and neither learns of the other's; colleagues share theirs."""
    made: dict[str, str] = {}
    for name, caller in (("owner", OWNER), ("stranger", STRANGER), ("anonymous", ANONYMOUS), ("admin", ADMIN)):
        async with app.client.post("/api/v2/jobs", json=MINIMAL, headers=caller | {"Idempotency-Key": "k"}) as response:
            assert response.status == 201
            made[name] = (await response.json())["id"]
    assert len(set(made.values())) == 4
    async with app.client.post("/api/v2/jobs", json=MINIMAL, headers=COLLEAGUE | {"Idempotency-Key": "k"}) as response:
        assert (response.status, (await response.json())["id"]) == (200, made["owner"])


async def test_another_kinds_endpoint(app: BareApp) -> None:
    """A compatible API knows the jobs of its own kind only, also its tenant's."""
    build, run = await enqueued(app, "build"), await enqueued(app, "run")
    for endpoint in ENDPOINTS:
        other = run if endpoint.kind != "run" else build
        if not endpoint.path.startswith("/api/v2/"):
            assert (await ask(app, endpoint, other.uuid, str(other.id), OWNER)).status == 404


async def test_every_endpoint_is_in_the_table(app: BareApp) -> None:
    """No route that names a job is missing above."""
    known = {endpoint.path.partition("?")[0] for endpoint in ENDPOINTS}
    named = {route.resource.canonical for route in app.routes if route.resource and "{" in route.resource.canonical}
    assert {_unnamed(path) for path in named} <= {_unnamed(path) for path in known}
    assert await app.store.get_by_id(JobId(1), tenant=None) is None


def _unnamed(path: str) -> str:
    head, _, rest = path.partition("{")
    return f"{head}*{rest.partition('}')[2]}"
