"""`kill -9` at every interesting place: what was acknowledged is done exactly once, and nothing is left behind."""

import itertools
import random
import threading
import time
import uuid

import pytest

from harness.base_image import BUSYBOX
from harness.bodies import dockerfile
from harness.build_box import BuildBox, publish_base
from harness.engine import PrivateEngine
from harness.logins import LOGIN
from harness.processes import processes, unique_seconds
from harness.proxy import FaultProxy, StallRequest
from harness.registry import Registry
from harness.waiting import until
from imagejobd.model.failpoint import EXIT_STATUS
from imagejobd.model.ownership import PIN_PREFIX

CRASHES_MAX = 3

PLACES = (
    "after_claim",
    "after_build",
    "before_push",
    "while_pushing",
    "while_restoring",
    "after_push",
    "before_purge",
    "after_purge",
    "before_finish",
    "after_finish",
    *(f"before_commit:{number}" for number in (3, 9)),
    *(f"after_commit:{number}" for number in (7, 13)),
)

# Where the built image is in the checkpoint already: it is not built again, though the purge has taken it away.
AFTER_BUILD = frozenset(
    {
        "before_push",
        "while_pushing",
        "while_restoring",
        "after_push",
        "before_purge",
        "after_purge",
        "before_finish",
        "after_finish",
    }
)


def check_done_once(b: BuildBox, registry: Registry, job: str, repository: str) -> None:
    """The job has succeeded, its image is in the registry, and it is the only job."""
    ended = b.succeeded(job)
    assert ended["attempt"] == 1
    assert ended["crashes"] <= 1
    assert registry.digest(repository, "1") == ended["result"]["digest"]
    endings = "select count(*) from event where type in ('succeed', 'fail', 'cancel')"
    assert b.daemon.sqlite(endings) == [(1,)]
    assert b.daemon.sqlite("select count(*) from job") == [(1,)]
    b.check_clean()


@pytest.mark.parametrize("place", PLACES)
def test_a_crash_anywhere(engine: PrivateEngine, registry: Registry, place: str) -> None:
    """After a crash at this place the job still ends exactly once, and an operator's image has its name back."""
    repository = f"crash/{place.replace(':', '-')}"
    name = f"{registry.host}/{repository}:1"
    engine.docker("tag", BUSYBOX, name)
    before = engine.docker("inspect", "--format", "{{.Id}}", name)
    with BuildBox(engine, failpoints=place) as b:
        job = b.submit_surely("build", {"image": name, "dockerfile": dockerfile(f"RUN echo {place} > /place")})
        b.go_on_after_crash()
        check_done_once(b, registry, job, repository)
        if place in AFTER_BUILD:
            assert [phase["name"] for phase in b.job(job)["phases"]].count("building") == 1
    assert engine.docker("inspect", "--format", "{{.Id}}", name) == before
    engine.docker("rmi", name)


@pytest.mark.parametrize("builder", ["buildkit", "classic"])
def test_killed_while_building(engine: PrivateEngine, registry: Registry, builder: str) -> None:
    """A daemon killed while a RUN sleeps builds again after its restart; the step of before is stopped."""
    seconds = unique_seconds()
    with BuildBox(engine, builder=builder) as b:
        job = b.build(f"{registry.host}/crash/building", dockerfile(f"RUN sleep {seconds}"))
        until(lambda: bool(processes(seconds)), what="the sleep")
        b.daemon.kill()
        until(lambda: not processes(seconds), what="the engine to stop the step")
        b.daemon.start()
        until(lambda: bool(processes(seconds)), what="the sleep of the second run")
        assert b.job(job)["crashes"] == 1
        assert b.job(job)["attempt"] == 1
        assert b.cancel(job) == 202
        assert b.ended(job)["state"] == "cancelled"
        b.check_clean()


def test_killed_in_the_middle_of_a_push(engine: PrivateEngine, registry: Registry) -> None:
    """A daemon killed while a layer goes up pushes again after its restart, without building again."""
    with FaultProxy(registry.host) as proxy, BuildBox(engine) as b:
        proxy.add("PATCH|PUT", ".*/blobs/uploads/.*", StallRequest(100), times=1)
        job = b.build(f"{proxy.host}/crash/upload:1", dockerfile(f"RUN echo {uuid.uuid4()} > /id"))
        proxy.wait_for("PATCH|PUT", ".*/blobs/uploads/.*")
        assert b.status(job) == "Pushing"
        b.daemon.kill()
        proxy.release()
        b.daemon.start()
        check_done_once(b, registry, job, "crash/upload")
        phases = [phase["name"] for phase in b.job(job)["phases"]]
        assert phases == ["building", "pushing", "pushing", "purging"]


def test_private_base_after_a_crash(engine: PrivateEngine, private_registry: Registry) -> None:
    """A base that one job's credentials brought in is no base for others after a crash, and does not stay."""
    base = publish_base(engine, private_registry, "crash")
    seconds = unique_seconds()
    with BuildBox(engine) as b:
        image = f"{private_registry.host}/results/crash"
        owner = b.build(f"{image}:1", f"FROM {base}\nRUN sleep {seconds}\n", **LOGIN)
        until(lambda: bool(processes(seconds)), what="the sleep")
        b.daemon.kill()
        held = [name for name in b.leftovers() if name.startswith(PIN_PREFIX)]
        assert held
        assert base not in b.leftovers()
        b.daemon.start()
        other = b.ended(b.build(f"{image}:2", f"FROM {base}\nRUN true\n"))
        assert (other["state"], other["error"]["code"]) == ("failed", "denied")
        b.cancel(owner)
        b.ended(owner)
        b.check_clean()


def test_quarantine(engine: PrivateEngine, registry: Registry) -> None:
    """A job that takes the daemon down three times is failed as quarantined, and nothing of it stays in the engine."""
    with BuildBox(engine, failpoints="while_pushing") as b:
        job = b.submit_build(f"{registry.host}/crash/loop:1", dockerfile("RUN true"))
        for _ in range(CRASHES_MAX - 1):
            assert b.daemon.wait() == EXIT_STATUS
            b.daemon.spawn(failpoints="while_pushing")
        assert b.daemon.wait() == EXIT_STATUS
        assert b.leftovers()
        b.restart()
        ended = b.ended(job)
        assert (ended["state"], ended["error"]["code"], ended["crashes"]) == ("failed", "quarantined", CRASHES_MAX)
        assert b.status(job).startswith("Failed: the daemon died 3 times")
        until(lambda: not b.leftovers(), what="the sweep at boot")
        assert f"{registry.host}/crash/loop" not in engine.docker("images")
        b.check_clean()


def test_suspects_run_alone(engine: PrivateEngine, registry: Registry) -> None:
    """Builds that were all running through three crashes are not quarantined: each runs alone, and what comes later
    waits for them; all succeed at their first attempt."""
    with BuildBox(engine, limits={"build": 3}) as b:
        lines = (f"RUN echo {uuid.uuid4()} && sleep 2",)
        jobs = [b.build(f"{registry.host}/crash/suspect:{number}", dockerfile(*lines)) for number in range(3)]
        running = "select count(*) from job where state = 'running' and phase = 'building'"
        for _ in range(CRASHES_MAX):
            until(lambda: b.daemon.sqlite(running) == [(3,)], what="all to be built")
            b.restart()
        innocent = b.build(f"{registry.host}/crash/suspect:9", dockerfile("RUN true"))
        until(lambda: b.job(jobs[2])["waiting_for"] is not None, what="a suspect to wait")
        assert b.job(jobs[2])["waiting_for"].startswith("waiting to run alone, because the daemon died 3 times")
        ended = b.all_succeeded(*jobs, innocent)
        assert [job["attempt"] for job in ended] == [1, 1, 1, 1]
        assert [job["crashes"] for job in ended] == [3, 3, 3, 0]
        phases = [job["phases"] for job in ended[:3]]
        built = sorted(
            (phase["started_at"], phase["finished_at"])
            for phase in (next(p for p in own if p["name"] == "building" and p["finished_at"]) for own in phases)
        )
        assert all(earlier[1] <= later[0] for earlier, later in itertools.pairwise(built))
        b.check_clean()


def test_a_quarantined_job_is_tried_again(engine: PrivateEngine, private_registry: Registry) -> None:
    """With the password that it came with, by one request; the new job names the old one, and succeeds."""
    with BuildBox(engine, failpoints="while_pushing") as b:
        image = f"{private_registry.host}/crash/again:1"
        job = b.submit_build(image, dockerfile("RUN true"), **LOGIN)
        for _ in range(CRASHES_MAX - 1):
            assert b.daemon.wait() == EXIT_STATUS
            b.daemon.spawn(failpoints="while_pushing")
        assert b.daemon.wait() == EXIT_STATUS
        b.restart()
        assert b.ended(job)["error"]["code"] == "quarantined"
        again = b.call("POST", f"/api/v2/jobs/{job}/retry")
        assert (again.status, again.json["retry_of"]) == (201, job)
        b.succeeded(again.json["id"])


def test_acknowledged_is_kept(engine: PrivateEngine) -> None:
    """Under load and random kills, no job whose id a client has read is ever missing, or there twice."""
    acknowledged: dict[str, str] = {}
    stop = threading.Event()

    def load(b: BuildBox, worker: int) -> None:
        number = 0
        while not stop.is_set():
            key = f"{worker}-{number}"
            try:
                # A registry that does not answer: the jobs stay in the queue.
                acknowledged[key] = b.submit_build("127.0.0.1:9/x", "FROM scratch\nENV a=b\n", key=key)
                number += 1
            except OSError:
                time.sleep(0.01)

    with BuildBox(engine, limits={"queue_max": 100_000}) as b:
        clients = [threading.Thread(target=load, args=(b, worker)) for worker in range(8)]
        for client in clients:
            client.start()
        for number in range(1, 7):
            until(lambda n=number: len(acknowledged) > 20 * n, what="jobs to be acknowledged")
            time.sleep(random.uniform(0, 0.3))
            b.daemon.kill()
            b.daemon.start()
        stop.set()
        for client in clients:
            client.join()
        kept = dict(b.daemon.sqlite("select idempotency_key, uuid from job"))
        assert len(acknowledged) > 100
        assert acknowledged.items() <= kept.items()
        assert len(kept) <= len(acknowledged) + len(clients)
        running = "select count(*), max(crashes) from job where state = 'running'"
        assert b.daemon.sqlite(running)[0][0] <= 2
        b.daemon.kill()
        b.check_database()
