"""`kill -9` in every phase of a run, and engines that go away under it: the job ends once, right, and cleanly."""

import random
import threading
import time

import pytest

from harness.bodies import dockerfile
from harness.client import Fields
from harness.engine import PrivateEngine
from harness.holdings import holdings_of
from harness.processes import processes, unique_seconds
from harness.run_box import PERF, RunBox, script
from harness.waiting import until
from imagejobd.model.failpoint import EXIT_STATUS
from imagejobd.model.ownership import resource_name

CRASHES_MAX = 3
# Each with the phases that the job has in the end: what a checkpoint has is not done again. What a commit has depends
# on what else it takes along.
PLACES = {
    "after_claim": ["building", "running", "collecting", "purging"],
    "after_build": ["building", "building", "running", "collecting", "purging"],
    "while_running": ["building", "running", "running", "collecting", "purging"],
    "after_run": ["building", "running", "running", "collecting", "purging"],
    "after_collect": ["building", "running", "collecting", "purging"],
    "before_purge": ["building", "running", "collecting", "purging"],
    "after_purge": ["building", "running", "collecting", "purging", "purging"],
    "before_finish": ["building", "running", "collecting", "purging", "purging"],
    "before_commit:7": None,
    "after_commit:5": None,
}
TEXT = dockerfile("ARG version", "ENV version=$version", script("echo at work", "sleep 0.2", PERF))


def check_done_once(box: RunBox, job: str, *, crashes_max: int = 1) -> Fields:
    """The job has succeeded with its result, and ended one time."""
    ended = box.succeeded(job)
    assert ended["crashes"] <= crashes_max
    assert ended["result"]["perf"] == 0.5
    endings = "select count(*) from event where type in ('succeed', 'fail', 'cancel') and job_id = ?"
    assert box.daemon.sqlite(endings, (ended["number"],)) == [(1,)]
    box.check_gone(job)
    return ended


@pytest.mark.parametrize("place", PLACES)
def test_a_crash_anywhere(engine: PrivateEngine, place: str) -> None:
    """After a crash at this place the job still ends exactly once, with its result and without leftovers."""
    with RunBox(engine, failpoints=place) as box:
        job = box.submit_surely("run", {"dockerfile": TEXT})
        box.go_on_after_crash()
        ended = check_done_once(box, job)
        assert PLACES[place] in (None, [phase["name"] for phase in ended["phases"]])
        assert box.daemon.sqlite("select count(*) from job") == [(1,)]
        assert box.daemon.sqlite("select count(*), sum(perf) from run_result") == [(1, 0.5)]
        box.check_healthy()


def test_killed_while_the_container_runs(engine: PrivateEngine) -> None:
    """A container whose daemon was killed is taken down at the next start; the job runs again, as its first attempt."""
    seconds = unique_seconds()
    with RunBox(engine) as box:
        job = box.launch(dockerfile(script(f"sleep {seconds}", PERF)))
        until(lambda: bool(processes(seconds)), what="the sleep")
        [first] = processes(seconds)
        box.daemon.kill()
        box.daemon.start()
        until(lambda: first not in processes(seconds), what="the container of before to be killed")
        until(lambda: bool(processes(seconds)), what="the second container")
        assert len(engine.docker("ps", "--all", "--quiet").split()) == 1
        again = box.job(job)
        assert (again["crashes"], again["attempt"]) == (1, 1)
        box.cancel(job)
        assert box.outcome(job) == "Failed - cancelled"
        assert processes(seconds) == []
        box.check_healthy()


def test_killed_for_good(engine: PrivateEngine) -> None:
    """What a killed daemon's job has left is removed at the next start also when the job was not to run any more."""
    with RunBox(engine, failpoints="while_running") as box:
        job = box.submit_surely("run", {"dockerfile": dockerfile(script("echo at work", "sleep 60", PERF))})
        for _ in range(CRASHES_MAX - 1):
            assert box.daemon.wait() == EXIT_STATUS
            box.daemon.spawn(failpoints="while_running")
        assert box.daemon.wait() == EXIT_STATUS
        assert holdings_of(engine, job) != []
        box.restart()
        ended = box.failed(job, "quarantined")
        assert ended["crashes"] == CRASHES_MAX
        until(lambda: holdings_of(engine, job) == [], what="the sweep at boot")
        assert box.status(job).text.startswith(f"Job {job} was Failed - ")
        box.check_healthy()


def test_killed_at_random(engine: PrivateEngine) -> None:
    """Two runs at a time under two random kills all end once and rightly."""
    with RunBox(engine) as box:
        jobs = [box.submit("run", {"dockerfile": TEXT}) for _ in range(4)]
        for _ in range(2):
            time.sleep(random.uniform(0.1, 1.5))
            box.restart()
        for job in jobs:
            check_done_once(box, job, crashes_max=2)
        box.check_healthy()


def test_stopped_in_mid_run(engine: PrivateEngine) -> None:
    """SIGTERM in mid-run interrupts: the container goes with the daemon; the job goes on later, uncounted."""
    seconds = unique_seconds()
    with RunBox(engine, server={"drain_timeout_s": 0.5}) as box:
        job = box.launch(dockerfile(script(f"sleep {seconds}", PERF)))
        until(lambda: bool(processes(seconds)), what="the sleep")
        assert box.daemon.terminate(timeout_s=15).code == 0
        assert processes(seconds) == []
        box.daemon.start()
        until(lambda: bool(processes(seconds)), what="the second container")
        again = box.job(job)
        assert (again["crashes"], again["attempt"]) == (0, 1)
        box.cancel(job)
        box.ended(job)


@pytest.mark.parametrize("death", ["restart", "kill"])
def test_engine_goes_away_in_mid_run(engine: PrivateEngine, death: str) -> None:
    """An engine that restarts or dies under a container is not the user's failure, nor an attempt: it runs again."""
    with RunBox(engine, limits={"retry_for_s": 600.0}) as box:
        job = box.launch(dockerfile(script("echo at work", "sleep 6", PERF)))
        box.prints(job, "at work")
        if death == "restart":
            engine.restart()
        else:
            engine.kill()
            engine.start()
        ended = check_done_once(box, job)
        assert ended["attempt"] == 1
        assert "engine_unavailable" in str(box.daemon.sqlite("select data from event where type = 'retry'"))
        box.check_healthy()


def test_somebody_removes_the_container(engine: PrivateEngine) -> None:
    """A container that an operator removes in mid-run fails or repeats its job, with words, and leaves nothing."""
    with RunBox(engine) as box:
        job = box.launch(dockerfile(script("echo at work", "sleep 1", PERF)))
        box.prints(job, "at work")
        container = resource_name(box.daemon.installation, job, 1)
        remover = threading.Thread(target=engine.docker, args=("rm", "--force", container))
        remover.start()
        ended = box.ended(job)
        remover.join()
        assert ended["state"] == "succeeded" or ended["error"]["code"] != "internal"
        assert holdings_of(engine, job) == []
        box.check_healthy()
