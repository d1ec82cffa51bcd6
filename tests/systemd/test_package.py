"""The Debian package under a real systemd."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
from machine import ROOT, UNITS, Machine

from harness.debian_package import make_package
from harness.services import require, require_made

PAUSE_S = 0.5


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require("dpkg-deb")
    return make_package(tmp_path_factory.mktemp("package"))


@pytest.fixture
def machine(package: Path) -> Iterator[Machine]:
    """One on which the package is all that was installed."""
    require("systemd-nspawn", "nsenter", "docker", "busybox")
    require_made(ROOT, "make machine")
    with Machine(package) as machine:
        yield machine


def test_its_service(machine: Machine, package: Path) -> None:
    """It is up once it is installed; an upgrade refuses nobody and loses nothing; it stops when it is removed."""
    assert machine.call("GET", "/readyz").status == 200
    jobs = [machine.build("package/slow:1", "RUN echo begun && sleep 2")]
    machine.prints(jobs[0], "begun")
    pid = machine.pid
    with ThreadPoolExecutor() as threads:
        upgrade = threads.submit(machine.install, package)
        while not wait([upgrade], PAUSE_S).done:
            jobs.append(machine.build(f"package/upgrade-{len(jobs)}:1"))
        upgrade.result()
    assert machine.pid != pid
    machine.succeeded(*jobs)
    machine.run("dpkg", "--remove", "imagejobd")
    states = [machine.systemctl("is-active", unit, check=False) for unit in UNITS]
    assert states == ["inactive", "inactive"]
    assert "imagejobd.db" in machine.run("ls", "/var/lib/imagejobd").split()
