"""Engine, registry or disk go away and come back: jobs wait and go on, callers are told."""

import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.base_image import BUSYBOX
from harness.bodies import dockerfile, tar
from harness.build_box import BuildBox
from harness.client import stopped_after_s
from harness.engine import PrivateEngine
from harness.proxy import Answer, FaultProxy, StallRequest
from harness.registry import Registry
from harness.waiting import until

STATE_DIR_BYTES = 3 * 1024 * 1024


def test_registry_down_and_up(engine: PrivateEngine) -> None:
    """A push to a registry that is down is tried again, without building again, until the registry is back."""
    with Registry() as own, BuildBox(engine) as b:
        own.stop()
        job = b.build(f"{own.host}/outage/push:1", dockerfile(f"RUN echo {uuid.uuid4()} > /id"))
        until(lambda: b.job(job)["error"] is not None, what="the first attempt to fail")
        waiting = b.job(job)
        assert waiting["error"]["code"] == "registry_unavailable"
        assert b.status(job) == "Pushing"
        # But while it is pushed, which is tried again all the time.
        until(lambda: own.host not in engine.docker("images"), what="the tag to go")
        own.start()
        ended = b.succeeded(job)
        assert ended["attempt"] > 1
        assert [phase["name"] for phase in ended["phases"]].count("building") == 1
        assert own.digest("outage/push", "1") == ended["result"]["digest"]
        assert f"the job goes on when {own.host} answers" in b.logs(job)
        b.check_clean()


def test_digests_of_two_builds(engine: PrivateEngine, registry: Registry) -> None:
    """When the image is lost between the pushes of two tags it is built again, and both tags get the new one."""
    with FaultProxy(registry.host) as proxy, BuildBox(engine) as b:
        # The containerd store repeats a 503 itself.
        proxy.add("PUT", ".*/manifests/2", Answer(503), times=None)
        text = dockerfile("RUN cat /proc/sys/kernel/random/uuid > /id")
        job = b.submit_build(f"{proxy.host}/outage/two:1", text, tags=["2"], nocache=True)
        until(lambda: b.job(job)["error"] is not None, what="the first attempt to fail")
        first = registry.digest("outage/two", "1")
        engine.docker("rmi", b.built(job))
        proxy.reset()
        ended = b.succeeded(job)
        assert {registry.digest("outage/two", tag) for tag in "12"} == set(ended["result"]["pushed"].values())
        assert registry.digest("outage/two", "1") == registry.digest("outage/two", "2") != first
        b.check_clean()


def test_context_is_lost(engine: PrivateEngine) -> None:
    """A job whose context is gone from the content store ends with words about what to do, not with a defect."""
    with BuildBox(engine) as b:
        context = tar({"Dockerfile": "FROM 127.0.0.1:9/nobody/there\nCOPY data /\n", "data": b"data"})
        job = b.upload("127.0.0.1:9/x", context).json["JobIdentifier"]
        until(lambda: b.job(job)["error"] is not None, what="the first attempt to fail")
        for blob in (b.daemon.state_dir / "blobs").rglob("*"):
            if blob.is_file():
                blob.unlink()
        ended = b.ended(job)
        assert (ended["state"], ended["error"]["code"]) == ("failed", "not_found")
        assert "submit the job again" in ended["error"]["message"]
        b.check_clean()


def test_registry_stays_down(engine: PrivateEngine) -> None:
    """When `retry_for_s` is over the job fails, says how often it was tried, and leaves the engine clean."""
    with BuildBox(engine, limits={"retry_for_s": 3.0}) as b:
        job = b.build("127.0.0.1:9/nobody/there:1", dockerfile("RUN true"))
        ended = b.ended(job)
        assert (ended["state"], ended["error"]["code"]) == ("failed", "registry_unavailable")
        assert "gave up after " in b.status(job)
        b.check_clean()


@pytest.mark.parametrize("builder", ["buildkit", "classic"])
def test_engine_restart_in_mid_build(engine: PrivateEngine, registry: Registry, builder: str) -> None:
    """A build that an engine's restart cuts is not the user's failure: it is tried again and succeeds."""
    with BuildBox(engine, builder=builder, limits={"retry_for_s": 600.0}) as b:
        job = b.build(f"{registry.host}/outage/{builder}:1", dockerfile(f"RUN echo {uuid.uuid4()} && sleep 4"))
        b.prints(job, "sleep 4")
        engine.restart()
        ended = b.succeeded(job)
        assert ended["attempt"] == 1
        assert "engine_unavailable" in str(b.daemon.sqlite("select data from event where type = 'retry'"))
        # The container of a classic step that the engine was in when it went down stays; it bears no name of ours.
        engine.docker("container", "prune", "--force")
        b.check_clean()


def test_engine_down_at_start(engine: PrivateEngine, registry: Registry, tmp_path: Path) -> None:
    """Without an engine the daemon starts, says so, and takes jobs; with it they run and leftovers are swept."""
    socket = tmp_path / "engine.sock"
    with BuildBox(engine, engine_host=f"unix://{socket}", limits={"retry_for_s": 600.0}) as b:
        engine.docker("tag", BUSYBOX, b.built(str(uuid.uuid4())))
        ready = b.call("GET", "/readyz")
        assert ready.status == 200
        assert ready.json["engine"].startswith("waiting for the Docker Engine since 20")
        assert "is it running?" in ready.json["engine"]
        job = b.build(f"{registry.host}/outage/late:1", dockerfile("RUN true"))
        waiting = b.job(job)
        assert (waiting["state"], waiting["attempt"], waiting["error"]) == ("queued", 0, None)
        assert waiting["waiting_for"].startswith("waiting for the Docker Engine since 20")
        socket.symlink_to(engine.socket)
        b.succeeded(job)
        assert b.call("GET", "/readyz").json["engine"] == "ok"
        b.check_clean()


@pytest.mark.parametrize("outage", ["stopped", "killed", "frozen"])
def test_an_engine_outage_costs_no_job(engine: PrivateEngine, registry: Registry, outage: str) -> None:
    """However the engine goes away: the job that it was at and those that wait all succeed at their first attempt, and
    the daemon says once that it waits, and once that it goes on."""
    with BuildBox(engine, limits={"retry_for_s": 0.0}) as b:

        def build(number: int, step: str) -> str:
            # An image of its own: of one that two jobs build, the engine may lose the one while it removes the other.
            return b.build(
                f"{registry.host}/outage/{outage}:{number}", dockerfile(f"RUN echo {uuid.uuid4()} && {step}")
            )

        jobs = [build(1, "sleep 1.5")]
        b.prints(jobs[0], "sleep 1.5")
        jobs += [build(number, "true") for number in range(2, 8)]
        with away(engine, outage):
            until(lambda: b.call("GET", "/readyz").json["engine"] != "ok", what="the outage to be seen")
            late = build(9, "true")
            until(lambda: b.job(late)["waiting_for"] is not None, what="the late job to wait")
            assert "waiting for the Docker Engine since 20" in b.job(late)["waiting_for"]
        ended = b.all_succeeded(*jobs, late)
        assert {job["attempt"] for job in ended} == {1}
        assert len(registry.tags(f"outage/{outage}")) == 8
        log = b.daemon.log_text()
        assert log.count("the Docker Engine does not answer; jobs that need it wait") == 1
        assert log.count("the Docker Engine answers; jobs that need it go on") == 1


@contextmanager
def away(engine: PrivateEngine, outage: str) -> Iterator[None]:
    """The engine stopped, killed or frozen while the block lasts."""
    if outage == "frozen":
        with engine.frozen():
            yield
        return
    engine.stop() if outage == "stopped" else engine.kill()
    try:
        yield
    finally:
        engine.start()


def test_cancel_while_the_engine_hangs(engine: PrivateEngine, registry: Registry) -> None:
    """A build whose engine is frozen is cancelled within two seconds; the engine is clean soon after it is back."""
    with BuildBox(engine) as b:
        job = b.build(f"{registry.host}/outage/hang:1", dockerfile(f"RUN echo {uuid.uuid4()} && sleep 60"))
        b.prints(job, "sleep 60")
        with engine.frozen():
            assert b.cancel(job) == 202
            ended = b.ended(job)
        assert ended["state"] == "cancelled"
        assert stopped_after_s(ended) < 2.0
        b.check_clean()


def test_disk_full(engine: PrivateEngine, registry: Registry) -> None:
    """A full disk is told with 507, leaves nothing half-written, harms no running job, and passes with new space."""
    with FaultProxy(registry.host) as proxy, full_box(engine) as b:
        image, spool = f"{proxy.host}/outage/disk", b.daemon.state_dir / "spool"
        proxy.add("PUT", ".*/manifests/.*", StallRequest(), times=1)
        job = b.build(f"{image}:1", dockerfile(f"RUN echo {uuid.uuid4()}"))
        proxy.wait_for("PUT", ".*/manifests/.*")
        spooled = set(spool.iterdir())
        fill(b)
        refused = b.call(
            "POST",
            "/api/v1/build",
            {"image_name": image, "dockerfile": "FROM scratch\n" + f"# {'comment' * 30}\n" * 1000},
        )
        assert refused.status == 507
        assert "disk" in refused.json["Error"]
        large = tar({"Dockerfile": dockerfile("COPY data /"), "data": b"y" * STATE_DIR_BYTES})
        assert b.upload(image, large).status == 507
        assert b.job(job)["state"] == "running"
        assert set(spool.iterdir()) <= spooled
        (b.daemon.state_dir / "filler").unlink()
        proxy.release()
        first, _ = b.all_succeeded(job, b.build(f"{image}:2", dockerfile("RUN true")))
        assert first["attempt"] == 1
        assert registry.tags("outage/disk") == ["1", "2"]
        assert b.daemon.sqlite("select count(*) from job") == [(2,)]
        b.check_clean()


@contextmanager
def full_box(engine: PrivateEngine) -> Iterator[BuildBox]:
    """A box whose state folder is a small file system of its own."""
    made = BuildBox(engine)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={STATE_DIR_BYTES}", "tmpfs", str(made.daemon.state_dir)]
    subprocess.run(mount, check=True)
    try:
        made.daemon.start()
        yield made
    finally:
        made.daemon.kill()
        subprocess.run(["umount", str(made.daemon.state_dir)], check=True)
        made.daemon.remove()


def fill(b: BuildBox) -> None:
    """Take all the space there is."""
    with (b.daemon.state_dir / "filler").open("wb", buffering=0) as filler:
        for size in (4096, 1):
            try:
                while filler.write(b"\0" * size):
                    pass
            except OSError:
                continue
