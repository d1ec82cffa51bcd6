"""The file that images are built from, read by the parser that judges everybody's; and what it puts into them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness.daemon import Daemon, clean_environment
from harness.process import free_port
from imagejobd.dockerfile.parser import Dockerfile, parse

SOURCE_ROOT = Path(__file__).parents[2]
CONFIGURATION = SOURCE_ROOT / "packages" / "container.toml"
SOCKET = "/run/imagejobd/api.sock"
TIMEOUT_S = 60


@pytest.fixture(scope="module")
def file() -> Dockerfile:
    return parse((SOURCE_ROOT / "packages" / "Containerfile").read_text())


def arguments(file: Dockerfile, name: str) -> list[str]:
    return [one.arguments for one in file.instructions if one.name == name]


def test_what_it_copies_is_there(file: Dockerfile) -> None:
    """Each source of a COPY from the context is in a checkout."""
    copies = [one for one in file.instructions if one.name == "COPY" and not one.flags]
    sources = [source for one in copies for source in one.arguments.split()[:-1]]
    assert {"pyproject.toml", "imagejobd"} <= set(sources)
    assert [source for source in sources if not (SOURCE_ROOT / source).exists()] == []


def test_its_shape(file: Dockerfile) -> None:
    """The base is by argument; nothing runs as root; state and socket are volumes; `serve` is what it does."""
    assert [base.split(" AS ")[0] for base in arguments(file, "FROM")] == ["python:${PYTHON}-slim"] * 2
    assert arguments(file, "USER") == ["990:990"]
    assert json.loads(arguments(file, "VOLUME")[0]) == ["/var/lib/imagejobd", str(Path(SOCKET).parent)]
    assert [json.loads(*arguments(file, name)) for name in ("ENTRYPOINT", "CMD")] == [["imagejobd"], ["serve"]]


def test_its_configuration() -> None:
    """The daemon takes it, and it opens the socket that clients and the health check use."""
    argv = [sys.executable, "-m", "imagejobd", "check-config", "--config", str(CONFIGURATION)]
    done = subprocess.run(argv, env=clean_environment(), capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    assert f'listen = ["unix:{SOCKET}"]' in CONFIGURATION.read_text()


def test_its_health_check(file: Dockerfile, tmp_path: Path) -> None:
    """It succeeds while a daemon answers at the socket, and fails when none does."""
    socket, port = tmp_path / "api.sock", free_port()
    [check] = arguments(file, "HEALTHCHECK")
    _, program = json.loads(check.removeprefix("CMD "))[1:]
    argv = [sys.executable, "-c", program.replace(SOCKET, str(socket))]

    def status() -> int:
        return subprocess.run(argv, stderr=subprocess.DEVNULL, timeout=TIMEOUT_S, check=False).returncode

    daemon = Daemon({"server": {"listen": [f"127.0.0.1:{port}", f"unix:{socket}"]}})
    daemon.port = port
    with daemon:
        assert status() == 0
    assert status() != 0
