"""The run API's words on what fails for a reason of the configuration's or the engine's, on a real engine."""

import json
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import pytest
from calls import curl
from runs import FROM, PERF, launch, log_of, said

from harness.daemon import Daemon
from harness.engine import PrivateEngine
from harness.holdings import holdings_of
from harness.services import require

# Bounds that a container reaches soon.
TIGHT = {
    "memory_bytes": 24 * 1024 * 1024,
    "file_max_bytes": 1024 * 1024,
    "perf_max_bytes": 4096,
    "output_max_bytes": 64 * 1024,
}


class Case(NamedTuple):
    """A Dockerfile, the codes one of which its run may end with, none for success, and what is said of it."""

    text: str
    codes: tuple[str, ...]
    words: str


def prints(command: str) -> str:
    return f"{FROM}CMD {json.dumps(['sh', '-c', command])}"


CASES = {
    "silent": Case(prints("exit 200"), ("run_failed",), "exited with code 200; it printed nothing that explains it"),
    "large file": Case(
        prints("dd if=/dev/zero of=/data/perf.json bs=64k"),
        ("run_failed",),
        "exited with code 153 (SIGXFSZ: a file grew past kinds.run.file_max_bytes = 1048576 bytes)",
    ),
    "large result": Case(prints("seq 2000 > /data/perf.json"), ("result_invalid",), "at most 4096 are read"),
    "memory": Case(
        f"{FROM}CMD dd if=/dev/zero of=/dev/null bs=100M",
        # That memory was the reason is said for sure, or, where the engine does not tell so, as the likely one.
        ("out_of_memory", "run_failed"),
        "25165824 bytes",
    ),
    "a folder for a command": Case(f'{FROM}CMD ["/bin"]', ("run_failed",), "/bin"),
    "no command and no files": Case("FROM scratch\nLABEL a=b", ("run_failed",), ""),
    "build": Case(f"{FROM}RUN echo going down && exit 7\n{PERF}", ("build_failed",), "7"),
    "much output": Case(
        f"{FROM}CMD seq 100000; {PERF.removeprefix('CMD ')}; echo the end", (), "Model performance : 0.500000"
    ),
}


@pytest.fixture(scope="module")
def tight_daemon(engine: PrivateEngine) -> Iterator[Daemon]:
    """A daemon that gives a container little of everything."""
    require("curl")
    with Daemon({"kinds": {"run": TIGHT}, "limits": {"run": 4}}, engine_host=engine.host) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def jobs(tight_daemon: Daemon) -> Mapping[str, str]:
    """All of them at once, so that a test waits for little more than its own."""
    return {name: launch(tight_daemon, case.text) for name, case in CASES.items()}


@pytest.mark.parametrize("name", CASES)
def test_words(tight_daemon: Daemon, engine: PrivateEngine, jobs: Mapping[str, str], name: str) -> None:
    """Each way to end has its own code and words, is tried once, and leaves nothing in the engine."""
    case, job = CASES[name], jobs[name]
    text = said(tight_daemon, job)
    assert text.startswith("Failed - " if case.codes else "Successful - ")
    assert case.words in text
    shown = curl(tight_daemon, f"/api/v2/jobs/{job}").json
    assert shown["attempt"] == 1
    assert not case.codes or shown["error"]["code"] in case.codes, shown["error"]
    assert holdings_of(engine, job) == []


def test_a_build_that_fails(tight_daemon: Daemon, jobs: Mapping[str, str]) -> None:
    """Nothing of it is run."""
    said(tight_daemon, jobs["build"])
    phases = curl(tight_daemon, f"/api/v2/jobs/{jobs['build']}").json["phases"]
    assert [phase["name"] for phase in phases] == ["building"]


def test_output_is_bounded(tight_daemon: Daemon, jobs: Mapping[str, str]) -> None:
    """Much output is cut where the bound is, visibly, and its end is kept."""
    said(tight_daemon, jobs["much output"])
    log = log_of(tight_daemon, jobs["much output"])
    assert len(log) < 4 * TIGHT["output_max_bytes"]
    assert "\n1\n2\n3\n" in log
    assert "\n[the output is over 65536 bytes; what follows is left out until its end]\n" in log
    assert "\n100000\nthe end\nexited with code 0" in log
