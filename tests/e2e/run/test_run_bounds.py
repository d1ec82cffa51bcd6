"""Greedy containers: whatever they take, it is bounded, they end with a reason, and the daemon does not mind."""

import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from harness.base_image import load_busybox
from harness.bodies import dockerfile
from harness.client import phase_s
from harness.engine import DEFAULT_ROOT, PrivateEngine
from harness.processes import processes, unique_seconds
from harness.run_box import GIB, MIB, PERF, RunBox, launched, script
from harness.services import require
from harness.waiting import until

# Time enough for what is to fail otherwise.
TIMEOUT_S = 8.0
PIDS = 40
FILE_MAX_BYTES = 4 * MIB
OUTPUT_MAX_BYTES = 256 * 1024
LOG_MAX_BYTES = 64 * 1024
DISK_BYTES = GIB
DISK_FREE_MIN_BYTES = 640 * MIB
GROWTH_MAX_BYTES = 64 * MIB
# From a container's last second to its end.
JUDGED_WITHIN_S = 10.0
TIGHT = {
    "memory_bytes": 48 * MIB,
    "timeout_s": TIMEOUT_S,
    "pids": PIDS,
    "file_max_bytes": FILE_MAX_BYTES,
    "tmp_max_bytes": 8 * MIB,
    "output_max_bytes": OUTPUT_MAX_BYTES,
}


@pytest.fixture(scope="module")
def small(engine: PrivateEngine) -> Iterator[RunBox]:
    """A box with little room for containers."""
    with RunBox(engine, kinds={"run": TIGHT}, limits={"log_max_bytes": LOG_MAX_BYTES, "run": 2}) as made:
        yield made
        made.check_healthy()


@pytest.fixture
def lone_engine() -> Iterator[PrivateEngine]:
    """An engine on a disk of its own: on the one that all share, the images of other tests come and go."""
    require("dockerd", "docker", "busybox")
    disk = Path(tempfile.mkdtemp(prefix="ij-disk-", dir=DEFAULT_ROOT))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(disk)], check=True)
    try:
        with PrivateEngine(disk) as engine:
            load_busybox(engine)
            yield engine
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
        disk.rmdir()


def check_out_of_memory(box: RunBox, job: str) -> None:
    """The job failed for want of memory. No engine tells that each time; then it is said to be the likely reason."""
    outcome = box.outcome(job)
    code = box.job(job)["error"]["code"]
    assert code == "out_of_memory" or (code == "run_failed" and "SIGKILL: most often for want of memory" in outcome)


def check_timed_out(box: RunBox, job: str) -> None:
    """The job failed because its container was killed when its time was over, and no later."""
    assert "timeout_s = 8 s" in box.outcome(job)
    ended = box.job(job)
    assert ended["error"]["code"] == "timeout"
    assert TIMEOUT_S <= phase_s(ended, "running") < TIMEOUT_S + JUDGED_WITHIN_S


def test_fork_bomb(small: RunBox) -> None:
    """A fork bomb stays within its processes, is ended by the clock, and not one of it survives."""
    seconds = unique_seconds()
    bomb = "(sleep 1; b() { b | b & }; b) &"
    sleepers = f"(sleep 0.3; while :; do sleep {seconds} & done) &"
    job = small.launch(dockerfile(script(bomb, sleepers, f"sleep {seconds} &", "wait", PERF)))
    counts: list[int] = []

    def has_ended() -> bool:
        counts.append(len(processes(seconds)))
        return small.status(job).status != 202

    until(has_ended, what="its end")
    check_timed_out(small, job)
    assert 1 < max(counts) <= PIDS
    assert processes(seconds) == []


@pytest.mark.parametrize(
    "greed", ["tail /dev/zero", "dd if=/dev/zero of=/dev/null bs=512M count=1"], ids=["growing", "at once"]
)
def test_memory_hog(small: RunBox, greed: str) -> None:
    """A container that wants more memory than it may have is told so, and not only that it exited with 137."""
    check_out_of_memory(small, small.launch(dockerfile(script(f"exec {greed}"))))


def test_memory_file_system_counts_as_memory(small: RunBox) -> None:
    """/tmp has its own bound, and what it holds is not free."""
    job = small.launch(dockerfile(script("dd if=/dev/zero of=/tmp/a bs=1M count=6 2>/dev/null", "exec tail /dev/zero")))
    check_out_of_memory(small, job)


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


def test_many_files_stop_at_the_floor(lone_engine: PrivateEngine) -> None:
    """A container that fills the engine's disk with file after file is stopped while there is still room for others."""
    fill = "i=0; while dd if=/dev/zero of=/data/$i bs=1M count=16 2>/dev/null; do i=$((i + 1)); sleep 0.2; done"
    # This disk is memory, which counts as the container's.
    bounds = {"disk_free_min_bytes": DISK_FREE_MIN_BYTES, "memory_bytes": 2 * DISK_BYTES}
    with RunBox(lone_engine, kinds={"run": bounds}) as box:
        job = box.launch(dockerfile(script(fill, "echo full", "sleep 600")))
        outcome = box.outcome(job)
        assert "full" not in box.log(job).split()
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
    assert small.daemon.rss_bytes() - before < GROWTH_MAX_BYTES


def test_one_endless_line(small: RunBox) -> None:
    """Output that never ends a line is no different."""
    before = small.daemon.rss_bytes()
    job = small.launch(dockerfile(script("timeout 1 tr '\\\\0' x < /dev/zero", PERF)))
    assert small.outcome(job) == "Successful - Model performance : 0.500000"
    assert len(small.log(job).encode()) < 2 * LOG_MAX_BYTES
    assert small.daemon.rss_bytes() - before < GROWTH_MAX_BYTES


def test_output_that_is_no_text(small: RunBox) -> None:
    """Bytes that are no UTF-8, control characters and NULs neither fail the job nor split its log."""
    job = small.launch(dockerfile(script("head -c 5000 /dev/urandom", "head -c 100 /dev/zero", "echo", PERF)))
    assert small.outcome(job) == "Successful - Model performance : 0.500000"
    assert "exited with code 0" in small.log(job)


SLEEPERS = {"sleeper": "true", "ignores SIGTERM": "trap '' TERM INT HUP"}


@pytest.fixture(scope="module")
def sleepers(small: RunBox) -> Iterator[Mapping[str, str]]:
    """All of them at once, so that a test waits for little more than its own."""
    texts = {name: dockerfile(script(stubborn, "while :; do sleep 1; done")) for name, stubborn in SLEEPERS.items()}
    with launched(small, texts) as jobs:
        yield jobs


@pytest.mark.parametrize("name", SLEEPERS)
def test_sleeper_beyond_its_time(small: RunBox, sleepers: Mapping[str, str], name: str) -> None:
    """Past its time a container is killed, whether it would listen to SIGTERM or not."""
    check_timed_out(small, sleepers[name])
