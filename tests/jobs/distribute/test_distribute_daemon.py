"""Distributions in the whole daemon: accepted over HTTP, carried out, and resumed after a crash."""

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from harness.daemon import Daemon
from harness.images import put_image
from harness.registry import Registry
from harness.services import require

END_TIMEOUT_S = 30.0


@pytest.fixture(scope="module")
def target() -> Iterator[Registry]:
    require("docker-registry")
    with Registry() as registry:
        yield registry


def ask(daemon: Daemon, path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(daemon.url + path, data=data), timeout=20) as response:
        return json.load(response)


async def ended(daemon: Daemon, uuid: str) -> Any:
    async with asyncio.timeout(END_TIMEOUT_S):
        while (job := await asyncio.to_thread(ask, daemon, f"/api/v2/jobs/{uuid}"))["state"] in ("queued", "running"):
            await asyncio.sleep(0.05)
    return job


def submit(daemon: Daemon, source: Registry, *targets: Registry, image: str) -> str:
    spec = {
        "source": {"endpoint": source.url, "image": image, "ref": "1"},
        "targets": [{"endpoint": target.url} for target in targets],
    }
    answer: dict[str, str] = ask(daemon, "/api/v2/jobs", {"kind": "distribute", "spec": spec})
    return answer["uuid"] if "uuid" in answer else answer["id"]


async def test_a_distribution_over_the_native_api(registry: Registry, target: Registry) -> None:
    """The job's result, progress and events are kept, and the daemon stops cleanly after it."""
    image = put_image(registry, "daemon/one", "1", layers=(3_000_000,))
    with Daemon() as daemon:
        uuid = await asyncio.to_thread(submit, daemon, registry, target, image="daemon/one")
        job = await ended(daemon, uuid)
        assert job["state"] == "succeeded"
        assert job["result"]["images"][0]["targets"][0]["sent_bytes"] == image.blobs_bytes
        assert job["progress"]["targets"][0]["done"] == 1
        types = daemon.sqlite("select type from event where type in ('target', 'progress')")
        assert ("target",) in types
        assert target.digest("daemon/one", "1") == image.digest
        assert daemon.terminate().code == 0


async def test_a_crash_after_the_first_outcomes(registry: Registry, target: Registry) -> None:
    """What was saved before the crash is not done again, and the job ends as if nothing had happened."""
    put_image(registry, "daemon/crash", "1")
    with Registry() as other:
        daemon = Daemon()
        try:
            daemon.spawn(failpoints="after_outcomes")
            uuid = await _submit_when_ready(daemon, registry, target, other)
            assert daemon.wait() == 137
            daemon.start()
            job = await ended(daemon, uuid)
            assert (job["state"], job["crashes"]) == ("succeeded", 1)
            assert target.digest("daemon/crash", "1") == other.digest("daemon/crash", "1") is not None
        finally:
            daemon.remove()


async def _submit_when_ready(daemon: Daemon, source: Registry, *targets: Registry) -> str:
    async with asyncio.timeout(END_TIMEOUT_S):
        while True:
            try:
                return await asyncio.to_thread(submit, daemon, source, *targets, image="daemon/crash")
            except urllib.error.URLError:
                await asyncio.sleep(0.05)
