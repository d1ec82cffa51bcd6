"""One machine for all tests of a process, back at its defaults before each."""

from collections.abc import Iterator

import pytest

from harness.services import require, require_made

pytest.register_assert_rewrite("machine")

from machine import ROOT, Machine  # noqa: E402


@pytest.fixture(scope="session")
def booted() -> Iterator[Machine]:
    require("systemd-nspawn", "nsenter", "docker", "busybox")
    require_made(ROOT, "make machine")
    with Machine() as machine:
        yield machine


@pytest.fixture
def machine(booted: Machine) -> Machine:
    booted.configure()
    return booted
