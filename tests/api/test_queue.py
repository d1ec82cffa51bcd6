"""The queue through the native API: how long it is, pausing and resuming, and who may."""

import datetime as dt
from pathlib import Path
from typing import Any

import pytest
from bare_app import MINIMAL, BareApp, bare_app
from signing import bearer, by_secret, token

EMPTY = {"queued": 0, "running": 0, "slots": 2, "oldest_queued_at": None, "waiting_for": None, "paused": None}


async def ask(app: BareApp, method: str, path: str = "", body: object = None, **options: Any) -> tuple[int, Any]:
    async with app.client.request(method, f"/api/v2/queue{path}", json=body, **options) as response:
        return response.status, await response.json()


async def test_the_queue_by_kind(app: BareApp) -> None:
    """Of each kind that the daemon has: what waits and runs, the slots, and when the oldest came that could start."""
    first = await app.submit()
    await app.submit(not_before="2990-01-01T00:00:00Z")
    await app.submit(kind="run", spec={"dockerfile": "FROM scratch\n"})
    await app.claimed("run")
    status, queue = await ask(app, "GET")
    assert (status, queue["queue_max"]) == (200, 1000)
    assert queue["kinds"] == {
        "build": EMPTY | {"queued": 2, "oldest_queued_at": first["created_at"]},
        "run": EMPTY | {"running": 1},
        "dispatch": EMPTY,
        "distribute": EMPTY,
    }


async def test_pause_and_resume_of_a_kind(app: BareApp) -> None:
    """A paused kind takes jobs and starts none, says why, since when and by whom, and both answer with the queue."""
    before = dt.datetime.now(dt.UTC)
    status, queue = await ask(app, "POST", "/pause", {"kind": "build", "reason": "the disk is changed"})
    assert (status, queue) == await ask(app, "GET")
    paused = queue["kinds"]["build"]["paused"]
    assert (paused["reason"], paused["by"]) == ("the disk is changed", "anonymous")
    assert before.replace(microsecond=0) <= dt.datetime.fromisoformat(paused["since"]) <= dt.datetime.now(dt.UTC)
    assert queue["kinds"]["build"]["waiting_for"] == "paused: the disk is changed"
    assert queue["kinds"]["run"] == EMPTY
    await app.submit()
    with pytest.raises(ValueError, match="not enough values"):
        await app.claimed()
    status, queue = await ask(app, "POST", "/resume", {"kind": "build"})
    assert (status, queue["kinds"]["build"]["paused"], queue["kinds"]["build"]["queued"]) == (200, None, 1)
    await app.claimed()


async def test_pause_and_resume_of_all(app: BareApp) -> None:
    """No kind, also no body, is all kinds; one of them may go on alone."""
    for body in (None, {}, {"kind": None, "reason": ""}):
        _, queue = await ask(app, "POST", "/pause", body)
        assert [kind["waiting_for"] for kind in queue["kinds"].values()] == ["paused"] * 4
        _, queue = await ask(app, "POST", "/resume", {"kind": "run"})
        assert [name for name, kind in queue["kinds"].items() if kind["paused"] is None] == ["run"]
        _, queue = await ask(app, "POST", "/resume", body and {"kind": None})
        assert all(kind["paused"] is None for kind in queue["kinds"].values())


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"kind": "bild"}, "unknown kind 'bild'"),
        ({"kind": ["build"]}, "`$.kind`"),
        ({"reason": "two\nlines"}, "reason must be one line"),
        ({"reason": "x" * 501}, "reason must be one line of at most 500"),
        ({"resaon": "x"}, "unknown field `resaon`"),
        ([], "Expected `object`"),
    ],
)
async def test_what_is_wrong_pauses_nothing(app: BareApp, body: object, words: str) -> None:
    """400 that names the field."""
    status, problem = await ask(app, "POST", "/pause", body)
    assert (status, problem["code"]) == (400, "invalid")
    assert words in problem["detail"]
    assert await app.store.pauses() == {}


async def test_who_may_pause(tmp_path: Path) -> None:
    """Admins, and whoever has no token where none is required; the pause has the admin's name."""
    for required in (False, True):
        (tmp_path / str(required)).mkdir()
        auth = by_secret(tmp_path, required=required, admin_subjects=("root",))
        async with bare_app(tmp_path / str(required), auth=auth) as app:
            for path in ("/pause", "/resume"):
                status, problem = await ask(app, "POST", path, headers=bearer(token()))
                assert (status, problem["code"]) == (403, "denied")
                assert "auth.admin_subjects" in problem["detail"]
                assert (await ask(app, "POST", path))[0] == (401 if required else 200)
            admin = bearer(token(sub="root", email="root@company.example"))
            _, queue = await ask(app, "POST", "/pause", {"kind": "run"}, headers=admin)
            assert queue["kinds"]["run"]["paused"]["by"] == "root@company.example"


async def test_a_tenant_sees_its_own_jobs_in_the_queue(tmp_path: Path) -> None:
    """Counts and times are of the jobs that the caller may see; pauses are everybody's."""
    async with bare_app(tmp_path, auth=by_secret(tmp_path, admin_subjects=("root",))) as app:
        owner, stranger, admin = (bearer(token(**claims)) for claims in ({}, {"tid": 2}, {"tid": 3, "sub": "root"}))
        async with app.client.post("/api/v2/jobs", json=MINIMAL, headers=owner) as response:
            assert response.status == 201
        await app.store.pause(["build"], reason="why", by="root")
        for headers, count in ((owner, 1), (stranger, 0), (admin, 1)):
            _, queue = await ask(app, "GET", headers=headers)
            build = queue["kinds"]["build"]
            assert (build["queued"], build["oldest_queued_at"] is not None) == (count, count == 1)
            assert build["waiting_for"] == "paused: why"


@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("POST", "/pause"), ("POST", "/resume")])
async def test_no_query_is_taken(app: BareApp, method: str, path: str) -> None:
    """400 for a parameter: what to pause stands in the body."""
    status, problem = await ask(app, method, f"{path}?kind=build")
    assert (status, problem["code"]) == (400, "invalid")
    assert await app.store.pauses() == {}
