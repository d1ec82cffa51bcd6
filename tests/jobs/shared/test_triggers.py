"""Promises about base images that bring instructions along: what ONBUILD holds obeys the policy of the Dockerfile."""

import json
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from harness.base_image import BUSYBOX
from harness.daemon import Daemon
from harness.engine import PrivateEngine
from harness.registry import Registry

END_TIMEOUT_S = 60.0
POLL_INTERVAL_S = 0.1
REQUEST_TIMEOUT_S = 10.0
TRIGGER = "RUN echo triggered"


@pytest.fixture(scope="module", params=["buildkit", "classic"])
def daemon(request: pytest.FixtureRequest, engine: PrivateEngine) -> Iterator[Daemon]:
    """A daemon that allows no ADD, with each builder."""
    config = {"engine": {"builder": request.param}, "policy": {"instructions": ["*", "!ADD"]}}
    with Daemon(config, engine_host=engine.host) as daemon:
        yield daemon


def base_with(engine: PrivateEngine, name: str, trigger: str) -> str:
    """An image in the engine with one ONBUILD."""
    image = f"imagejobd-test/{name}:1"
    engine.docker("build", "--tag", image, "-", input=f"FROM {BUSYBOX}\nONBUILD {trigger}\n".encode())
    return image


def ended(daemon: Daemon, registry: Registry, dockerfile: str) -> dict[str, Any]:
    """The job that built `dockerfile`, at its end."""
    spec = {"image": f"{registry.host}/triggers:1", "dockerfile": dockerfile}
    body = json.dumps({"kind": "build", "spec": spec}).encode()
    job = _call(f"{daemon.url}/api/v2/jobs", body)
    deadline = time.monotonic() + END_TIMEOUT_S
    while job["state"] in ("queued", "running") and time.monotonic() < deadline:
        time.sleep(POLL_INTERVAL_S)
        job = _call(f"{daemon.url}/api/v2/jobs/{job['id']}")
    return job


def _call(url: str, body: bytes | None = None) -> dict[str, Any]:
    with urllib.request.urlopen(url, data=body, timeout=REQUEST_TIMEOUT_S) as answer:
        return dict(json.load(answer))


def test_a_forbidden_trigger_ends_the_job(daemon: Daemon, engine: PrivateEngine, registry: Registry) -> None:
    """The error names the base image, the trigger, and the rule."""
    base = base_with(engine, "adding", "ADD a /b")
    job = ended(daemon, registry, f"FROM scratch AS x\nFROM {base}\nRUN true\n")
    assert (job["state"], job["error"]["code"]) == ("failed", "policy")
    where = f"ONBUILD trigger 1 of base image {base} (Dockerfile line 2)"
    assert job["error"]["message"] == f"{where}: ADD: is not allowed [rule instruction]"


def test_an_image_that_is_only_copied_from_triggers_nothing(
    daemon: Daemon, engine: PrivateEngine, registry: Registry
) -> None:
    """Triggers belong to FROM; elsewhere they never run, and so are no matter of policy."""
    base = base_with(engine, "adding", "ADD a /b")
    job = ended(daemon, registry, f"FROM scratch\nCOPY --from={base} /bin/busybox /b\n")
    assert job["state"] == "succeeded", job["error"]


def test_an_allowed_trigger_is_built(daemon: Daemon, engine: PrivateEngine, registry: Registry) -> None:
    """What the policy allows runs as part of the build."""
    job = ended(daemon, registry, f"FROM {base_with(engine, 'echoing', TRIGGER)}\n")
    assert job["state"] == "succeeded", job["error"]
