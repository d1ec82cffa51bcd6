"""Cancelling a run stops what it does within 2 s, in whatever phase it is, and leaves nothing."""

import random
import time
from collections.abc import Iterator

import pytest

from harness.bodies import dockerfile
from harness.client import stopped_after_s
from harness.engine import PrivateEngine
from harness.holdings import holdings_of
from harness.processes import processes, unique_seconds
from harness.run_box import PERF, RunBox, script
from harness.waiting import until

PROMISED_S = 2.0


def check_stopped(box: RunBox, job: str, seconds: str, engine: PrivateEngine) -> None:
    """Cancel, and see the job end in time; the process has ended before it."""
    assert box.cancel(job) == 202
    ended = box.ended(job)
    assert ended["state"] == "cancelled"
    assert stopped_after_s(ended) < PROMISED_S
    assert processes(seconds) == []
    assert box.outcome(job) == "Failed - cancelled"
    assert box.log(job).endswith("\ncancelled\n")
    assert holdings_of(engine, job) == []


@pytest.fixture
def box(engine: PrivateEngine) -> Iterator[RunBox]:
    """Not for all tests of this file, for some of which the engine is another daemon's."""
    with RunBox(engine) as made:
        yield made
        made.check_healthy()


@pytest.mark.parametrize("trap", ["true", "trap '' TERM INT"], ids=["running", "ignoring SIGTERM"])
def test_cancel_while_running(box: RunBox, engine: PrivateEngine, trap: str) -> None:
    """The container of a cancelled run is killed, whatever it does about signals."""
    seconds = unique_seconds()
    job = box.launch(dockerfile(script(trap, f"sleep {seconds}", PERF)))
    until(lambda: bool(processes(seconds)), what="the sleep")
    check_stopped(box, job, seconds, engine)


@pytest.mark.parametrize("builder", ["buildkit", "classic"])
def test_cancel_while_building(engine: PrivateEngine, builder: str) -> None:
    """The sleeping RUN step of a cancelled run is killed."""
    seconds = unique_seconds()
    with RunBox(engine, builder=builder) as box:
        job = box.launch(dockerfile(f"RUN sleep {seconds}", script(PERF)))
        until(lambda: bool(processes(seconds)), what="the sleep")
        assert box.status(job).text == f"Job {job} is Building"
        check_stopped(box, job, seconds, engine)
        job = box.launch(dockerfile("RUN true", script(PERF)))
        assert box.outcome(job) == "Successful - Model performance : 0.500000"
        box.check_healthy()


def test_cancel_at_any_moment(box: RunBox, engine: PrivateEngine) -> None:
    """Wherever a cancel meets a run, the job ends as cancelled or has succeeded before, and nothing of it stays."""
    text = dockerfile(f"RUN echo {unique_seconds()} > /x", script("sleep 0.3", PERF))
    for _ in range(4):
        job = box.launch(text)
        time.sleep(random.uniform(0, 1.2))
        box.cancel(job)
        ended = box.ended(job)
        assert ended["state"] in ("cancelled", "succeeded"), ended["error"]
        assert ended["state"] == "succeeded" or stopped_after_s(ended) < PROMISED_S
        box.check_gone(job)
