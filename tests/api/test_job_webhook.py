"""A job's own webhook, as the native API takes it: kept before the job, secret, and only with it."""

from typing import Any

import pytest
from bare_app import MINIMAL, BareApp

WEBHOOK = {"url": "https://ci.example/hook?token=hunter2", "secret": "a secret of more than twenty-four bytes"}


async def kept(app: BareApp) -> list[str]:
    """The jobs whose webhooks are kept."""
    rows = await app.store._readers.all("select uuid from job_webhook order by uuid")
    return [row["uuid"] for row in rows]


async def test_it_is_kept_with_its_job(app: BareApp) -> None:
    """And shown nowhere: neither in the job nor in clear in the database."""
    job = await app.submit(webhook=WEBHOOK)
    assert await kept(app) == [job["id"]]
    assert "hook" not in str(job)
    files = b"".join(path.read_bytes() for path in app.folder.glob("imagejobd.db*"))
    assert b"hunter2" not in files
    assert b"twenty-four" not in files
    async with app.client.post(f"/api/v2/jobs/{job['id']}/cancel") as response:
        assert response.status in (200, 202)
    (due,) = await app.store.webhooks.due(limit=10)
    assert due.receiver is not None
    assert (due.uuid, due.receiver.url, due.tries) == (job["id"], WEBHOOK["url"], 0)


async def test_a_repeated_request_keeps_the_first_ones(app: BareApp) -> None:
    """The webhook of a request that made no job is forgotten."""
    async with app.client.post(
        "/api/v2/jobs", json=MINIMAL | {"webhook": WEBHOOK}, headers={"Idempotency-Key": "k"}
    ) as response:
        first = (await response.json())["id"]
    async with app.client.post(
        "/api/v2/jobs", json=MINIMAL | {"webhook": WEBHOOK}, headers={"Idempotency-Key": "k"}
    ) as response:
        assert (await response.json())["id"] == first
    assert await kept(app) == [first]
    other = MINIMAL | {"webhook": WEBHOOK, "kind": "run", "spec": {"dockerfile": "FROM scratch\n"}}
    async with app.client.post("/api/v2/jobs", json=other, headers={"Idempotency-Key": "k"}) as response:
        assert response.status == 409
    assert await kept(app) == [first]


@pytest.mark.parametrize(
    ("webhook", "words"),
    [
        ({"url": "gopher://x", "secret": WEBHOOK["secret"]}, "webhook.url"),
        ({"url": WEBHOOK["url"], "secret": "short"}, "webhook.secret"),
        ({"url": WEBHOOK["url"]}, "secret"),
        ({**WEBHOOK, "events": []}, "events"),
        ("https://ci.example/", "webhook"),
    ],
)
async def test_what_cannot_be_used_is_refused(app: BareApp, webhook: Any, words: str) -> None:
    """400 that names the field; no job is made."""
    async with app.client.post("/api/v2/jobs", json=MINIMAL | {"webhook": webhook}) as response:
        body = await response.json()
    assert (response.status, body["code"]) == (400, "invalid")
    assert words in body["detail"]
    assert "hunter2" not in body["detail"]
    assert await kept(app) == []
