"""What all answers of the daemon's own API have in common, and its version."""

import gzip
import json

import aiohttp
import pytest
from bare_app import BareApp

from imagejobd import __version__


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/v2/jobs"),
        ("GET", "/api/v2/jobs/{id}"),
        ("GET", "/api/v2/jobs/{id}/events"),
        ("POST", "/api/v2/jobs/{id}/cancel"),
        ("GET", "/api/v2/jobs/0"),
        ("GET", "/api/v2/nothing"),
        ("POST", "/version"),
        ("GET", "/version"),
        ("GET", "/readyz"),
    ],
)
async def test_json_ends_its_line(app: BareApp, method: str, path: str) -> None:
    """Answers and refusals: in a terminal the prompt stands on a line of its own."""
    job = await app.submit()
    async with app.client.request(method, path.format(id=job["id"])) as response:
        body = await response.read()
    assert body.endswith((b"}\n", b"]\n"))
    json.loads(body)


async def test_older_apis_end_as_they_did(app: BareApp) -> None:
    """Their bodies are what they were to the byte."""
    for path in ("/api/v1/x/status", "/api/v1/job/1", "/api/distribute/image/x"):
        async with app.client.get(path, headers={"Accept-Encoding": "gzip"}) as response:
            assert (await response.read()).endswith(b"}")


async def test_long_answers_are_packed(app: BareApp) -> None:
    """For who takes gzip, and only what is worth it; caches are told."""
    for number in range(20):
        await app.submit(labels={"n": str(number)})
    async with aiohttp.ClientSession(f"http://127.0.0.1:{app.port}", auto_decompress=False) as client:

        async def ask(path: str, coding: str) -> tuple[str | None, str | None, bytes]:
            async with client.get(path, headers={"Accept-Encoding": coding}) as response:
                body = await response.read()
                assert int(response.headers["Content-Length"]) == len(body)
                return response.headers.get("Content-Encoding"), response.headers.get("Vary"), body

        coding, vary, packed = await ask("/api/v2/jobs", "gzip, deflate")
        assert (coding, vary) == ("gzip", "Accept-Encoding")
        for refusal in ("identity", "gzip;q=0", "gzip; q=0.000", "deflate", "*;q=0"):
            assert await ask("/api/v2/jobs", refusal) == (None, "Accept-Encoding", gzip.decompress(packed))
        assert (await ask("/version", "gzip"))[:2] == (None, None)
        async with client.head("/api/v2/jobs", headers={"Accept-Encoding": "gzip"}) as response:
            assert (response.status, await response.read()) == (200, b"")


async def test_version(app: BareApp) -> None:
    """The package's version, and the API's; no parameters."""
    async with app.client.get("/version") as response:
        assert await response.json() == {"version": __version__, "api": "v2"}
    async with app.client.get("/version?verbose=1") as response:
        assert response.status == 400
        assert "unknown query parameter 'verbose'; there are none here" in await response.text()
