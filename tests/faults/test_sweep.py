"""What no live job owns is removed from the engine at boot; what anybody else owns is not touched."""

import uuid

from harness.base_image import BUSYBOX
from harness.bodies import dockerfile
from harness.build_box import BuildBox
from harness.engine import PrivateEngine
from harness.proxy import FaultProxy, StallRequest
from harness.registry import Registry
from harness.waiting import until


def test_sweep_at_boot(engine: PrivateEngine) -> None:
    """Tags of unknown jobs go; those of live jobs and of others stay, and so do containers and volumes of any label.

    Of what an earlier version has named, only what is a known job's goes.
    """
    nobody, stranger = str(uuid.uuid4()), str(uuid.uuid4())
    with BuildBox(engine, limits={"retry_first_s": 600, "retry_max_s": 600}) as b:
        ended = b.build("127.0.0.1:9/nobody/there:1", dockerfile("RUN false"))
        assert b.ended(ended)["state"] == "failed"
        live = b.build("127.0.0.1:9/nobody/there:1", dockerfile("RUN true"))
        until(lambda: b.job(live)["error"] is not None, what="the first attempt to fail")
        b.daemon.kill()
        [own] = b.leftovers()
        assert own == b.built(live)
        unmarked = {f"imagejobd/{job}:1" for job in (ended, live, stranger)}
        others = {f"imagejobd/{'ab' * 6}/{stranger}:1", "imagejobd-like/other:1"}
        for name in {b.built(nobody), *unmarked, *others}:
            engine.docker("tag", BUSYBOX, name)
        label = ("--label", f"imagejobd.job={nobody}")
        engine.docker("volume", "create", *label, "somebody-elses")
        engine.docker("create", "--name=another", "--network=none", *label, BUSYBOX, "true")
        b.daemon.start()
        until(lambda: b.leftovers() == {own, f"another of {BUSYBOX}"}, what="the sweep")
        unmarked.remove(f"imagejobd/{ended}:1")
        until(lambda: names(engine) & {f"imagejobd/{ended}:1"} == set(), what="the sweep")
        assert names(engine) >= unmarked | others
        assert "somebody-elses" in engine.docker("volume", "ls", "--quiet")
        engine.docker("rm", "another")
        engine.docker("volume", "rm", "somebody-elses")
        b.cancel(live)
        until(lambda: not b.leftovers(), what="the sweep after the cancel")
        until(lambda: f"imagejobd/{live}:1" not in names(engine), what="the sweep after the cancel")
        engine.docker("rmi", f"imagejobd/{stranger}:1", *others)
        b.check_clean()


def names(engine: PrivateEngine) -> set[str]:
    """Of all images."""
    return set(engine.docker("images", "--format", "{{.Repository}}:{{.Tag}}").split())


def test_a_purge_that_fails_is_left_to_the_sweep(engine: PrivateEngine, registry: Registry) -> None:
    """A job whose push is proved succeeds though its image cannot be purged yet; the sweep takes it away later."""
    with FaultProxy(registry.host) as proxy, BuildBox(engine) as b:
        proxy.add("PUT", ".*/manifests/.*", StallRequest())
        job = b.build(f"{proxy.host}/sweep/purge:1", dockerfile(f"RUN echo {uuid.uuid4()} > /id"))
        proxy.wait_for("PUT", ".*/manifests/.*")
        container = engine.docker("create", "--network=none", b.built(job), "true")
        proxy.release()
        ended = b.succeeded(job)
        assert ended["result"]["digest"] == registry.digest("sweep/purge", "1")
        assert b.built(job) in b.leftovers()
        assert "could not purge" in b.daemon.log_text()
        engine.docker("rm", container)
        b.restart()
        b.check_clean()
