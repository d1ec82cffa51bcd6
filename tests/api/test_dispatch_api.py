"""The dispatcher API on the bare application: its words, its checks, and that nothing stays of what is refused."""

import asyncio
import base64
import hashlib
import json
import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from bare_app import SERVER, BareApp, bare_app
from calls import raw_request
from multidict import CIMultiDictProxy
from signing import bearer, by_secret, token

from imagejobd.jobs.dispatch import INLINE_MAX_BYTES, DispatchKind
from imagejobd.model.errors import ErrorCode
from imagejobd.model.job import Job, JobError, JobId, NewJob, State
from imagejobd.store.protocol import Ending

JOB = "/api/v1/job"
OWNER = bearer(token(tid=1, oid=7))
STRANGER = bearer(token(tid=2))
ADMIN = bearer(token(tid=3, sub="root"))
PAYLOAD_MAX_BYTES = 400_000
SMALL = b"FROM scratch\n"
LARGE = os.urandom(300_000)
NOT_UNDERSTOOD = "can't unmarshal inputMessage message"


def md5_of(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def sha256_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def document(data: bytes, **changes: Any) -> dict[str, Any]:
    return {"encoding": "base64", "MD5": md5_of(data), "content": base64.b64encode(data).decode()} | changes


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[BareApp]:
    async with dispatching(tmp_path) as app:
        yield app


def dispatching(folder: Path, **options: Any) -> AbstractAsyncContextManager[BareApp]:
    """The application with a secret for tokens."""
    return bare_app(folder, auth=by_secret(folder, admin_subjects=("root",)), **options)


@pytest.fixture(autouse=True)
def _payloads_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a bound that a test can reach."""
    monkeypatch.setattr(DispatchKind, "payload_max_bytes", PAYLOAD_MAX_BYTES)


async def dispatched(app: BareApp, data: bytes) -> str:
    """A payload that was accepted; its id."""
    async with app.client.post(JOB, json=document(data), headers=OWNER) as response:
        assert response.status == 201, await response.text()
        answer = await response.json()
    assert list(answer) == ["id"]
    return str(answer["id"])


async def job_of(app: BareApp, number: str) -> Job:
    job = await app.store.get_by_id(JobId(int(number)), tenant=None)
    assert job is not None
    return job


async def finished(app: BareApp, data: bytes, media_type: str = "application/octet-stream") -> str:
    """A job that has kept its payload as it is; its id."""
    number = await dispatched(app, data)
    location = {"digest": sha256_of(data), "size_bytes": len(data), "media_type": media_type}
    result = {"what": "file", "location": location}
    await app.store.finish(await app.claimed("dispatch"), Ending(State.SUCCEEDED, result=result))
    return number


async def get(app: BareApp, path: str, headers: dict[str, str] = OWNER) -> tuple[int, Any]:
    async with app.client.get(path, headers=headers) as response:
        assert response.content_type == "application/json"
        return response.status, await response.json()


def kept_files(app: BareApp) -> list[Path]:
    return [path for name in ("blobs", "spool") for path in (app.folder / name).rglob("*") if path.is_file()]


async def nothing_is_kept(app: BareApp) -> None:
    """No file, and no job; an interrupted request may still be letting go."""
    async with asyncio.timeout(5):
        while kept_files(app):
            await asyncio.sleep(0.01)
    assert (await app.store.stats()).queued == {}


@pytest.mark.parametrize("data", [SMALL, LARGE])
async def test_members_that_nobody_knows(app: BareApp, data: bytes) -> None:
    """They are taken, ignored, and named in a header."""
    for changes, warning in (({}, None), ({"name": "x", "Tag": 1}, '299 imagejobd "ignored: name, tag"')):
        async with app.client.post(JOB, json=document(data, **changes), headers=OWNER) as response:
            assert response.status == 201, await response.text()
            assert response.headers.get("Warning") == warning


@pytest.mark.parametrize("size", [0, 1, INLINE_MAX_BYTES, INLINE_MAX_BYTES + 1, 300_000, PAYLOAD_MAX_BYTES])
async def test_a_payload_is_kept(app: BareApp, size: int) -> None:
    """Of any size up to the bound: in the job's row when it is small, else as a file that the job refers to."""
    data = os.urandom(size)
    job = await job_of(app, await dispatched(app, data))
    assert (job.kind, job.tenant, job.client) == ("dispatch", "1", "7")
    stored = {"payload": sha256_of(data), "size_bytes": size, "md5": md5_of(data)}
    if size <= INLINE_MAX_BYTES:
        assert job.spec == stored | {"content": base64.b64encode(data).decode()}
        assert kept_files(app) == []
    else:
        assert job.spec == stored
        assert await app.store.referenced_blobs() == {sha256_of(data)}
        assert app.blobs.path(sha256_of(data)).read_bytes() == data


async def test_a_payload_is_pinned_no_longer_than_its_request(app: BareApp) -> None:
    """Once accepted it is the job's reference that keeps it."""
    await dispatched(app, LARGE)
    assert await app.blobs.collect(await app.store.referenced_blobs(), min_age_s=-1) == 0
    assert await app.blobs.collect(set(), min_age_s=-1) == 1


@pytest.mark.parametrize(
    ("body", "status", "code", "details", "error"),
    [
        ("{", 400, 1, NOT_UNDERSTOOD, "truncated"),
        ("", 400, 1, NOT_UNDERSTOOD, "truncated"),
        ("[1]", 400, 1, NOT_UNDERSTOOD, "must be a JSON object"),
        (json.dumps(document(b"a", encoding="hex")), 400, 1, NOT_UNDERSTOOD, "encoding must be base64"),
        (json.dumps(document(b"a", content="Y")), 400, 1, NOT_UNDERSTOOD, "base64"),
        (
            json.dumps(document(b"a", MD5="F" * 32)),
            400,
            2,
            "Error during md5 validation",
            f"MD5 hash sum is not valid passed: {'F' * 32}, calculated: {md5_of(b'a')}",
        ),
        (json.dumps(document(LARGE, MD5="")), 400, 2, "Error during md5 validation", "passed: , calculated: "),
        (json.dumps(document(LARGE))[:-1], 400, 1, NOT_UNDERSTOOD, "truncated"),
        (json.dumps(document(LARGE)) + "x", 400, 1, NOT_UNDERSTOOD, "not valid JSON"),
        (json.dumps(document(bytes(PAYLOAD_MAX_BYTES + 1))), 413, 1, NOT_UNDERSTOOD, "payload_max_bytes"),
    ],
)
async def test_what_is_refused(app: BareApp, body: str, status: int, code: int, details: str, error: str) -> None:
    """In the words of the document; nothing of it is left."""
    async with app.client.post(JOB, data=body, headers=OWNER) as response:
        assert response.status == status
        assert response.content_type == "application/json"
        answer = await response.json()
    assert list(answer) == ["code", "details", "error"]
    assert (answer["code"], answer["details"]) == (code, details)
    assert error in answer["error"]
    await nothing_is_kept(app)


async def test_too_much_is_refused_before_it_is_sent(app: BareApp) -> None:
    """413 for a Content-Length that no payload within the bound can need, while the client has sent only the head."""
    said = await raw(app, raw_request(JOB, OWNER, length=10 * PAYLOAD_MAX_BYTES))
    assert said.startswith(b"HTTP/1.1 413 ")


async def test_too_much_that_is_no_payload(app: BareApp) -> None:
    """413 for a body whose base64 is line breaks without end, and whose length nobody has said."""

    async def endless() -> AsyncIterator[bytes]:
        yield b'{"encoding": "base64", "content": "'
        for _ in range(10 * PAYLOAD_MAX_BYTES // 10_000):
            yield b"\\n" * 5_000

    async with app.client.post(JOB, data=endless(), headers=OWNER) as response:
        assert response.status == 413
        assert "kinds.dispatch.payload_max_bytes" in (await response.json())["error"]
    await nothing_is_kept(app)


@pytest.mark.parametrize("headers", [{}, bearer("x.y.z"), bearer(token(exp=1))])
async def test_a_token_is_asked_for_before_the_body(app: BareApp, headers: dict[str, str]) -> None:
    """401 code 2 with the head alone, on every endpoint but /ping."""
    said = await raw(app, raw_request(JOB, headers, length=1000))
    assert said.startswith(b"HTTP/1.1 401 ")
    assert json.loads(said.partition(b"\r\n\r\n")[2])["details"] == "JWT is invalid"
    for path in (f"{JOB}/1", f"{JOB}/1/status", "/images/1"):
        status, answer = await get(app, path, headers)
        assert (status, answer["code"], answer["details"]) == (401, 2, "JWT is invalid")
    async with app.client.get("/ping", headers=headers) as response:
        assert (response.status, await response.text()) == (200, "pong\n")


async def raw(app: BareApp, request: bytes) -> bytes:
    """What is said to a client that has sent `request` and waits."""
    reader, writer = await asyncio.open_connection("127.0.0.1", app.port)
    try:
        writer.write(request)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        return head + await reader.readexactly(int(length.split(b":")[1]))
    finally:
        writer.close()


async def test_silence_in_a_body(app: BareApp) -> None:
    """A sender that stops in mid-payload is given up with 408, and nothing stays."""
    body = json.dumps(document(LARGE)).encode()
    said = await raw(app, raw_request(JOB, OWNER, body[:200_000], length=len(body)))
    assert said.startswith(b"HTTP/1.1 408 ")
    await nothing_is_kept(app)


async def test_a_client_that_goes_away(app: BareApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that ends in mid-payload leaves nothing."""
    monkeypatch.setattr("imagejobd.api.dispatch_body.BATCH_BYTES", 50_000)
    monkeypatch.setattr("imagejobd.store.blobs.FLUSH_BYTES", 50_000)
    body = json.dumps(document(LARGE)).encode()
    _, writer = await asyncio.open_connection("127.0.0.1", app.port)
    writer.write(raw_request(JOB, OWNER, body[:350_000], length=len(body)))
    async with asyncio.timeout(5):
        while not kept_files(app):
            await asyncio.sleep(0.005)
        writer.close()
    await nothing_is_kept(app)


async def test_a_slow_body_in_small_pieces(app: BareApp) -> None:
    """However a body is cut on its way, chunked or not, it is taken."""
    body = json.dumps(document(SMALL)).encode()

    async def pieces() -> AsyncIterator[bytes]:
        for byte in body:
            await asyncio.sleep(0)
            yield bytes([byte])

    for headers in (OWNER, OWNER | {"Content-Length": str(len(body))}):
        async with app.client.post(JOB, data=pieces(), headers=headers) as response:
            assert response.status == 201


async def test_too_many(tmp_path: Path) -> None:
    """503 with Retry-After when the queue is full; a payload that came is let go."""
    async with dispatching(tmp_path, queue_max=1) as app:
        await dispatched(app, SMALL)
        for data in (SMALL, LARGE):
            async with app.client.post(JOB, json=document(data), headers=OWNER) as response:
                assert response.status == 503
                assert int(response.headers["Retry-After"]) > 0
                assert list(await response.json()) == ["code", "details", "error"]
        assert await app.blobs.collect(await app.store.referenced_blobs(), min_age_s=-1) == 1


async def test_uploads_take_turns_but_small_ones_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While all of uploads_max are under way a large payload is refused with 503, a small one is taken."""
    monkeypatch.setattr("imagejobd.api.intake.SLOT_TIMEOUT_S", 0.05)
    settings = msgspec.structs.replace(SERVER, uploads_max=1)
    async with dispatching(tmp_path, settings=settings) as app:
        with await app.intake.upload_slots.take("another tenant"):
            async with app.client.post(JOB, json=document(LARGE), headers=OWNER) as response:
                assert response.status == 503
            await dispatched(app, SMALL)
            await dispatched(app, os.urandom(INLINE_MAX_BYTES))
        await dispatched(app, LARGE)


async def test_slow_payloads_leave_turns_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenant whose payloads never end keeps nobody else's waiting, whatever their text is made of."""
    monkeypatch.setattr("imagejobd.api.intake.SLOT_TIMEOUT_S", 0.05)
    settings = msgspec.structs.replace(SERVER, uploads_max=2, body_idle_s=10)
    endless = b'{"encoding": "base64", "content": "' + b"\\n" * 30_000
    async with dispatching(tmp_path, settings=settings) as app:
        opened = [await asyncio.open_connection("127.0.0.1", app.port) for _ in range(3)]
        for _, writer in opened:
            writer.write(raw_request(JOB, OWNER, endless, length=500_000))
        refused = [asyncio.create_task(reader.readline()) for reader, _ in opened]
        done, held = await asyncio.wait(refused, timeout=1)
        assert {task.result() for task in done} == {b"HTTP/1.1 503 Service Unavailable\r\n"}
        assert len(held) == 1
        async with app.client.post(JOB, json=document(LARGE), headers=STRANGER) as response:
            assert response.status == 201
        for _, writer in opened:
            writer.close()
        await asyncio.wait(refused)
        await dispatched(app, LARGE)


async def test_a_job_as_it_goes(app: BareApp) -> None:
    """RUNNING while it waits and while it runs; payload_location comes with SUCCESS, before the status."""
    number = await dispatched(app, SMALL)
    running = {"id": number, "tenant_id": 1, "client_id": 7, "status": "RUNNING"}
    assert await get(app, f"{JOB}/{number}") == (200, running)
    claim = await app.claimed("dispatch")
    assert await get(app, f"{JOB}/{number}") == (200, running)
    assert await get(app, f"{JOB}/{number}/status") == (200, {"status": "RUNNING"})
    location = {"digest": sha256_of(SMALL), "size_bytes": len(SMALL), "media_type": "text/plain"}
    await app.store.finish(claim, Ending(State.SUCCEEDED, result={"what": "file", "location": location}))
    status, answer = await get(app, f"{JOB}/{number}")
    assert status == 200
    assert list(answer.items()) == [
        ("id", number),
        ("tenant_id", 1),
        ("client_id", 7),
        ("payload_location", f"/images/{number}"),
        ("status", "SUCCESS"),
    ]


@pytest.mark.parametrize("state", [State.FAILED, State.CANCELLED])
async def test_a_job_that_came_to_nothing(app: BareApp, state: State) -> None:
    """FAILED, and no image."""
    number = await dispatched(app, LARGE)
    error = JobError(ErrorCode.BUILD_FAILED, "no") if state is State.FAILED else None
    await app.store.finish(await app.claimed("dispatch"), Ending(state, error=error))
    assert await get(app, f"{JOB}/{number}") == (
        200,
        {"id": number, "tenant_id": 1, "client_id": 7, "status": "FAILED"},
    )
    status, answer = await get(app, f"/images/{number}")
    assert (status, answer["code"]) == (404, 0)
    assert state in answer["error"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("987654321", "987654321"),
        ("status", "status"),
        ("9" * 30, "9" * 30),
        ("-1", "-1"),
        ("1x", "1x"),
        ("%D9%A1", "\u0661"),
        ("%1b%5b31m", "?[31m"),
        ("x" * 500, "x" * 80),
    ],
)
async def test_no_such_job(app: BareApp, name: str, words: str) -> None:
    """404 code 0 that repeats the id, bounded and printable."""
    expected = {"code": 0, "details": "error during getting job", "error": f"no job with id: {words}"}
    for path in (f"{JOB}/{name}", f"{JOB}/{name}/status", f"/images/{name}"):
        assert await get(app, path) == (404, expected)


async def test_only_dispatched_jobs_of_the_tenant(app: BareApp) -> None:
    """Another tenant's job and one of another kind are as unknown as one that never was; an admin sees all tenants'."""
    number = await finished(app, SMALL)
    build = await app.store.enqueue(NewJob(kind="build", spec={}, tenant="1"), queue_max=10)
    local = await app.store.enqueue(NewJob(kind="dispatch", spec={}), queue_max=10)
    for path, headers in ((number, STRANGER), (str(build.id), OWNER), (str(local.id), OWNER)):
        status, answer = await get(app, f"{JOB}/{path}", headers)
        assert (status, answer["error"]) == (404, f"no job with id: {path}")
    assert (await get(app, f"{JOB}/{number}", ADMIN))[0] == 200
    assert (await get(app, f"{JOB}/{local.id}", ADMIN))[1]["tenant_id"] == 0


@pytest.mark.parametrize(
    ("method", "path"), [("GET", JOB), ("PUT", JOB), ("DELETE", f"{JOB}/1"), ("POST", "/images/1")]
)
async def test_wrong_method(app: BareApp, method: str, path: str) -> None:
    """405 with what is allowed."""
    async with app.client.request(method, path, headers=OWNER) as response:
        assert response.status == 405
        assert response.headers["Allow"]
        allowed = response.headers["Allow"].replace(",", ", ")
        assert (await response.json())["error"] == f"Method not allowed; allowed here: {allowed}"


async def served(
    app: BareApp, number: str, method: str = "GET", **headers: str
) -> tuple[int, CIMultiDictProxy[str], bytes]:
    sent = OWNER | {name.replace("_", "-"): value for name, value in headers.items()}
    async with app.client.request(method, f"/images/{number}", headers=sent) as response:
        return response.status, response.headers, await response.read()


@pytest.mark.parametrize("data", [SMALL, LARGE, b""], ids=["small", "large", "empty"])
async def test_an_image_is_served(app: BareApp, data: bytes) -> None:
    """Whole, with its length, type and digest; HEAD says the same and sends nothing."""
    number = await finished(app, data, "image/png")
    for method, body in (("GET", data), ("HEAD", b"")):
        status, headers, got = await served(app, number, method)
        assert (status, got) == (200, body)
        assert headers["Content-Length"] == str(len(data))
        assert headers["ETag"] == f'"{sha256_of(data)}"'
        assert headers["Content-Type"] == "image/png"
        assert headers["Content-Disposition"] == f'attachment; filename="job-{number}.png"'
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Accept-Ranges"] == "bytes"


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize(
    ("wanted", "part"),
    [
        ("bytes=0-0", slice(0, 1)),
        ("bytes=3-7", slice(3, 8)),
        ("bytes=5-", slice(5, None)),
        ("bytes=-4", slice(-4, None)),
        ("bytes=-99999999", slice(0, None)),
        ("bytes=2-99999999", slice(2, None)),
        ("BYTES=1-2", slice(1, 3)),
    ],
)
async def test_a_range(app: BareApp, data: bytes, wanted: str, part: slice) -> None:
    """206 with the part, its place and its length; HEAD, which has no ranges, says what GET would without one."""
    number = await finished(app, data)
    start, end, _ = part.indices(len(data))
    status, headers, got = await served(app, number, Range=wanted)
    assert (status, got) == (206, data[part])
    assert headers["Content-Range"] == f"bytes {start}-{end - 1}/{len(data)}"
    assert headers["Content-Length"] == str(end - start)
    status, headers, got = await served(app, number, "HEAD", Range=wanted)
    assert (status, got, headers["Content-Length"]) == (200, b"", str(len(data)))
    assert "Content-Range" not in headers


@pytest.mark.parametrize(
    "wanted",
    [
        "bytes=0-1,3-4",
        "bytes=-",
        "bytes=4-2",
        "pages=1-2",
        "bytes=a-b",
        "",
        "bytes=0x1-2",
        "bytes=\u0661-\u0662",
        "bytes=" + "9" * 30,
    ],
)
async def test_a_range_that_is_none(app: BareApp, wanted: str) -> None:
    """Several ranges at once and what is no range are answered with the whole."""
    status, _, got = await served(app, await finished(app, LARGE), Range=wanted)
    assert (status, got) == (200, LARGE)


@pytest.mark.parametrize("wanted", ["bytes=300000-", "bytes=999999999-999999999", "bytes=-0"])
async def test_a_range_that_is_not_there(app: BareApp, wanted: str) -> None:
    """416 with the size; to HEAD a range is nothing."""
    number = await finished(app, LARGE)
    status, headers, _ = await served(app, number, Range=wanted)
    assert (status, headers["Content-Range"]) == (416, "bytes */300000")
    assert (await served(app, number, "HEAD", Range=wanted))[0] == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"If_None_Match": "<etag>"}, 304),
        ({"If_None_Match": "W/<etag>"}, 304),
        ({"If_None_Match": '"other", <etag>'}, 304),
        ({"If_None_Match": "*"}, 304),
        ({"If_None_Match": '"other"'}, 200),
        ({"If_Match": "<etag>"}, 200),
        ({"If_Match": "*"}, 200),
        ({"If_Match": '"other"'}, 412),
        ({"If_Match": "W/<etag>"}, 412),
        ({"If_Match": "<etag>", "If_None_Match": "<etag>"}, 304),
        ({"Range": "bytes=0-1", "If_Range": "<etag>"}, 206),
        ({"Range": "bytes=0-1", "If_Range": "W/<etag>"}, 200),
        ({"Range": "bytes=0-1", "If_Range": '"other"'}, 200),
        ({"Range": "bytes=0-1", "If_Range": "Wed, 21 Oct 2030 07:28:00 GMT"}, 200),
        ({"Range": "bytes=0-1", "If_None_Match": "<etag>"}, 304),
        ({"Range": "bytes=0-1", "If_Match": '"other"'}, 412),
    ],
)
async def test_conditions(app: BareApp, headers: dict[str, str], status: int) -> None:
    """Conditions go before ranges; only a strong tag that is the content's own lets a part be sent."""
    number = await finished(app, LARGE)
    etag = f'"{sha256_of(LARGE)}"'
    for method in ("GET", "HEAD"):
        sent = {name: value.replace("<etag>", etag) for name, value in headers.items()}
        got, answered, body = await served(app, number, method, **sent)
        assert got == (200 if (method, status) == ("HEAD", 206) else status)
        if status in (304, 412):
            assert (answered["ETag"], body) == (etag, b"")


async def test_an_image_that_retention_has_taken(app: BareApp) -> None:
    """The job stays SUCCESS without a payload_location; its image is 404 code 0 that says why."""
    number = await finished(app, LARGE)
    app.blobs.path(sha256_of(LARGE)).unlink()
    _, answer = await get(app, f"{JOB}/{number}")
    assert answer == {"id": number, "tenant_id": 1, "client_id": 7, "status": "SUCCESS"}
    status, answer = await get(app, f"/images/{number}")
    assert (status, answer["code"]) == (404, 0)
    assert "no longer kept" in answer["error"]


async def test_an_image_before_the_job_has_ended(app: BareApp) -> None:
    """404 code 0 that says so."""
    status, answer = await get(app, f"/images/{await dispatched(app, SMALL)}")
    assert (status, answer["code"]) == (404, 0)
    assert "has not ended" in answer["error"]


async def test_the_native_api_takes_payloads_too(app: BareApp) -> None:
    """As base64 in the JSON, for any caller; the job is the same but for the sender's checksum."""
    content = base64.b64encode(SMALL).decode()
    job = await app.submit(kind="dispatch", spec={}, context=content)
    assert job["spec"] == {"payload": sha256_of(SMALL), "size_bytes": len(SMALL), "content": content}
    async with app.client.post("/api/v2/jobs", json={"kind": "dispatch", "spec": {}}) as response:
        assert response.status == 400
        assert "payload is missing" in (await response.json())["detail"]


POLLS = (f"{JOB}/{{}}", f"{JOB}/{{}}/status")


@pytest.mark.parametrize("required", [False, True])
async def test_pollers_without_a_token(tmp_path: Path, required: bool) -> None:
    """Where the operator allows it, the document's own GET lines work as they are, for any tenant's job."""
    auth = by_secret(tmp_path, required=required, dispatch_reads_anonymous=True)
    async with bare_app(tmp_path, auth=auth) as app:
        number = await dispatched(app, SMALL)
        assert await get(app, f"{JOB}/{number}/status", {}) == (200, {"status": "RUNNING"})
        expected = {"id": number, "tenant_id": 1, "client_id": 7, "status": "RUNNING"}
        assert await get(app, f"{JOB}/{number}", {}) == (200, expected)
        for name in ("987654321", "x"):
            status, body = await get(app, f"{JOB}/{name}/status", {})
            assert (status, body["error"]) == (404, f"no job with id: {name}")


@pytest.mark.parametrize("required", [False, True])
async def test_what_pollers_without_a_token_may_not(tmp_path: Path, required: bool) -> None:
    """Payloads and submitting want a token all the same, and a bad one is refused where none would do."""
    auth = by_secret(tmp_path, required=required, dispatch_reads_anonymous=True)
    async with bare_app(tmp_path, auth=auth) as app:
        number = await finished(app, SMALL)
        status, body = await get(app, f"{JOB}/{number}", {})
        assert (status, body["payload_location"]) == (200, f"/images/{number}")
        assert (await get(app, f"/images/{number}", {}))[0] == 401
        async with app.client.post(JOB, json=document(SMALL)) as response:
            assert response.status == 401
        for path in POLLS:
            for headers in (bearer("x.y.z"), bearer(token(exp=1))):
                assert (await get(app, path.format(number), headers))[0] == 401
            assert (await get(app, path.format(number), STRANGER))[0] == 404
        build = NewJob(kind="build", spec={})
        other = await app.store.enqueue(build, queue_max=10)
        assert (await get(app, f"{JOB}/{other.id}", {}))[0] == 404
        if required:
            assert (await get_status(app, f"/api/v2/jobs/{other.uuid}")) == 401


async def test_pollers_need_a_token_by_default(app: BareApp) -> None:
    """Unless the operator says otherwise nobody reads anything without one."""
    number = await dispatched(app, SMALL)
    for path in POLLS:
        assert (await get(app, path.format(number), {}))[0] == 401


async def get_status(app: BareApp, path: str) -> int:
    async with app.client.get(path) as response:
        return response.status
