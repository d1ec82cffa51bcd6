"""Cancelling stops the work itself, not just the words about it."""

import uuid

from harness.base_image import publish_busybox
from harness.bodies import dockerfile
from harness.build_box import BuildBox
from harness.client import stopped_after_s
from harness.engine import PrivateEngine
from harness.processes import processes, unique_seconds
from harness.proxy import FaultProxy, StallRequest, StallResponse
from harness.registry import Registry
from harness.waiting import until

PROMISED_S = 2.0


def test_cancel_during_run(either_box: BuildBox, registry: Registry) -> None:
    """A cancelled build ends within 2 s; its sleeping step is gone from the machine, and the engine is clean."""
    seconds = unique_seconds()
    job = either_box.build(f"{registry.host}/cancel/run", dockerfile(f"RUN sleep {seconds}"))
    until(lambda: bool(processes(seconds)), what="the sleep")
    assert either_box.cancel(job) == 202
    ended = either_box.ended(job)
    assert ended["state"] == "cancelled"
    assert stopped_after_s(ended) < PROMISED_S
    assert processes(seconds) == []
    assert either_box.status(job) == "Failed: cancelled"
    assert either_box.logs(job).endswith("\ncancelled\n")
    assert either_box.cancel(job) == 200
    either_box.check_clean()


def test_cancel_during_push(box: BuildBox, registry: Registry) -> None:
    """A push that hangs in mid-upload ends within 2 s of its cancel, and no tag appears in the registry."""
    with FaultProxy(registry.host) as proxy:
        proxy.add("PATCH|PUT", ".*/blobs/uploads/.*", StallRequest(100), times=None)
        job = box.build(f"{proxy.host}/cancel/push:1", dockerfile(f"RUN echo {uuid.uuid4()} > /id"))
        proxy.wait_for("PATCH|PUT", ".*/blobs/uploads/.*")
        box.cancel(job)
        ended = box.ended(job)
        assert ended["state"] == "cancelled"
        assert stopped_after_s(ended) < PROMISED_S
        box.check_clean()
    assert registry.tags("cancel/push") == []


def test_cancel_while_another_job_pulls_the_base(box: BuildBox, engine: PrivateEngine, registry: Registry) -> None:
    """Of two jobs that want one slow base the one that waits for the other's pull ends within 2 s of its cancel."""
    published = publish_busybox(engine, registry, f"cancel/{uuid.uuid4()}", "v1")
    with FaultProxy(registry.host) as proxy:
        proxy.add("GET|HEAD", ".*/manifests/.*", StallResponse(), times=1)
        base = published.replace(registry.host, proxy.host)
        jobs = [box.build(f"{registry.host}/cancel/base:{number}", f"FROM {base}\nRUN true\n") for number in range(2)]
        proxy.wait_for("GET|HEAD", ".*/manifests/.*")
        until(lambda: all(box.job(job)["phase"] == "building" for job in jobs), what="both to want it")
        box.cancel(jobs[1])
        ended = box.ended(jobs[1])
        assert ended["state"] == "cancelled"
        assert stopped_after_s(ended) < PROMISED_S
        proxy.release()
        box.succeeded(jobs[0])
        box.check_clean()
    engine.docker("rmi", base)


def test_cancel_while_waiting_for_another_attempt(engine: PrivateEngine) -> None:
    """A job that is cancelled between two attempts leaves nothing of the first one in the engine."""
    with BuildBox(engine, limits={"retry_first_s": 600, "retry_max_s": 600}) as b:
        job = b.build("127.0.0.1:9/nobody/there:1", dockerfile("RUN true"))
        until(lambda: b.job(job)["error"] is not None, what="the first attempt to fail")
        assert b.job(job)["state"] == "queued"
        assert b.leftovers()
        assert b.cancel(job) == 200
        until(lambda: not b.leftovers(), what="the sweep")
        assert b.job(job)["state"] == "cancelled"
        b.check_clean()


def test_cancel_in_the_queue(engine: PrivateEngine, registry: Registry) -> None:
    """A queued job is cancelled on the spot, one that waits too long fails with `timeout`, and neither ever starts."""
    with BuildBox(engine, limits={"build": 1, "queue_timeout_s": 1}) as b:
        seconds = unique_seconds()
        running = b.build(f"{registry.host}/cancel/a", dockerfile(f"RUN sleep {seconds}"))
        until(lambda: bool(processes(seconds)), what="the sleep")
        cancelled = b.build(f"{registry.host}/cancel/b", dockerfile("RUN true"))
        late = b.build(f"{registry.host}/cancel/c", dockerfile("RUN true"))
        assert b.status(late) == "Building"
        assert b.cancel(cancelled) == 200
        assert b.job(cancelled)["state"] == "cancelled"
        expired = b.ended(late)
        assert (expired["state"], expired["error"]["code"], expired["started_at"]) == ("failed", "timeout", None)
        assert b.job(running)["state"] == "running"
        b.cancel(running)
        b.ended(running)
        b.check_clean()
