"""Payloads on daemons that are set up in other ways: with a repository, without an engine, with the older builder."""

import hashlib
import json
import uuid
from pathlib import Path

from harness.bodies import dockerfile
from harness.dispatch_box import DispatchBox, context, printed
from harness.engine import PrivateEngine
from harness.registry import PASSWORD, USERNAME, Registry
from harness.skopeo import raw_manifest

# Nothing that is built: kept as it is.
PICTURE = b"\x89PNG\r\n\x1a\n"


def test_push_of_what_was_built(engine: PrivateEngine, private_registry: Registry, tmp_path: Path) -> None:
    """With a repository configured the image is pushed below it under the job's own name, as skopeo proves."""
    password_file = tmp_path / "registry.password"
    password_file.write_text(PASSWORD)
    with DispatchBox(
        engine,
        kinds={"dispatch": {"repository": f"{private_registry.host}/dispatched"}},
        registry={private_registry.host: {"username": USERNAME, "password_file": str(password_file)}},
    ) as box:
        tenant = box.tenant()
        jobs = [tenant.dispatch(dockerfile(f"RUN echo {uuid.uuid4()} > /id")) for _ in range(2)]
        jobs.append(tenant.dispatch(context("pushed")))
        pushed = set()
        for job in jobs:
            result = tenant.done(job)
            host, _, rest = result["image"].partition("/")
            repository, _, tag = rest.partition(":")
            assert host == private_registry.host
            assert repository.startswith("dispatched")
            manifest = raw_manifest(private_registry, repository, tag)
            assert result["digest"] == f"sha256:{hashlib.sha256(manifest).hexdigest()}"
            # The containerd store calls an image by its manifest.
            assert result["image_id"] in (json.loads(manifest)["config"]["digest"], result["digest"])
            pushed.add(result["image"])
            box.check_gone(tenant.job(job)["id"])
        assert len(pushed) == 3
        kept = tenant.done(tenant.dispatch(PICTURE))
        assert "image" not in kept
        box.check_healthy()


def test_without_an_engine(engine: PrivateEngine) -> None:
    """What needs no engine is done without one; what does waits for it, and neither is lost."""
    with DispatchBox(engine, engine_host="unix:///nowhere/engine.sock", limits={"retry_for_s": 600.0}) as box:
        tenant = box.tenant()
        waiting = tenant.dispatch(dockerfile("RUN true"))
        assert tenant.done(tenant.dispatch(PICTURE))["what"] == "file"
        assert tenant.job(waiting)["waiting_for"].startswith("waiting for the Docker Engine since 20")
        assert tenant.shown(waiting) == {"id": waiting, "tenant_id": 1, "client_id": 1, "status": "RUNNING"}
        assert tenant.call("GET", f"/images/{waiting}").status == 404
        tenant.cancel(waiting)
        assert tenant.outcome(waiting) == "FAILED"


def test_classic_builder(engine: PrivateEngine) -> None:
    """The engine's older builder makes the same of a payload."""
    with DispatchBox(engine, builder="classic") as box:
        tenant = box.tenant()
        job = tenant.dispatch(context("the older one"))
        assert tenant.done(job)["what"] == "context"
        assert printed(engine, tenant.image(job)) == "the older one"
        box.check_healthy()
