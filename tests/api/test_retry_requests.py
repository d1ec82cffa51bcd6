"""Trying jobs again through the native API: one, with new secrets, and many by a filter."""

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest
from bare_app import MINIMAL, BareApp, bare_app
from signing import bearer, by_secret, token

from imagejobd.api import retry
from imagejobd.model.errors import ErrorCode
from imagejobd.model.job import JobError, NewJob, State
from imagejobd.store.protocol import Ending
from imagejobd.store.sqlite import listing

AWAY = JobError(ErrorCode.REGISTRY_UNAVAILABLE, "the registry answered 503")
BROKEN = JobError(ErrorCode.BUILD_FAILED, "exit code 1")
LOGIN = {"username": "u", "password": "p4ssw0rd"}
URL = "https://user:s3cret@files.example/app.tar?sig=abc"


async def ask(app: BareApp, path: str, body: object = None, **options: Any) -> tuple[int, Any]:
    async with app.client.post(f"/api/v2/jobs/{path}", json=body, **options) as response:
        return response.status, await response.json()


async def failed(app: BareApp, error: JobError = AWAY, **changes: Any) -> str:
    """A job that has failed."""
    job = await app.submit(**changes)
    await app.store.finish(await app.claimed(job["kind"]), Ending(State.FAILED, error=error))
    uuid: str = job["id"]
    return uuid


async def test_a_retry_takes_the_secrets_that_were_deleted(app: BareApp) -> None:
    """Without them it says which there were; with them the new job has them, and no answer and no file shows them."""
    uuid = await failed(app, spec={"image": "example.org/app", "tar_url": URL, **LOGIN})
    status, problem = await ask(app, f"{uuid}/retry")
    assert (status, problem["code"]) == (409, "conflict")
    assert "as secrets: password, tar_url" in problem["detail"]
    secrets = {"password": "n3w-p4ssw0rd", "tar_url": URL.replace("abc", "n3w-s1gnature")}
    status, job = await ask(app, f"{uuid}/retry", {"secrets": secrets})
    assert (status, job["retry_of"], job["secret_names"]) == (201, uuid, ["password", "tar_url"])
    assert "n3w-" not in str(job)
    claim = await app.claimed()
    assert {name: secret.reveal() for name, secret in claim.secrets.items()} == secrets
    for file in app.folder.rglob("imagejobd.db*"):
        assert b"n3w-" not in file.read_bytes()


async def test_a_distribution_takes_its_auth_blocks_again(app: BareApp) -> None:
    """Each by the name of its secret, as it stands in the request of a new job, or that as a text."""
    auth = {"basicauth": {"user": "u", "password": "p4ssw0rd"}}
    spec = {
        "source": {"endpoint": "https://s.example", "image": "a", "ref": "1"},
        "targets": [{"endpoint": "https://t.example", "auth": auth}],
    }
    uuid = await failed(app, kind="distribute", spec=spec)
    assert "as secrets: auth.target.0" in (await ask(app, f"{uuid}/retry"))[1]["detail"]
    status, problem = await ask(app, f"{uuid}/retry", {"secrets": {"auth.target.0": {"basicauth": {"user": "u"}}}})
    assert (status, problem["detail"]) == (400, "secrets.auth.target.0.basicauth.password: missing")
    new = {"basicauth": {"user": "u", "password": "n3w-p4ssw0rd"}}
    for given in (new, json.dumps(new)):
        status, job = await ask(app, f"{uuid}/retry", {"secrets": {"auth.target.0": given}})
        assert (status, job["retry_of"]) == (201, uuid)
        claim = await app.claimed("distribute")
        assert "n3w-p4ssw0rd" in claim.secrets["auth.target.0"].reveal()
        await app.store.finish(claim, Ending(State.FAILED, error=AWAY))
        uuid = job["id"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"secrets": {"password": "x", "pasword": "s3cret-value"}}, "no secret 'pasword'; it has: password"),
        ({"secrets": {"password": 17}}, "secrets.password must be a text"),
        ({"secrets": {"password": ""}}, "secrets.password must be a text"),
        ({"secrets": {"password": "s3cret-value" * 1000}}, "secrets.password must be a text"),
        ({"secrets": "s3cret-value"}, "Expected `object`"),
        ({"secret": {}}, "unknown field `secret`"),
        ([], "Expected `object`"),
    ],
)
async def test_refused_secrets_are_named_and_not_quoted(app: BareApp, body: object, words: str) -> None:
    """400 with the name of what is wrong, and never its value."""
    uuid = await failed(app, spec=MINIMAL["spec"] | LOGIN)
    status, problem = await ask(app, f"{uuid}/retry", body)
    assert (status, problem["code"]) == (400, "invalid")
    assert words in problem["detail"]
    assert "s3cret-value" not in str(problem)


async def test_another_url_is_no_secret_of_the_job(app: BareApp) -> None:
    """What is fetched is what the job shows; only what it hides may be new."""
    uuid = await failed(app, spec={"image": "example.org/app", "tar_url": URL})
    status, problem = await ask(app, f"{uuid}/retry", {"secrets": {"tar_url": "https://user:x@evil.example/app.tar"}})
    assert (status, problem["code"]) == (400, "invalid")
    assert "another URL than the job's" in problem["detail"]


async def test_a_job_is_tried_again_once(app: BareApp) -> None:
    """A second retry is refused and names the first, which is the one to try again now."""
    uuid = await failed(app)
    _, job = await ask(app, f"{uuid}/retry")
    status, problem = await ask(app, f"{uuid}/retry")
    assert (status, problem["code"]) == (409, "conflict")
    assert job["id"] in problem["detail"]


async def test_many_are_tried_again_from_old_to_new(app: BareApp) -> None:
    """All that failed with a code since a time, with labels and priority; not those that were tried again already."""
    await failed(app)
    before = dt.datetime.now(dt.UTC).isoformat()
    uuids = [await failed(app, labels={"n": str(n)}, priority=n) for n in range(3)]
    await failed(app, BROKEN)
    wish = {"code": "registry_unavailable", "since": before, "kind": "build"}
    status, answer = await ask(app, "retry", wish)
    assert (status, answer["refused"], answer["next"]) == (200, [], None)
    assert [one["retry_of"] for one in answer["retried"]] == uuids
    for number, one in enumerate(answer["retried"]):
        async with app.client.get(f"/api/v2/jobs/{one['id']}") as response:
            job = await response.json()
        assert (job["state"], job["labels"], job["priority"]) == ("queued", {"n": str(number)}, number)
    assert (await ask(app, "retry", wish))[1] == {"retried": [], "refused": [], "next": None}


async def test_many_are_tried_again_in_pieces(app: BareApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """`limit` bounds a request, and `next` goes on; an empty body is everything that failed."""
    monkeypatch.setattr(retry, "AT_ONCE", 2)
    uuids = [await failed(app) for _ in range(5)]
    cancelled = await app.submit()
    await app.store.request_cancel(cancelled["id"], tenant=None)
    _, first = await ask(app, "retry", {"limit": 3})
    _, rest = await ask(app, "retry", {"limit": 3, "cursor": first["next"]})
    assert [one["retry_of"] for one in first["retried"] + rest["retried"]] == uuids
    assert rest["next"] is None
    assert (await ask(app, "retry"))[1]["retried"] == []
    _, both = await ask(app, "retry", {"state": ["failed", "cancelled"]})
    assert [one["retry_of"] for one in both["retried"]] == [cancelled["id"]]


async def test_a_request_of_many_looks_only_so_far(app: BareApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where few of a long history fit, the answer may be empty, and `next` goes on until all were looked at."""
    monkeypatch.setattr(listing, "SCAN_MAX", 1)
    monkeypatch.setattr(retry, "LOOKS_MAX", 2)
    for _ in range(5):
        await failed(app)
    wanted = await failed(app, BROKEN)
    answers = [(await ask(app, "retry", {"code": "build_failed"}))[1]]
    while answers[-1]["next"] is not None:
        answers.append((await ask(app, "retry", {"code": "build_failed", "cursor": answers[-1]["next"]}))[1])
    assert [[one["retry_of"] for one in answer["retried"]] for answer in answers] == [[], [], [wanted], []]


async def test_what_cannot_be_tried_again_is_said_and_stops_nobody(app: BareApp) -> None:
    """A job without its secrets is refused by name, and those behind it are tried again."""
    secret = await failed(app, spec=MINIMAL["spec"] | LOGIN)
    plain = await failed(app)
    _, answer = await ask(app, "retry", {})
    assert [one["retry_of"] for one in answer["retried"]] == [plain]
    [refusal] = answer["refused"]
    assert (refusal["id"], refusal["code"]) == (secret, "conflict")
    assert "as secrets: password" in refusal["detail"]


async def test_a_full_queue_ends_a_retry_of_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fits is done, and the first that does not is named; the same request does the rest when there is room."""
    monkeypatch.setattr(retry, "AT_ONCE", 1)
    async with bare_app(tmp_path, queue_max=2) as app:
        uuids = [await failed(app) for _ in range(4)]
        _, first = await ask(app, "retry", {})
        assert [one["retry_of"] for one in first["retried"]] == uuids[:2]
        assert [(one["id"], one["code"]) for one in first["refused"]] == [(uuids[2], "queue_full")]
        _, none = await ask(app, "retry", {})
        assert (none["retried"], [one["id"] for one in none["refused"]]) == ([], [uuids[2]])
        assert first["next"] is none["next"] is None
        for one in first["retried"]:
            await app.store.request_cancel(one["id"], tenant=None)
        _, rest = await ask(app, "retry", {})
        assert [one["retry_of"] for one in rest["retried"]] == uuids[2:]


async def test_nobody_tries_another_tenants_jobs_again(tmp_path: Path) -> None:
    """Whichever tenant is asked for; an admin may name one, or none for all. The retry stays its owner's."""
    async with bare_app(tmp_path, auth=by_secret(tmp_path, admin_subjects=("root",))) as app:
        for tenant in ("1", "2", "3"):
            await app.store.enqueue(NewJob(**MINIMAL, tenant=tenant, submitter={"sub": "jane"}), queue_max=9)
            await app.store.finish(await app.claimed(), Ending(State.FAILED, error=AWAY))
        stranger, admin = bearer(token(tid=2)), bearer(token(tid=9, sub="root"))
        for headers, body, tenants in (
            (stranger, {"tenant": "1"}, []),
            (stranger, {}, ["2"]),
            (admin, {"tenant": "1"}, ["1"]),
            (admin, {}, ["3"]),
        ):
            _, answer = await ask(app, "retry", body, headers=headers)
            jobs = [await app.store.get(one["id"], tenant=None) for one in answer["retried"]]
            assert [job and (job.tenant, job.submitter) for job in jobs] == [(one, {"sub": "jane"}) for one in tenants]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"state": ["queued"]}, "state must be failed, cancelled or both"),
        ({"state": []}, "state must be failed"),
        ({"kind": "bild"}, "unknown kind 'bild'"),
        ({"code": "bad_luck"}, "`$.code`"),
        ({"since": "2026-01-01T00:00:00"}, "since must carry a time zone"),
        ({"label": "a"}, "label must be written name=value"),
        ({"limit": 0}, "limit must lie between 1 and 1000"),
        ({"limit": 1001}, "limit must lie between 1 and 1000"),
        ({"cursor": "17"}, "cursor must be the next"),
        ({"cursor": "²-³"}, "cursor must be the next"),
        ({"secrets": {}}, "unknown field `secrets`"),
        ("failed", "Expected `object`"),
    ],
)
async def test_a_filter_that_is_wrong_retries_nothing(app: BareApp, body: object, words: str) -> None:
    """400 that names the field."""
    await failed(app)
    status, problem = await ask(app, "retry", body)
    assert (status, problem["code"]) == (400, "invalid")
    assert words in problem["detail"]
    assert (await app.store.stats()).queued == {}
