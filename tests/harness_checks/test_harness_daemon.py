"""The daemon under the harness: started, read, crashed and stopped."""

import tomllib
from collections.abc import Iterator

import pytest

from harness.daemon import Daemon, to_toml


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with Daemon() as daemon:
        yield daemon


def test_writes_toml() -> None:
    """Tables of any name and depth read back as they were."""
    tables = {
        "server": {"listen": ["127.0.0.1:1"], "drain_timeout_s": 1.5},
        "registry": {"127.0.0.1:5000": {"username": 'a "b" \\ é', "insecure": True}},
    }
    assert tomllib.loads(to_toml(tables)) == tables


def test_daemon_survives_a_crash_and_stops_in_order(daemon: Daemon) -> None:
    """It comes back on its state after kill -9, can be read beside its work, and ends with code 0 on SIGTERM."""
    assert daemon.sqlite("pragma user_version")[0][0] > 0
    assert daemon.rss_bytes() > 0
    daemon.kill()
    assert not daemon.is_running
    daemon.start()
    assert daemon.terminate().code == 0
