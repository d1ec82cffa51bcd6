"""What the daemon's own log tells of requests: who got a job in, and who was refused why, and never too much of it."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from bare_app import MINIMAL, BareApp, bare_app
from signing import bearer, by_secret, token
from structlog.testing import capture_logs

from imagejobd.api.app import REFUSALS_PER_S_MAX

OWNER = bearer(token())
LOGIN = {"username": "somebody", "password": "a password of theirs"}
COPY = {
    "source": {"endpoint": "http://127.0.0.1:1", "image": "team/app", "ref": "1"},
    "targets": [{"endpoint": "http://127.0.0.1:2"}],
}


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[BareApp]:
    async with bare_app(tmp_path, auth=by_secret(tmp_path, required=True)) as app:
        yield app


@pytest.fixture
def lines() -> Iterator[list[Any]]:
    with capture_logs() as lines:
        yield lines


async def status(app: BareApp, method: str, path: str, **options: Any) -> int:
    async with app.client.request(method, path, **options) as response:
        return response.status


@pytest.mark.parametrize(
    ("kind", "spec", "image"),
    [("build", MINIMAL["spec"] | LOGIN, "example.org/app"), ("distribute", COPY, "team/app")],
    ids=["build", "distribute"],
)
async def test_accepted(app: BareApp, lines: list[Any], kind: str, spec: dict[str, Any], image: str) -> None:
    """One line with the job, its image, and for whom it is; the same job asked for again is told apart."""
    headers = OWNER | {"Idempotency-Key": "once"}
    for expected in (201, 200):
        assert await status(app, "POST", "/api/v2/jobs", json={"kind": kind, "spec": spec}, headers=headers) == expected
    accepted, again = lines
    assert (accepted["event"], accepted["log_level"]) == ("job accepted", "info")
    assert again["event"] == "job asked for again under its idempotency key"
    for line in lines:
        told = (line["kind"], line["image"], line["tenant"], line["client"], line["submitter"])
        assert told == (kind, image, "1", "7", "jane@company.example")
    assert accepted["job"] == again["job"]
    assert LOGIN["password"] not in str(lines)


async def test_refused(app: BareApp, lines: list[Any]) -> None:
    """One line with what was asked, by whom, and why it was refused; without the query, and fit to be printed."""
    path = "/api/v2/jobs/no%0Asuch%1B%5B2J?token=secret"
    assert await status(app, "GET", path) == 401
    assert await status(app, "GET", path, headers=OWNER) == 404
    stranger, owner = lines
    assert (stranger["event"], stranger["log_level"]) == ("request refused", "warning")
    assert (stranger["status"], stranger["code"], stranger["peer"]) == (401, "unauthenticated", "127.0.0.1")
    assert "tenant" not in stranger
    assert (owner["method"], owner["status"], owner["code"], owner["tenant"]) == ("GET", 404, "not_found", "1")
    for line in lines:
        assert line["path"] == "/api/v2/jobs/no?such?[2J"
        assert all(text.isprintable() for text in line.values() if isinstance(text, str))
    assert "secret" not in str(lines)


async def test_nothing_of_readers(app: BareApp, lines: list[Any]) -> None:
    """What is only read leaves no line."""
    for path in ("/api/v2/jobs", "/readyz", "/healthz"):
        assert await status(app, "GET", path, headers=OWNER) == 200
    assert lines == []


async def test_a_flood_of_refusals(app: BareApp, lines: list[Any]) -> None:
    """A caller who is refused again and again gets a bounded number of lines a second; the others are counted."""
    asked = 5 * REFUSALS_PER_S_MAX
    assert {await status(app, "GET", "/api/v2/jobs") for _ in range(asked)} == {401}

    def counted() -> int:
        return sum(line.get("count", 1) for line in lines)

    async with asyncio.timeout(20):
        while counted() < asked:
            await asyncio.sleep(0.02)
    assert counted() == asked
    assert len(lines) < asked
