"""Web pages are kept away from a local daemon; scripts and configured names are not."""

from pathlib import Path

import pytest
from bare_app import MINIMAL, BareApp, bare_app

from imagejobd.api.settings import Server


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8080", "127.0.0.1:1", "[::1]:8080", "10.1.2.3", "box.example"]
)
async def test_known_hosts_are_served(tmp_path: Path, host: str) -> None:
    """Addresses, localhost and configured names, with any port."""
    async with (
        bare_app(tmp_path, settings=Server(hosts=("Box.example",))) as app,
        app.client.get("/healthz", headers={"Host": host}) as response,
    ):
        assert response.status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "localhost.evil.example"},
        {"Host": "[::1"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://localhost.evil.example"},
        {"Origin": "http://localhost@evil.example"},
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["/api/v1/build", "/api/v2/jobs"])
async def test_requests_of_web_pages_are_refused(app: BareApp, headers: dict[str, str], path: str) -> None:
    """403 for another site's page (Origin) and for a rebound name (Host); nothing is queued."""
    async with app.client.post(path, json=MINIMAL, headers=headers) as response:
        assert response.status == 403
        assert "server.hosts" in await response.text()
    async with app.client.get("/api/v2/jobs") as response:
        assert (await response.json())["jobs"] == []


async def test_own_origin_is_served(app: BareApp) -> None:
    """A page of the daemon itself may speak to it."""
    origin = f"http://127.0.0.1:{app.port}"
    async with app.client.get("/healthz", headers={"Origin": origin}) as response:
        assert response.status == 200
