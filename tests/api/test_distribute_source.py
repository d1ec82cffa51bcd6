"""What real registries say of the source when a distribution is submitted, and that no login is told on the way."""

import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from bare_app import BareApp, bare_app

from harness.process import free_port
from harness.registry import PASSWORD, USERNAME, Registry
from imagejobd.api.intake import Server

PATH = "/api/distribute/image"
TARGET: dict[str, Any] = {"endpoint": "http://127.0.0.1:9"}
LOGIN: dict[str, Any] = {"basicauth": {"user": USERNAME, "password": PASSWORD}}
WRONG = "wr0ng-password"


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[BareApp]:
    async with bare_app(tmp_path, settings=Server()) as app:
        yield app


@pytest.fixture(scope="module")
def image(registry: Registry, private_registry: Registry) -> str:
    """A repository that both registries have, with a tag `1`."""
    for place in (registry, private_registry):
        place.put_image("preflight/app", "1")
    return "preflight/app"


async def distribute(app: BareApp, host: str, repository: str, **source: Any) -> tuple[int, dict[str, Any]]:
    document = {
        "source": {"endpoint": f"http://{host}/v2", "image": repository, "ref": "1"} | source,
        "targets": [TARGET],
    }
    async with app.client.post(PATH, json=document) as response:
        return response.status, await response.json()


async def test_image_that_is_there(app: BareApp, registry: Registry, private_registry: Registry, image: str) -> None:
    """201 by tag and by digest, with a login where one is needed."""
    digest = registry.digest(image, "1")
    assert (await distribute(app, registry.host, image))[0] == 201
    assert (await distribute(app, registry.host, image, ref=digest))[0] == 201
    assert (await distribute(app, private_registry.host, image, auth=LOGIN))[0] == 201


@pytest.mark.parametrize("source", [{"ref": "2"}, {"image": "preflight/none"}, {"ref": f"sha256:{'0' * 64}"}])
async def test_image_that_is_not_there(app: BareApp, registry: Registry, image: str, source: dict[str, Any]) -> None:
    """404 for an unknown tag, repository or digest, which names the registry and what was asked of it."""
    status, body = await distribute(app, registry.host, image, **source)
    assert (status, list(body), body["msg"], body["status"]) == (
        404,
        ["msg", "status", "detail"],
        "Image not found",
        "error",
    )
    assert f"{registry.host}/{source.get('image', image)}" in body["detail"]
    assert source.get("ref", "1") in body["detail"]


async def test_login_that_is_missing_or_wrong(app: BareApp, private_registry: Registry, image: str) -> None:
    """400 that names the registry, and not the password."""
    wrong = {"basicauth": {"user": USERNAME, "password": WRONG}}
    for source in ({}, {"auth": wrong}):
        status, body = await distribute(app, private_registry.host, image, **source)
        assert (status, body["status"]) == (400, "error")
        assert private_registry.host in body["msg"]
        assert WRONG not in body["msg"]


async def test_source_that_is_off_limits(app: BareApp, image: str) -> None:
    """400 for an address that nobody may be sent to."""
    status, body = await distribute(app, "169.254.169.254", image)
    assert (status, body["status"]) == (400, "error")
    assert "169.254.169.254" in body["msg"]


async def test_source_that_is_down(app: BareApp, image: str) -> None:
    """201: the job is more patient than a request can be."""
    assert (await distribute(app, f"127.0.0.1:{free_port()}", image))[0] == 201


async def test_native_api_asks_too(app: BareApp, registry: Registry, image: str) -> None:
    """The same is found out for `POST /api/v2/jobs`, in that API's words."""
    spec = {"source": {"endpoint": registry.url, "image": image, "ref": "2"}, "targets": [TARGET]}
    async with app.client.post("/api/v2/jobs", json={"kind": "distribute", "spec": spec}) as response:
        problem = await response.json()
    assert (response.status, problem["code"]) == (404, "not_found")
    assert image in problem["detail"]


async def test_logins_are_told_nowhere(
    app: BareApp, registry: Registry, private_registry: Registry, image: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What stands in `auth`, and a password that was put into an endpoint, is in no answer, log or file."""
    caplog.set_level(logging.DEBUG)
    secrets = ["s3cret-header", "s3cret-body", "s3cret-query", "s3cret-target", WRONG, PASSWORD]
    token = {
        "url": f"{registry.url}/token?key=s3cret-query",
        "header": {"X-Key": "s3cret-header"},
        "json": '{"key": "s3cret-body"}',
    }
    other = {"endpoint": "https://mirror.example", "auth": {"basicauth": {"user": "u", "password": "s3cret-target"}}}
    answers = []
    for host, source, targets in (
        (private_registry.host, {"auth": LOGIN}, [other]),
        (private_registry.host, {"auth": {"basicauth": {"user": USERNAME, "password": WRONG}}}, [TARGET]),
        (f"127.0.0.1:{free_port()}", {"auth": token}, [other]),
        (private_registry.host, {"auth": token}, [other]),
        (f"u:{WRONG}@{registry.host}", {}, [other]),
        (registry.host, {"auth": WRONG}, [other]),
        (registry.host, {"auth": {"basicauth": WRONG}}, [other]),
        (registry.host, {"auth": {"header": WRONG}}, [other]),
        (registry.host, {"auth": {"url": f"https://u:{WRONG}@registry.example"}}, [other]),
        (registry.host, {"ref": {"auth": WRONG}}, [other]),
    ):
        document = {
            "source": {"endpoint": f"http://{host}/v2", "image": image, "ref": "1"} | source,
            "targets": targets,
        }
        async with app.client.post(PATH, json=document) as response:
            answers.append(await response.text())
        async with app.client.post("/api/v2/jobs", json={"kind": "distribute", "spec": document}) as response:
            answers.append(await response.text())
    async with app.client.get("/api/v2/jobs") as response:
        jobs = (await response.json())["jobs"]
    for path in [f"/api/v2/jobs/{job['id']}" for job in jobs] + [f"{PATH}/{job['id']}" for job in jobs]:
        async with app.client.get(path) as response:
            answers.append(await response.text())
    assert len(jobs) == 2, answers
    told = [*answers, json.dumps(jobs), caplog.text]
    told += [path.read_bytes().decode("latin-1") for path in app.folder.rglob("*") if path.is_file()]
    for secret in secrets:
        assert not [text for text in told if secret in text]
