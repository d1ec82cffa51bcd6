"""The harness keeps what it promises to the other tests."""

import os
from pathlib import Path

import pytest

from harness.base_image import BUSYBOX, load_busybox
from harness.engine import PrivateEngine
from harness.registry import PASSWORD, USERNAME, Registry
from harness.services import REQUIRE_VARIABLE, require
from harness.waiting import until

DOCKERFILE = f"FROM {BUSYBOX}\nRUN seq 3 > /numbers\n".encode()


@pytest.mark.parametrize("buildkit", [True, False])
def test_engine_builds_on_busybox_and_pushes(engine: PrivateEngine, registry: Registry, buildkit: bool) -> None:
    """Both builders run applets of the base image, and the result can be pushed to the open registry."""
    tag = f"{registry.host}/harness/numbers:{int(buildkit)}"
    engine.docker("build", "--network=none", "-t", tag, "-", input=DOCKERFILE, buildkit=buildkit)
    engine.docker("push", tag)
    digest = registry.digest("harness/numbers", str(int(buildkit)))
    assert digest is not None
    assert digest.startswith("sha256:")
    assert str(int(buildkit)) in registry.tags("harness/numbers")
    assert engine.docker("run", "--rm", "--network=none", tag, "cat", "/numbers") == "1\n2\n3"


def test_private_registry_asks_for_its_password(engine: PrivateEngine, private_registry: Registry) -> None:
    """Pushing is denied before a login and allowed after it."""
    tag = f"{private_registry.host}/harness/base:1"
    engine.docker("tag", BUSYBOX, tag)
    assert "no basic auth credentials" in engine.docker("push", tag, check=False)
    engine.docker("login", "-u", USERNAME, "--password-stdin", private_registry.host, input=PASSWORD.encode())
    engine.docker("push", tag)
    engine.docker("logout", private_registry.host)
    assert private_registry.tags("harness/base") == ["1"]


def test_registry_keeps_content_and_address_over_an_outage() -> None:
    """A registry that goes down answers nobody, and comes back where it was with what it had."""
    require("docker-registry")
    with Registry(use_tls=True) as registry:
        host = registry.host
        registry.stop()
        with pytest.raises(OSError, match="refused"):
            registry.tags("any")
        registry.start()
        assert registry.host == host
        assert registry.digest("any", "tag") is None


def test_killed_engine_comes_back_and_leaves_nothing() -> None:
    """After kill -9 images are still there; after stop neither process, mount nor folder is."""
    require("dockerd", "docker", "busybox")
    with PrivateEngine() as engine:
        load_busybox(engine)
        engine.kill()
        assert "Cannot connect" in engine.docker("ps", check=False)
        engine.start()
        engine.docker("run", "-d", "--network=none", BUSYBOX, "sleep", "600")
        engine.kill()
        folder = str(engine.folder)
    assert not Path(folder).exists()
    assert folder not in Path("/proc/self/mountinfo").read_text()
    until(lambda: not [p for p in _commands() if folder in p], timeout_s=10, what="its processes to end")


def test_missing_service_fails_where_services_are_required(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing program skips a test, and fails it when services are required."""
    monkeypatch.delenv(REQUIRE_VARIABLE, raising=False)
    with pytest.raises(Exception, match="not installed") as skipped:
        require("no-such-program")
    assert skipped.typename == "SkipTest"
    monkeypatch.setenv(REQUIRE_VARIABLE, "1")
    with pytest.raises(RuntimeError, match="not installed"):
        require("no-such-program")


def _commands() -> list[str]:
    commands = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                commands.append((entry / "cmdline").read_text(errors="replace"))
            except OSError:
                continue
    return commands
