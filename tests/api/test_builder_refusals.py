"""What the builder API refuses at submission is 400 in its own words, as its document has it; nothing is queued."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from bare_app import BareApp, bare_app

from imagejobd.dockerfile.policy import Policy, PolicySettings


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[BareApp]:
    policy = Policy(PolicySettings(images=("docker.io/library/debian:*",), instructions=("*", "!USER")))
    async with bare_app(tmp_path, policy=policy) as app:
        yield app


@pytest.mark.parametrize(
    ("dockerfile", "reason"),
    [
        ("FROM evil\n", "Dockerfile line 1: FROM: image docker.io/library/evil:latest is not allowed"),
        ("FROM debian:12\nUSER root\n", "Dockerfile line 2: USER"),
        ("# syntax=evil/frontend\nFROM debian:12\n", "Dockerfile line 1: "),
        ("FORM debian:12\n", "Dockerfile line 1: unknown instruction 'FORM'"),
        ("FROM debian:12\nRUN <<EOF\n", "Dockerfile line 2: "),
        ("FROM debian:12\n" + "\n" * 20_000 + "RUN x\n", "Dockerfile line 20001: there are more than 20000 lines"),
        ("#", "the Dockerfile holds no instructions"),
        ("FROM debian:12\nCOPY app /\n", "Dockerfile line 2: COPY: 'app' is in a build context"),
    ],
    ids=["image", "instruction", "frontend", "syntax", "heredoc", "lines", "empty", "context"],
)
@pytest.mark.parametrize("is_form", [False, True], ids=["json", "form"])
async def test_refused_dockerfiles(app: BareApp, dockerfile: str, reason: str, is_form: bool) -> None:
    """Policy and syntax name their line; the rule of the first comes with it."""
    fields = {"image_name": "app", "dockerfile": dockerfile}
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    request: dict[str, Any] = {"data": form(fields), "headers": headers} if is_form else {"json": fields}
    async with app.client.post("/api/v1/build", **request) as response:
        assert response.status == 400, await response.text()
        error: dict[str, Any] = await response.json()
    assert list(error) == ["Error"]
    assert error["Error"].startswith(reason)
    async with app.client.get("/api/v2/jobs") as listing:
        assert (await listing.json())["jobs"] == []


def form(fields: dict[str, str]) -> bytes:
    return b'--b\r\nContent-Disposition: form-data; name="Json"\r\n\r\n' + json.dumps(fields).encode() + b"\r\n--b--"


async def test_what_is_too_large_says_so(app: BareApp) -> None:
    """413 is HTTP's own word for a body that is too large, and for the Dockerfile in it."""
    for dockerfile in ("x" * (1 << 18), "#" + "x" * (1 << 20)):
        async with app.client.post("/api/v1/build", json={"image_name": "a", "dockerfile": dockerfile}) as response:
            assert response.status == 413
            assert "bytes" in (await response.json())["Error"]
