"""SIGTERM: what runs is finished or goes on later, what comes is kept for later, and the process leaves in time."""

import os
import signal
import time

from harness.bodies import dockerfile
from harness.build_box import BuildBox
from harness.engine import PrivateEngine
from harness.processes import unique_seconds
from harness.registry import Registry
from harness.waiting import until


def sleeping(b: BuildBox, image: str, seconds: float) -> str:
    """A job whose RUN sleeps by now."""
    job = b.build(image, dockerfile(f"RUN echo begun {time.monotonic_ns()} && sleep {seconds}"))
    b.prints(job, "begun")
    return job


def terminate(b: BuildBox) -> None:
    os.kill(b.daemon.pid, signal.SIGTERM)


def test_short_drain(engine: PrivateEngine, registry: Registry) -> None:
    """Past the drain's time a build is stopped and queued again as no attempt; the next start finishes it."""
    with BuildBox(engine, server={"drain_timeout_s": 0.5}) as b:
        job = sleeping(b, f"{registry.host}/drain/short:1", 6)
        code, seconds = b.daemon.terminate()
        assert code == 0
        assert seconds > 0.5
        stored = "select state, attempt, crashes from job"
        assert b.daemon.sqlite(stored) == [("queued", 0, 0)]
        b.daemon.start()
        ended = b.succeeded(job)
        assert (ended["attempt"], ended["crashes"]) == (1, 0)
        assert "interrupted: the daemon stops" in b.logs(job)
        assert registry.digest("drain/short", "1") == ended["result"]["digest"]
        b.check_clean()


def test_long_drain(engine: PrivateEngine, registry: Registry) -> None:
    """Within the drain's time a build finishes first; meanwhile readers are served, and jobs are taken for the next
    start."""
    with BuildBox(engine, server={"drain_timeout_s": 60}) as b:
        job = sleeping(b, f"{registry.host}/drain/long:1", 2)
        terminate(b)
        until(lambda: b.call("GET", "/readyz").status == 503, what="the drain to begin")
        assert b.call("GET", "/readyz").json["draining"] is True
        assert b.call("GET", "/healthz").status == 200
        assert b.job(job)["state"] == "running"
        late = b.build(f"{registry.host}/drain/late:1", dockerfile("RUN echo late"))
        assert b.daemon.wait() == 0
        stored = "select state, attempt from job order by id"
        assert b.daemon.sqlite(stored) == [("succeeded", 1), ("queued", 0)]
        b.daemon.start()
        b.succeeded(late)
        b.check_clean()


def test_second_signal(engine: PrivateEngine, registry: Registry) -> None:
    """A second SIGTERM ends the drain at once; the build it stops loses no attempt."""
    with BuildBox(engine, server={"drain_timeout_s": 60}) as b:
        sleeping(b, f"{registry.host}/drain/second:1", float(unique_seconds()))
        terminate(b)
        until(lambda: b.call("GET", "/readyz").status == 503, what="the drain to begin")
        terminate(b)
        # Well within the drain's 60 s.
        assert b.daemon.wait(timeout_s=20) == 0
        assert b.daemon.sqlite("select state, attempt, crashes from job") == [("queued", 0, 0)]
        b.check_clean()


def test_idle_stop(engine: PrivateEngine) -> None:
    """With nothing to do it leaves without waiting for the end of the drain's time."""
    with BuildBox(engine, limits={"build": 1}, server={"drain_timeout_s": 60}) as b:
        assert b.daemon.terminate(timeout_s=20).code == 0
