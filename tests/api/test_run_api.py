"""The run API at submission: forms as clients send them, refusals in words, the status of a job wherever it stands.

No job runs here; a worker's part is played by the test.
"""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from bare_app import BareApp, bare_app

from imagejobd.dockerfile.policy import DOCKERFILE_MAX_BYTES
from imagejobd.model.errors import ErrorCode
from imagejobd.model.job import Claim, JobError, NewJob, State, uuid7
from imagejobd.store.protocol import Ending

DOCKERFILE = 'FROM scratch\nCMD ["/measure"]\n'
JSON = {"Accept": "application/json"}
LAUNCHED = "Job was launched with id "
TEXT = "text/plain; charset=utf-8"


def form(*fields: tuple[str, str | bytes, str | None]) -> tuple[bytes, str]:
    """A multipart body of names, values and file names, and its Content-Type."""
    body = b""
    for name, value, filename in fields:
        head = f'--b\r\nContent-Disposition: form-data; name="{name}"'
        head += f'; filename="{filename}"\r\nContent-Type: application/octet-stream' if filename else ""
        body += head.encode() + b"\r\n\r\n" + (value.encode() if isinstance(value, str) else value) + b"\r\n"
    return body + b"--b--\r\n", "multipart/form-data; boundary=b"


async def post(app: BareApp, *fields: tuple[str, str | bytes, str | None], **headers: str) -> tuple[int, str]:
    body, content_type = form(*fields)
    return await send(app, body, **{"Content-Type": content_type}, **headers)


async def send(app: BareApp, body: bytes, **headers: str) -> tuple[int, str]:
    """Status and text of an answer, which is one line."""
    async with app.client.post("/run", data=body, headers=headers) as response:
        text = await response.text()
        assert "\n" not in text
        return response.status, text


async def launch(app: BareApp, dockerfile: str = DOCKERFILE) -> str:
    status, text = await post(app, ("file", dockerfile, None))
    assert (status, text[: len(LAUNCHED)]) == (200, LAUNCHED), text
    return text.removeprefix(LAUNCHED)


async def ask(app: BareApp, job: str) -> tuple[int, str]:
    async with app.client.get("/status", params={"id": job}) as response:
        assert response.headers["Content-Type"] == TEXT
        return response.status, await response.text()


async def ask_json(app: BareApp, job: str) -> tuple[int, str]:
    async with app.client.get("/status", params={"id": job}, headers=JSON) as response:
        assert response.headers["Content-Type"] == "application/json; charset=utf-8"
        return response.status, await response.text()


async def claimed(app: BareApp) -> Claim:
    return await app.claimed("run")


@pytest.mark.parametrize(
    "fields",
    [
        [("file", DOCKERFILE, None)],
        [("file", DOCKERFILE, "Dockerfile")],
        [("file", DOCKERFILE, "../../etc/passwd")],
        [("token", "x", None), ("file", DOCKERFILE, None), ("submit", "Run it", None)],
        [("File", "FROM other", None), ("file", DOCKERFILE, None), ("", "", None)],
    ],
    ids=["value", "file part", "odd file name", "other fields", "other case"],
)
async def test_launch(app: BareApp, fields: list[tuple[str, str, str | None]]) -> None:
    """The field `file` is the Dockerfile, as a value or as a file of any name; other fields do not matter."""
    status, text = await post(app, *fields)
    assert status == 200
    job = (await claimed(app)).job
    assert text == f"{LAUNCHED}{job.uuid}"
    assert job.kind == "run"
    assert job.spec == {"dockerfile": DOCKERFILE}


async def test_launch_in_json(app: BareApp) -> None:
    """A client that asks for JSON gets the id in an object."""
    status, text = await post(app, ("file", DOCKERFILE, None), **JSON)
    assert status == 200
    assert text == f'{{"id":"{(await claimed(app)).job.uuid}"}}'


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data; boundary=---011000010111000001101001; boundary=b",
        'multipart/form-data; boundary="wrong"; charset=utf-8; boundary="b"',
        'multipart/form-data;boundary=x;BOUNDARY=b;charset="utf-8"',
        "multipart/mixed; boundary=b",
    ],
)
async def test_of_several_boundaries_the_last_counts(app: BareApp, content_type: str) -> None:
    """A Content-Type to which a client has added its own boundary is understood."""
    body, _ = form(("file", DOCKERFILE, None))
    status, text = await send(app, body, **{"Content-Type": content_type})
    assert (status, text[: len(LAUNCHED)]) == (200, LAUNCHED), text


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ([], "the form has no field named file; send a multipart/form-data body"),
        ([("dockerfile", DOCKERFILE, None)], "the form has no field named file"),
        ([("file", "", None)], "the field file is empty"),
        ([("file", " \n", None)], "is empty"),
        ([("file", b"FROM scratch\n# \xff", None)], "the Dockerfile is not UTF-8: invalid start byte at byte 15"),
        ([("file", DOCKERFILE, None), ("file", DOCKERFILE, None)], "the form has two fields named file"),
        ([("x", "", None)] * 33, "the form has more than 32 parts"),
        ([("x", "y" * 600_000, None)] * 2, "the form's other fields are larger than 1048576 bytes"),
    ],
    ids=["no parts", "no file", "empty", "blank", "not UTF-8", "two files", "many parts", "large other parts"],
)
async def test_bad_forms(app: BareApp, fields: list[tuple[str, str | bytes, str | None]], reason: str) -> None:
    """400, with the reason in one line of text, or in JSON."""
    status, text = await post(app, *fields)
    assert status == 400
    assert reason in text
    status, text = await post(app, *fields, **JSON)
    assert status == 400
    assert reason in json.loads(text)["error"]


@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "application/json", "text/plain"])
async def test_not_multipart(app: BareApp, content_type: str) -> None:
    """What is no multipart body is told what to send."""
    status, text = await send(app, b"file=FROM+scratch", **{"Content-Type": content_type})
    assert status == 400
    assert text.startswith("the request is not multipart; send a multipart/form-data body")


async def test_a_large_dockerfile(app: BareApp) -> None:
    """Over a megabyte is 413, before it is read to its end."""
    async with app.client.post(
        "/run",
        data=form(("file", "#" * (DOCKERFILE_MAX_BYTES + 1), None))[0],
        headers={"Content-Type": "multipart/form-data; boundary=b"},
    ) as response:
        assert response.status == 413
        assert await response.text() == "the part 'file' is larger than 1048576 bytes; no Dockerfile needs that"


@pytest.mark.parametrize(
    ("dockerfile", "line"),
    [
        ("FROM scratch\n\nRUNN true\n", "line 3"),
        ("FROM scratch\nADD\n", "line 2"),
        ("# syntax=example.org/frontend\nFROM scratch\n", "line 1"),
        ("CMD true\n", "line 1"),
        ("FROM scratch\nCOPY model /\n", "line 2"),
    ],
    ids=["unknown instruction", "no arguments", "frontend", "no FROM", "no context"],
)
async def test_a_dockerfile_that_is_refused(app: BareApp, dockerfile: str, line: str) -> None:
    """422 names the line at once, and no job is kept."""
    for headers in ({}, JSON):
        status, text = await post(app, ("file", dockerfile, None), **headers)
        assert status == 422, text
        assert line in text
    async with app.client.get("/api/v2/jobs") as response:
        assert (await response.json())["jobs"] == []


async def test_full(tmp_path: Path) -> None:
    """503 with Retry-After, in text and in JSON."""
    body, content_type = form(("file", DOCKERFILE, None))
    async with bare_app(tmp_path, queue_max=1) as app:
        await app.submit()
        for accept in ("*/*", "application/json"):
            headers = {"Content-Type": content_type, "Accept": accept}
            async with app.client.post("/run", data=body, headers=headers) as response:
                assert response.status == 503
                assert int(response.headers["Retry-After"]) > 0
                assert "queue_max" in await response.text()


async def test_wrong_methods(app: BareApp) -> None:
    """405 in a line of text that says nothing of other APIs."""
    for method, path, allow in (("GET", "/run", "POST"), ("POST", "/status", "GET,HEAD")):
        async with app.client.request(method, path) as response:
            expected = f"Method not allowed; allowed here: {allow.replace(',', ', ')}"
            assert (response.status, await response.text()) == (405, expected)
            assert response.headers["Allow"] == allow
            assert response.headers["Content-Type"] == TEXT


async def test_words_for_every_step(app: BareApp) -> None:
    """Queued, Building, Running: 202 while a job has not ended, also between two attempts."""
    job = await launch(app)
    assert await ask(app, job) == (202, f"Job {job} is Queued")
    claim = await claimed(app)
    assert await ask(app, job) == (202, f"Job {job} is Building")
    for phase, word in (("building", "Building"), ("running", "Running")):
        await app.store.enter_phase(claim, phase)
        assert await ask(app, job) == (202, f"Job {job} is {word}")
    error = JobError(ErrorCode.ENGINE_UNAVAILABLE, "the engine is away")
    await app.store.retry(claim, error, not_before_ms=0)
    assert await ask(app, job) == (202, f"Job {job} is Running")
    assert await ask_json(app, job) == (
        202,
        f'{{"id":"{job}","status":"Running","phase":null,"perf":null,"metrics":null,"error":null}}',
    )
    claim = await claimed(app)
    for phase, word in (("building", "Building"), ("collecting", "Running"), ("purging", "Running")):
        await app.store.enter_phase(claim, phase)
        assert await ask(app, job.upper()) == (202, f"Job {job} is {word}")


@pytest.mark.parametrize(
    ("accept", "is_json"),
    [
        ("application/json", True),
        ("Application/JSON; charset=utf-8", True),
        ("application/json, */*;q=0.8", True),
        ("*/*", False),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", False),
        ("application/json, text/plain, */*", False),
        ("application/problem+json", False),
        ("application/json-patch+json", False),
        ("", False),
    ],
    ids=["named", "in capitals", "before others", "curl", "browser", "axios", "another type", "a longer name", "empty"],
)
async def test_json_for_those_who_ask_for_it(app: BareApp, accept: str, is_json: bool) -> None:
    """Who does not name it, or names text as well, gets the text of the original."""
    async with app.client.get("/status?id=x", headers={"Accept": accept}) as response:
        assert response.content_type == ("application/json" if is_json else "text/plain")


@pytest.mark.parametrize(
    ("perf", "shown"),
    [
        (0.99, "0.990000"),
        (1.0, "1.000000"),
        (-12345.6789012, "-12345.678901"),
        (1e-9, "0.000000"),
        (1e21, f"{10**21}.000000"),
    ],
)
async def test_successful(app: BareApp, perf: float, shown: str) -> None:
    """200 with six decimals and no line break; in JSON the number as it is and the whole object."""
    job = await launch(app)
    result = {"perf": perf, "metrics": {"perf": perf, "loss": [0.1, 0.2]}}
    await app.store.finish(await claimed(app), Ending(State.SUCCEEDED, result=result))
    assert await ask(app, job) == (200, f"Job {job} was Successful - Model performance : {shown}")
    status, text = await ask_json(app, job)
    body = json.loads(text)
    assert status == 200
    assert list(body) == ["id", "status", "phase", "perf", "metrics", "error"]
    assert body == {"id": job, "status": "Successful", "phase": None, "error": None} | result


async def test_failed(app: BareApp) -> None:
    """200 with the reason, folded into one line and bounded; in JSON as it is."""
    message = (
        "the container exited with code 3; the last that it printed:\n\tboom\r\n\x1b[31mred\n" + "x " * 2000 + "the end"
    )
    job = await launch(app)
    await app.store.finish(await claimed(app), Ending(State.FAILED, error=JobError(ErrorCode.RUN_FAILED, message)))
    status, text = await ask(app, job)
    reason = "the container exited with code 3; the last that it printed: boom [31mred x x x"
    assert " … " in text
    assert status == 200
    assert text.startswith(f"Job {job} was Failed - {reason}")
    assert text.isprintable()
    assert text.endswith(" x x the end")
    assert len(text) < 1100
    body: dict[str, Any] = json.loads((await ask_json(app, job))[1])
    assert (body["status"], body["error"], body["perf"]) == ("Failed", message, None)


async def test_cancelled(app: BareApp) -> None:
    """A cancelled job has failed, for this API."""
    job = await launch(app)
    async with app.client.post(f"/api/v2/jobs/{job}/cancel") as response:
        assert response.status == 200
    assert await ask(app, job) == (200, f"Job {job} was Failed - cancelled")


async def test_unknown_jobs(app: BareApp) -> None:
    """404 for what is no run, 400 for no id; the id comes back in one bounded, printable line."""
    build = (await app.submit())["id"]
    for job in (uuid7(), build, "1", "x"):
        assert await ask(app, job) == (404, f"Job with id {job} was not found")
    assert await ask(app, "a\r\nb\0c\u202ed") == (404, "Job with id a b c d was not found")
    status, text = await ask(app, "x" * 5000)
    assert (status, text) == (404, f"Job with id {'x' * 80} was not found")
    assert await ask(app, "") == (400, "the request names no job; ask for /status?id=…")
    async with app.client.get("/status") as response:
        assert response.status == 400
    assert await ask_json(app, "x") == (404, '{"error":"Job with id x was not found"}')


async def test_another_tenants_job(app: BareApp) -> None:
    """A job of a tenant that the caller does not see is as unknown as any."""
    job = await app.store.enqueue(NewJob(kind="run", tenant="other", spec={"dockerfile": DOCKERFILE}), queue_max=10)
    assert await ask(app, job.uuid) == (404, f"Job with id {job.uuid} was not found")


async def test_head(app: BareApp) -> None:
    """HEAD has the status of GET and no body."""
    job = await launch(app)
    async with app.client.head("/status", params={"id": job}) as response:
        assert response.status == 202
        assert await response.read() == b""


async def test_native_api_has_the_kind(app: BareApp) -> None:
    """A run may be submitted through the native API; a context has no place in it."""
    submission = {"kind": "run", "spec": {"dockerfile": DOCKERFILE}}
    async with app.client.post("/api/v2/jobs", json=submission) as response:
        assert response.status == 201
        job = (await response.json())["id"]
    assert await ask(app, job) == (202, f"Job {job} is Queued")
    async with app.client.post("/api/v2/jobs", json=submission | {"context": "AAAA"}) as response:
        assert response.status == 400
        assert "a run has no context" in (await response.json())["detail"]


async def test_listings_leave_the_metrics_out(app: BareApp) -> None:
    """A page of jobs carries each perf, and neither Dockerfiles nor metrics."""
    await launch(app)
    result = {"perf": 0.5, "metrics": {"perf": 0.5, "points": [1] * 1000}}
    await app.store.finish(await claimed(app), Ending(State.SUCCEEDED, result=result))
    async with app.client.get("/api/v2/jobs", params={"kind": "run"}) as response:
        [job] = (await response.json())["jobs"]
    assert job["result"] == {"perf": 0.5}
    assert job["spec"] == {}


async def test_results_in_sql_whatever_they_are(app: BareApp) -> None:
    """The view `run_result` reads every row: with a result, without one, and with one that a person has spoilt."""
    jobs = [await launch(app) for _ in range(3)]
    for perf in (0.5, 1):
        await app.store.finish(
            await claimed(app), Ending(State.SUCCEEDED, result={"perf": perf, "metrics": {"a": [1]}})
        )
    with closing(sqlite3.connect(app.folder / "imagejobd.db")) as db:
        db.execute("update job set result = '{spoilt' where uuid = ?", (jobs[1],))
        rows = db.execute("select uuid, state, perf, metrics from run_result order by job_id").fetchall()
    assert rows == [
        (jobs[0], "succeeded", 0.5, '{"a":[1]}'),
        (jobs[1], "succeeded", None, None),
        (jobs[2], "queued", None, None),
    ]
