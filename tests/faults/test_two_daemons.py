"""Two daemons on one engine: each knows of the other, touches nothing of it, and loses nothing by it."""

import json
import uuid
from typing import Any

import pytest

from harness.base_image import BUSYBOX, publish_busybox
from harness.bodies import dockerfile
from harness.build_box import BuildBox
from harness.engine import PrivateEngine
from harness.proxy import FaultProxy, StallRequest
from harness.registry import Registry
from harness.waiting import until

MANIFESTS = ".*/manifests/.*"
# Long enough for a daemon to be killed and to start again.
STEP_S = 5


def others(b: BuildBox) -> list[str]:
    ready = b.call("GET", "/readyz")
    assert ready.status == 200
    found: list[str] = ready.json["other_daemons"]
    return found


def is_own(registry: Registry, repository: str, job: dict[str, Any]) -> bool:
    """Whether the digest that a job reports is of the image that it built."""
    digest, image_id = job["result"]["digest"], job["result"]["image_id"]
    config = json.loads(registry.manifest(repository, digest))["config"]["digest"]
    return image_id in (digest, config)


def test_each_is_told_of_the_other(engine: PrivateEngine) -> None:
    """A daemon that starts beside another says so, once and in /readyz, until the other has stopped."""
    with BuildBox(engine) as one, BuildBox(engine) as two:
        first, second = one.daemon.installation, two.daemon.installation
        assert first != second
        until(lambda: first in others(two), what="the second to see the first")
        warning = f'both may, and the build cache is pruned by both" installation={first}'
        assert two.daemon.log_text().count(warning) == 1
        one.restart()
        assert one.daemon.installation == first
        until(lambda: second in others(one), what="the first to see the second")
        assert two.daemon.terminate().code == 0
        assert f"-{second}-alive-" not in engine.docker("volume", "ls", "--quiet")
        one.restart()
        until(lambda: f"-{first}-alive-" in engine.docker("volume", "ls", "--quiet"), what="its own note")
        assert second not in others(one)


@pytest.mark.parametrize("builder", ["buildkit", "classic"])
def test_neither_loses_anything_by_the_other(engine: PrivateEngine, registry: Registry, builder: str) -> None:
    """Both build on the same base at the same time; one is killed in mid-build and comes back, the other sweeps twice
    meanwhile; every job succeeds with its own image, at its first attempt where its daemon lived."""
    base = publish_busybox(engine, registry, f"two/{uuid.uuid4()}", "v1")
    with BuildBox(engine, builder=builder) as one, BuildBox(engine, builder=builder) as two:
        jobs = {}
        for b, repository in ((one, "two/a"), (one, "two/b"), (two, "two/c"), (two, "two/d")):
            text = f"FROM {base}\nRUN echo {uuid.uuid4()} > /id\nRUN sleep {STEP_S}\n"
            jobs[b, repository] = b.build(f"{registry.host}/{repository}:1", text)
        for (b, _), job in jobs.items():
            b.prints(job, f"sleep {STEP_S}")
        one.daemon.kill()
        # A cancel has the sweep look at once.
        queued = two.build(f"{registry.host}/two/queued:1", dockerfile("RUN true"))
        assert two.cancel(queued) in (200, 202)
        until(lambda: two.job(queued)["state"] == "cancelled", what="the cancel")
        one.daemon.start()
        for (b, repository), job in jobs.items():
            ended = b.succeeded(job, timeout_s=120)
            assert is_own(registry, repository, ended)
            assert b is one or ended["attempt"] == 1
        until(lambda: not one.leftovers(), what="the sweep")
        one.check_clean()
        two.check_clean()
    engine.docker("rmi", base)


def test_one_tag_is_pushed_by_one_at_a_time(engine: PrivateEngine, registry: Registry) -> None:
    """While one daemon pushes a tag, the other's push of it waits for another attempt; each reports its own image."""
    with FaultProxy(registry.host) as proxy, BuildBox(engine) as one, BuildBox(engine) as two:
        proxy.add("PUT", MANIFESTS, StallRequest(), times=1)
        image, text = f"{proxy.host}/two/same:1", "RUN echo {} > /id"
        first = one.build(image, dockerfile(text.format(uuid.uuid4())))
        proxy.wait_for("PUT", MANIFESTS)
        second = two.build(image, dockerfile(text.format(uuid.uuid4())))
        until(lambda: two.job(second)["error"] is not None, what="the second push to give way")
        assert two.job(second)["error"]["code"] == "conflict"
        assert one.daemon.installation in two.job(second)["error"]["message"]
        # Nor is what it pushes anybody's base meanwhile.
        based = two.build(f"{registry.host}/two/based:1", f"FROM {image}\nRUN true\n")
        until(lambda: two.job(based)["error"] is not None, what="the base to be refused")
        assert two.job(based)["error"]["code"] == "conflict"
        proxy.release()
        done, later = one.succeeded(first), two.succeeded(second)
        two.ended(based)
        assert is_own(registry, "two/same", done)
        assert is_own(registry, "two/same", later)
        assert later["result"]["digest"] == registry.digest("two/same", "1") != done["result"]["digest"]
        for b in (one, two):
            b.check_clean()
        engine.docker("rmi", image, check=False)


def test_a_tag_that_the_operator_moves_in_mid_push(engine: PrivateEngine, registry: Registry) -> None:
    """What was pushed then is nobody's result: the push is made again, and the tag stays the operator's."""
    with FaultProxy(registry.host) as proxy, BuildBox(engine) as b:
        proxy.add("PUT", MANIFESTS, StallRequest(), times=1)
        image = f"{proxy.host}/two/moved:1"
        job = b.build(image, dockerfile(f"RUN echo {uuid.uuid4()} > /id"))
        proxy.wait_for("PUT", MANIFESTS)
        engine.docker("tag", BUSYBOX, image)
        proxy.release()
        ended = b.succeeded(job)
        assert ended["attempt"] > 1
        assert is_own(registry, "two/moved", ended)
        assert registry.digest("two/moved", "1") == ended["result"]["digest"]
        assert engine.docker("inspect", "--format", "{{.Id}}", image) == engine.docker(
            "inspect", "--format", "{{.Id}}", BUSYBOX
        )
        engine.docker("rmi", image)
        b.check_clean()
