"""`kill -9` in every phase of a dispatched job, and in mid-upload: what was acknowledged is done once."""

import hashlib
import http.client
import random
import time
import uuid

import pytest

from harness.bodies import dockerfile
from harness.client import Fields
from harness.dispatch_box import DispatchBox, Tenant, context, printed
from harness.engine import PrivateEngine
from harness.registry import Registry
from harness.waiting import until

PLACES = (
    "while_checking",
    "after_check",
    "after_build",
    "while_exporting",
    "after_export",
    "while_pushing",
    "after_push",
    "before_purge",
    "after_purge",
    "before_finish",
    "before_commit:4",
    "after_commit:10",
)
# Where the image is in the content store and in the registry: it is built no second time.
AFTER_EXPORT = frozenset(PLACES[PLACES.index("after_export") : PLACES.index("before_finish") + 1])


def dispatch_surely(box: DispatchBox, tenant: Tenant, payload: bytes) -> str:
    """Submit; a daemon that crashes before it has answered is started again, and may have taken the job or not."""
    try:
        return tenant.dispatch(payload)
    except OSError:
        box.go_on_after_crash()
        stored = box.daemon.sqlite("select id from job")
        return str(stored[0][0]) if stored else tenant.dispatch(payload)


def check_done_once(box: DispatchBox, tenant: Tenant, job: str, *, crashes_max: int = 1) -> Fields:
    """The job has succeeded, ended one time, and is served."""
    tenant.done(job)
    ended = tenant.job(job)
    assert ended["crashes"] <= crashes_max
    endings = "select count(*) from event where type in ('succeed', 'fail', 'cancel') and job_id = ?"
    assert box.daemon.sqlite(endings, (int(job),)) == [(1,)]
    served = tenant.image(job)
    assert f"sha256:{hashlib.sha256(served).hexdigest()}" == ended["result"]["location"]["digest"]
    box.check_gone(ended["id"])
    return ended


@pytest.mark.parametrize("place", PLACES)
def test_a_crash_anywhere(engine: PrivateEngine, registry: Registry, place: str) -> None:
    """After a crash at this place the job still ends exactly once, with its image kept and pushed."""
    kinds = {"dispatch": {"repository": f"{registry.host}/crash/dispatched"}}
    with DispatchBox(engine, failpoints=place, kinds=kinds) as box:
        tenant = box.tenant()
        job = dispatch_surely(box, tenant, context(f"crash at {place}"))
        box.go_on_after_crash()
        ended = check_done_once(box, tenant, job)
        repository, _, tag = ended["result"]["image"].removeprefix(f"{registry.host}/").partition(":")
        assert registry.digest(repository, tag) == ended["result"]["digest"]
        if place in AFTER_EXPORT:
            assert [phase["name"] for phase in ended["phases"]].count("building") == 1
        assert box.daemon.sqlite("select count(*) from job") == [(1,)]
        box.check_healthy()


def test_image_after_a_crash_is_the_image(engine: PrivateEngine) -> None:
    """What is served after a crash in mid-export is a whole image."""
    with DispatchBox(engine, failpoints="while_exporting") as box:
        tenant = box.tenant()
        job = dispatch_surely(box, tenant, context("whole"))
        box.go_on_after_crash()
        check_done_once(box, tenant, job)
        assert printed(engine, tenant.image(job)) == "whole"


def test_killed_in_mid_upload(engine: PrivateEngine) -> None:
    """A payload that was on its way when the daemon died was never acknowledged, and nothing of it stays."""
    with DispatchBox(engine) as box:
        connection = http.client.HTTPConnection("127.0.0.1", box.daemon.port, timeout=20)
        connection.putrequest("POST", "/api/v1/job")
        connection.putheader("Authorization", f"Bearer {box.tenant().token}")
        connection.putheader("Content-Length", "10000000")
        connection.endheaders(b'{"encoding": "base64", "content": "' + b"QUJD" * 500_000)
        until(lambda: bool(box.spooled()), what="the payload to be spooled")
        box.restart()
        connection.close()
        assert box.daemon.sqlite("select count(*) from job") == [(0,)]
        assert (box.spooled(), box.blobs()) == ([], set())


def test_killed_at_random(engine: PrivateEngine) -> None:
    """Payloads of three sorts under two random kills all end once; what was acknowledged is served."""
    with DispatchBox(engine) as box:
        tenant = box.tenant()
        payloads = [context("random"), random.Random(1).randbytes(200_000), b"small"]
        jobs = [tenant.dispatch(payload) for payload in payloads]
        for _ in range(2):
            time.sleep(random.uniform(0.05, 0.8))
            box.restart()
        for job in jobs:
            check_done_once(box, tenant, job, crashes_max=2)
        assert [tenant.image(job) for job in jobs[1:]] == payloads[1:]
        assert len(set(jobs)) == 3
        box.check_healthy()


@pytest.mark.parametrize("death", ["restart", "kill"])
def test_engine_goes_away_in_mid_build(engine: PrivateEngine, death: str) -> None:
    """An engine that restarts or dies under a tenant's build is not the tenant's failure."""
    with DispatchBox(engine, limits={"retry_for_s": 600.0}) as box:
        tenant = box.tenant()
        job = tenant.dispatch(dockerfile(f"RUN echo {uuid.uuid4()} && sleep 1.5"))
        tenant.prints(job, "sleep 1.5")
        if death == "restart":
            engine.restart()
        else:
            engine.kill()
            engine.start()
        assert check_done_once(box, tenant, job)["attempt"] == 1
        box.check_healthy()
