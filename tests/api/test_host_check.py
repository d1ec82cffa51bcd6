"""Web pages are kept away from a local daemon; scripts and configured names are not."""

from pathlib import Path

import pytest
from bare_app import MINIMAL, BareApp, bare_app

from imagejobd.api.intake import Server


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
        {"Origin": "http://127.0.0.1"},
        {"Origin": "http://localhost:3000"},
        {"Origin": "http://localhost:3000", "Host": "localhost:8080"},
        {"Origin": "http://localhost:3000", "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
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


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "LocalHost:8080", "localhost", "[::1]:80"])
async def test_own_origin_is_served(app: BareApp, host: str) -> None:
    """A page of the daemon itself may speak to it, under each of its names."""
    headers = {"Host": host, "Origin": f"http://{host.lower()}", "Sec-Fetch-Site": "same-origin"}
    async with app.client.post("/api/v2/jobs", json=MINIMAL, headers=headers) as response:
        assert response.status == 201
    del headers["Origin"]  # as with GET
    async with app.client.get("/api/v2/jobs", headers=headers) as response:
        assert response.status == 200


async def test_configured_origins_are_served(tmp_path: Path) -> None:
    """A page of a host in server.hosts may speak to the daemon from wherever it is."""
    headers = {"Origin": "https://Box.example:8443", "Sec-Fetch-Site": "cross-site", "Host": "localhost:8080"}
    async with (
        bare_app(tmp_path, settings=Server(hosts=("box.Example",))) as app,
        app.client.post("/api/v2/jobs", json=MINIMAL, headers=headers) as response,
    ):
        assert response.status == 201


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("site", "mode", "destination", "status"),
    [
        ("none", "navigate", "document", 200),
        ("cross-site", "navigate", "document", 200),
        ("same-site", "navigate", "document", 200),
        ("cross-site", "navigate", "iframe", 403),
        ("cross-site", "no-cors", "image", 403),
        ("same-site", "no-cors", "script", 403),
        ("cross-site", "cors", "empty", 403),
    ],
)
async def test_links_from_elsewhere_are_followed(
    app: BareApp, method: str, site: str, mode: str, destination: str, status: int
) -> None:
    """A user may come by a link from any site; a site may embed and ask nothing."""
    headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode, "Sec-Fetch-Dest": destination}
    async with app.client.request(method, "/api/v2/jobs", headers=headers) as response:
        assert response.status == status
