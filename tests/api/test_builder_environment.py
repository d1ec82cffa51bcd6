"""The builder API on a daemon that is set up as the original was, and with logins of the operator."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from calls import curl, ended_stage, submit

from harness.base_image import BUSYBOX
from harness.daemon import Daemon
from harness.engine import PrivateEngine
from harness.process import free_port
from harness.registry import PASSWORD, USERNAME, Registry


@pytest.fixture(scope="module")
def bare_daemon(
    engine: PrivateEngine, private_registry: Registry, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Daemon]:
    """A daemon whose configuration names neither port nor engine, but a login for the private registry."""
    password_file: Path = tmp_path_factory.mktemp("login") / "password"
    password_file.write_text(PASSWORD)
    password_file.chmod(0o600)
    port = free_port()
    daemon = Daemon(env={"PORT": f":{port}", "DOCKER_HOST": engine.host})
    daemon.port = port
    daemon.configure(
        {
            "server": {"state_dir": str(daemon.state_dir)},
            "engine": {"network": "none"},
            "registry": {
                private_registry.host: {
                    "username": USERNAME,
                    "password_file": str(password_file),
                    "plain_http": True,
                }
            },
        }
    )
    with daemon:
        yield daemon


def test_port_and_docker_host_are_honoured(bare_daemon: Daemon) -> None:
    """$PORT as `:8080` and $DOCKER_HOST count where the configuration is silent."""
    assert curl(bare_daemon, "/readyz").json["engine"] == "ok"


def test_configured_login_is_used_when_the_request_has_none(bare_daemon: Daemon, private_registry: Registry) -> None:
    """A push without credentials goes out with those that the operator configured for that host."""
    fields = {"image_name": f"{private_registry.host}/builds/configured", "dockerfile": f"FROM {BUSYBOX}\n"}
    assert ended_stage(bare_daemon, submit(bare_daemon, **fields)) == "Finished"
    assert private_registry.tags("builds/configured") == ["latest"]


def test_login_of_the_request_comes_first(bare_daemon: Daemon, private_registry: Registry) -> None:
    """A request's own credentials are used even when they are wrong and the configured ones would do."""
    fields = {"image_name": f"{private_registry.host}/builds/own", "dockerfile": f"FROM {BUSYBOX}\n"}
    job = submit(bare_daemon, **fields, username=USERNAME, password="not-the-password")
    assert ended_stage(bare_daemon, job).startswith("Failed: ")
    assert private_registry.tags("builds/own") == []


@pytest.mark.parametrize("login", [{"username": "me"}, {"username": "me", "password": ""}])
def test_a_username_alone_is_no_login(bare_daemon: Daemon, private_registry: Registry, login: dict[str, str]) -> None:
    """Both fields are optional: without a password the request has no login, and the configured one is used."""
    name = f"builds/alone{len(login)}"
    fields = {"image_name": f"{private_registry.host}/{name}", "dockerfile": f"FROM {BUSYBOX}\n"}
    assert ended_stage(bare_daemon, submit(bare_daemon, **fields, **login)) == "Finished"
    assert private_registry.tags(name) == ["latest"]
