"""Greedy containers: whatever they take, it is bounded, they end with a reason, and the daemon does not mind."""

import shutil
import time
from collections.abc import Iterator

import pytest
from run_box import MIB, PERF, RunBox, dockerfile, run_box, script

from harness.engine import PrivateEngine
from harness.processes import processes, unique_seconds
from harness.waiting import until

TIMEOUT_S = 2.5
PIDS = 40
FILE_MAX_BYTES = 4 * MIB
OUTPUT_MAX_BYTES = 256 * 1024
LOG_MAX_BYTES = 64 * 1024
# What this file's own filler may take before the floor; other tests on the same disk come and go beside it.
SPARE_BYTES = 192 * MIB
# From a container's last second to the daemon's word on it.
JUDGED_WITHIN_S = 4.0


@pytest.fixture(scope="module")
def small(engine: PrivateEngine) -> Iterator[RunBox]:
    """A box with little room for containers."""
    run = {
        "memory_bytes": 48 * MIB,
        "pids": PIDS,
        "timeout_s": TIMEOUT_S,
        "file_max_bytes": FILE_MAX_BYTES,
        "tmp_max_bytes": 8 * MIB,
        "output_max_bytes": OUTPUT_MAX_BYTES,
    }
    with run_box(engine, kinds={"run": run}, limits={"log_max_bytes": LOG_MAX_BYTES}) as made:
        yield made
        made.check_healthy()


def test_fork_bomb(small: RunBox) -> None:
    """A fork bomb stays within its processes, is ended by the clock, and not one of it survives."""
    seconds = unique_seconds()
    bomb = "(sleep 1; b() { b | b & }; b) &"
    sleepers = f"(sleep 0.3; while :; do sleep {seconds} & done) &"
    job = small.launch(dockerfile(script(bomb, sleepers, f"sleep {seconds} &", "wait", PERF)))
    until(lambda: len(processes(seconds)) > 1, timeout_s=20, what="the bomb")
    most, began = 0, time.monotonic()
    while small.status(job).status == 202:
        most = max(most, len(processes(seconds)))
        assert time.monotonic() - began < TIMEOUT_S + JUDGED_WITHIN_S
    assert "timeout_s = 2.5 s" in small.outcome(job)
    assert most <= PIDS
    assert processes(seconds) == []


@pytest.mark.parametrize(
    "greed", ["tail /dev/zero", "dd if=/dev/zero of=/dev/null bs=512M count=1"], ids=["growing", "at once"]
)
def test_memory_hog(small: RunBox, greed: str) -> None:
    """A container that wants more memory than it may have is told so, and not that it exited with 137."""
    job = small.launch(dockerfile(script(f"exec {greed}")))
    assert "memory" in small.outcome(job)
    assert small.job(job)["error"]["code"] == "out_of_memory"


def test_memory_file_system_counts_as_memory(small: RunBox) -> None:
    """/tmp has its own bound, and what it holds is not free."""
    job = small.launch(dockerfile(script("dd if=/dev/zero of=/tmp/a bs=1M count=6 2>/dev/null", "exec tail /dev/zero")))
    assert small.failed(job, "out_of_memory")


def test_one_large_file(small: RunBox) -> None:
    """A file in /data grows to its bound and not beyond."""
    job = small.launch(
        dockerfile(
            script("dd if=/dev/zero of=/data/big bs=64k count=1000", "code=$?", "stat -c %s /data/big", "exit $code")
        )
    )
    assert small.outcome(job).startswith("Failed - ")
    assert small.job(job)["error"]["code"] == "run_failed"
    assert str(FILE_MAX_BYTES) in small.log(job).split()


def test_many_files_stop_at_the_floor(engine: PrivateEngine) -> None:
    """A container that fills the engine's disk with file after file is stopped while there is still room for others."""
    fill = "i=0; while dd if=/dev/zero of=/data/$i bs=1M count=64 2>/dev/null; do i=$((i + 1)); done"
    floor = shutil.disk_usage(engine.folder).free - SPARE_BYTES
    with run_box(engine, kinds={"run": {"disk_free_min_bytes": floor, "timeout_s": 60}}) as box:
        job = box.launch(dockerfile(script(fill, "sleep 60")))
        outcome = box.outcome(job)
        assert outcome.startswith("Failed - ")
        assert "disk" in outcome
        assert box.job(job)["error"]["code"] == "storage_full"
        box.check_healthy()


def test_endless_output(small: RunBox) -> None:
    """Output without end goes into a log with an end, costs no memory, and its last lines are in the reason."""
    before = small.daemon.rss_bytes()
    job = small.launch(dockerfile(script("timeout 1 yes 'all work and no play'", "echo the very end", "exit 9")))
    outcome = small.outcome(job)
    assert "exited with code 9" in outcome
    assert "the very end" in outcome
    assert len(small.log(job).encode()) < 2 * LOG_MAX_BYTES
    assert small.daemon.rss_bytes() - before < 40 * MIB


def test_one_endless_line(small: RunBox) -> None:
    """Output that never ends a line is no different."""
    before = small.daemon.rss_bytes()
    job = small.launch(dockerfile(script("timeout 1 tr '\\\\0' x < /dev/zero", PERF)))
    assert small.outcome(job) == "Successful - Model performance : 0.500000"
    assert len(small.log(job).encode()) < 2 * LOG_MAX_BYTES
    assert small.daemon.rss_bytes() - before < 40 * MIB


def test_output_that_is_no_text(small: RunBox) -> None:
    """Bytes that are no UTF-8, control characters and NULs neither fail the job nor split its log."""
    job = small.launch(dockerfile(script("head -c 5000 /dev/urandom", "head -c 100 /dev/zero", "echo", PERF)))
    assert small.outcome(job) == "Successful - Model performance : 0.500000"
    assert "exited with code 0" in small.log(job)


@pytest.mark.parametrize("stubborn", ["", "trap '' TERM INT HUP"], ids=["sleeper", "ignores SIGTERM"])
def test_sleeper_beyond_its_time(small: RunBox, stubborn: str) -> None:
    """Past its time a container is killed, whether it would listen to SIGTERM or not."""
    job = small.launch(dockerfile(script(stubborn or "true", "echo started", "while :; do sleep 1; done")))
    small.prints(job, "started")
    began = time.monotonic()
    outcome = small.outcome(job)
    assert time.monotonic() - began < TIMEOUT_S + JUDGED_WITHIN_S
    assert "timeout_s = 2.5 s" in outcome
    assert small.job(job)["error"]["code"] == "timeout"
