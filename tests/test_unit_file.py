"""The units in systemd/: what they promise the daemon, and that systemd's own tools agree with them."""

import subprocess
from configparser import RawConfigParser
from pathlib import Path

import pytest

from harness.services import require

ROOT = Path(__file__).parents[1]
DRAIN_TIMEOUT_S = 90  # the default of `[server] drain_timeout_s`


def read_unit(name: str) -> RawConfigParser:
    unit = RawConfigParser(strict=False, delimiters=("=",), comment_prefixes=("#",))
    unit.optionxform = str  # type: ignore[method-assign, assignment]  # keys of units have capitals
    unit.read_string((ROOT / "systemd" / name).read_text())
    return unit


@pytest.fixture
def service() -> RawConfigParser:
    return read_unit("imagejobd.service")


def test_the_service_speaks_sd_notify(service: RawConfigParser) -> None:
    """systemd waits for READY from the daemon itself and restarts it when the watchdog is not fed."""
    assert service["Service"]["Type"] == "notify"
    assert service["Service"]["NotifyAccess"] == "main"
    assert service["Service"]["WatchdogSec"] == "30"
    assert service["Service"]["Restart"] == "on-failure"


def test_a_reload_is_a_hangup(service: RawConfigParser) -> None:
    """`systemctl reload` sends the signal at which the daemon reads the keys for tokens again."""
    assert service["Service"]["ExecReload"] == "/bin/kill -HUP $MAINPID"


def test_a_drain_ends_before_systemd_kills(service: RawConfigParser) -> None:
    """The stop time-out leaves room for the whole drain, and only the daemon itself hears SIGTERM."""
    assert int(service["Service"]["TimeoutStopSec"]) > DRAIN_TIMEOUT_S
    assert service["Service"]["KillMode"] == "mixed"


def test_the_daemon_may_write_where_it_keeps_its_state(service: RawConfigParser) -> None:
    """The file system is read-only but for the default state_dir, which is the service user's."""
    assert service["Service"]["ProtectSystem"] == "strict"
    assert service["Service"]["StateDirectory"] == "imagejobd"
    assert service["Service"]["User"] == "imagejobd"


def test_jobs_are_accepted_while_the_engine_is_away(service: RawConfigParser) -> None:
    """The engine is wanted and started first, but its failure does not stop the daemon."""
    assert "docker.service" in service["Unit"]["Wants"]
    assert "docker.service" in service["Unit"]["After"]
    assert "Requires" not in service["Unit"]


def test_the_port_is_loopback_only() -> None:
    """The socket unit opens nothing to the network: callers there are anonymous by default."""
    assert read_unit("imagejobd.socket")["Socket"]["ListenStream"].startswith("127.0.0.1:")


def test_systemd_agrees() -> None:
    """`systemd-analyze verify` is silent on both units, and the exposure is within the project's bound."""
    require("systemd-analyze")
    done = subprocess.run([ROOT / ".ci" / "check-units"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "Overall exposure level for imagejobd.service" in done.stdout
