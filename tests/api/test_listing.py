"""Finding jobs through the native API: the filters, what they refuse, and whose jobs they find."""

import datetime as dt
from pathlib import Path
from typing import Any

import pytest
from bare_app import MINIMAL, BareApp, bare_app
from signing import bearer, by_secret, token

COPY = {
    "source": {"endpoint": "https://Source.example:443", "images": ["team/app:1", "team/tool@sha256:" + "0" * 64]},
    "targets": [{"endpoint": "http://target.example:5000"}],
}


async def listed(app: BareApp, query: str, **options: Any) -> list[str]:
    async with app.client.get(f"/api/v2/jobs?{query}", **options) as response:
        assert response.status == 200, await response.text()
        return [job["id"] for job in (await response.json())["jobs"]]


async def test_jobs_are_found_by_image(app: BareApp) -> None:
    """By what they make and what they copy, as a whole or without the tag, however the name is written."""
    hub = await app.submit(spec=MINIMAL["spec"] | {"image": "app"})
    tagged = await app.submit(spec=MINIMAL["spec"] | {"image": "R.example:443/team/app:1", "tags": ["2"]})
    copy = await app.submit(kind="distribute", spec=COPY)
    found = {
        query: await listed(app, f"image={query}")
        for query in (
            *("app", "docker.io/library/app:latest", "app:1", "r.example/team/app", "r.example/team/app:2"),
            *("r.example/team", "source.example/team/app", "source.example/team/app:2", "source.example/team/tool"),
            *(f"source.example/team/tool@sha256:{'0' * 64}", "target.example:5000/team/app:1", "team/app"),
        )
    }
    assert found == {
        "app": [hub["id"]],
        "docker.io/library/app:latest": [hub["id"]],
        "app:1": [],
        "r.example/team/app": [tagged["id"]],
        "r.example/team/app:2": [tagged["id"]],
        "r.example/team": [],
        "source.example/team/app": [copy["id"]],
        "source.example/team/app:2": [],
        "source.example/team/tool": [copy["id"]],
        f"source.example/team/tool@sha256:{'0' * 64}": [copy["id"]],
        "target.example:5000/team/app:1": [copy["id"]],
        "team/app": [],
    }


async def test_several_states_and_kinds(app: BareApp) -> None:
    """With commas between them, each of the list counts."""
    build, copy = await app.submit(), await app.submit(kind="distribute", spec=COPY)
    run = await app.submit(kind="run", spec={"dockerfile": "FROM scratch\n"})
    await app.store.request_cancel(run["id"], tenant=None)
    await app.claimed()
    assert await listed(app, "state=running,cancelled") == [run["id"], build["id"]]
    assert await listed(app, "kind=build,distribute") == [copy["id"], build["id"]]
    assert await listed(app, "kind=run,distribute&state=queued,running") == [copy["id"]]


async def test_times(app: BareApp) -> None:
    """From one moment, and before another, in any zone; a plus sign that nobody encoded is one all the same."""
    job = await app.submit()
    created = dt.datetime.fromisoformat(job["created_at"])
    later = created + dt.timedelta(milliseconds=1)
    india = created.astimezone(dt.timezone(dt.timedelta(hours=5, minutes=30)))
    assert await listed(app, f"created_after={created.isoformat()}") == [job["id"]]
    assert await listed(app, f"created_after={india.isoformat()}") == [job["id"]]
    assert await listed(app, f"created_after={later.isoformat()}") == []
    assert await listed(app, f"created_before={created.isoformat().replace('+00:00', 'Z')}") == []
    assert await listed(
        app, f"created_before={later.isoformat().replace('+', '%2B')}&created_after=1970-01-01T00:00Z"
    ) == [job["id"]]


async def test_submitters_are_found_within_what_a_caller_sees(tmp_path: Path) -> None:
    """By any claim on the person; another tenant's jobs of the same person, or image, are nobody else's to find."""
    jane, namesake = bearer(token()), bearer(token(tid=2))
    async with bare_app(tmp_path, auth=by_secret(tmp_path, admin_subjects=("root",))) as app:
        jobs = []
        for headers in (jane, namesake):
            async with app.client.post("/api/v2/jobs", json=MINIMAL, headers=headers) as response:
                jobs.append((await response.json())["id"])
        for query in ("submitter=jane", "submitter=jane@company.example", "image=example.org/app"):
            assert await listed(app, query, headers=jane) == jobs[:1]
            assert await listed(app, f"{query}&tenant=2", headers=jane) == []
            assert await listed(app, query, headers=bearer(token(sub="root"))) == jobs[::-1]
        assert await listed(app, "submitter=joe", headers=jane) == []


@pytest.mark.parametrize("path", ["", "/1/cancel", "/1/retry", "/retry"])
async def test_orders_take_no_query(app: BareApp, path: str) -> None:
    """400 that names the parameter, and nothing is done: what is ordered stands in the body."""
    await app.submit()
    async with app.client.post(f"/api/v2/jobs{path}?dry_run=1", json=MINIMAL) as response:
        assert response.status == 400
        assert "unknown query parameter 'dry_run'" in (await response.json())["detail"]
    assert (await app.store.stats()).queued == {"build": 1}


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("state=queued,sleeping", "'sleeping' is not one of"),
        ("kind=build,", "unknown kind ''"),
        ("image=Not%20A%20Name", "image name"),
        ("image=" + "a" * 600, "600 characters long"),
        ("created_after=yesterday", "created_after must be a time, for example"),
        ("created_after=2026-01-01T00:00:00", "created_after must carry a time zone"),
        ("created_before=0001-01-01T00:00:00%2B14:00", "created_before must"),
        ("colour=red", "unknown query parameter 'colour'"),
    ],
)
async def test_refusals_name_the_parameter(app: BareApp, query: str, words: str) -> None:
    """400 with what is wrong and what it should be."""
    async with app.client.get(f"/api/v2/jobs?{query}") as response:
        assert (response.status, response.content_type) == (400, "application/problem+json")
        assert words in (await response.json())["detail"]
