"""The soak itself, in short: it breaks things, keeps its time, judges, and leaves nothing behind."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.daemon import SOURCE_ROOT
from harness.engine import ROOT_VARIABLE
from harness.processes import processes
from harness.services import require

LIMIT_S = 240.0


@contextmanager
def soaking(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`python -m soak` as `make soak` starts it, with all its files below `folder`; ended with the block."""
    require("dockerd", "docker", "docker-registry", "busybox")
    paths = os.pathsep.join([str(SOURCE_ROOT / "tests"), str(SOURCE_ROOT)])
    places = {"PYTHONPATH": paths, "TMPDIR": str(folder), ROOT_VARIABLE: str(folder)}
    with subprocess.Popen(
        [sys.executable, "-m", "soak", *arguments],
        env=os.environ | places,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as running:
        try:
            yield running
        finally:
            if running.poll() is None:
                running.send_signal(signal.SIGINT)


def test_short_soak(soak_folder: Path) -> None:
    """Some seconds with a few kills breaks no promise; each row of the table says 0."""
    with soaking(soak_folder, "--minutes", "0.15", "--kills", "3", "--seed", "1") as running:
        output, _ = running.communicate(timeout=LIMIT_S)
    assert running.returncode == 0, output
    counts = {name.strip(): int(count) for name, count in re.findall(r"^(\w[\w ]+?) {3,}(\d+)(?: {3}|$)", output, re.M)}
    assert counts["acknowledged"] > 0
    assert counts["kills"] > 0
    assert [counts[row] for row in ("lost", "ended twice", "wrong digest", "orphans", "failed without guilt")] == [
        0
    ] * 5
    assert list(soak_folder.iterdir()) == []


def test_stopped_soak(soak_folder: Path) -> None:
    """Ctrl-C in the middle ends all that was started, and leaves no file."""
    with soaking(soak_folder, "--minutes", "5", "--seed", "1") as running:
        output = running.stdout
        assert output is not None
        assert any("under load" in line for line in output)
        running.send_signal(signal.SIGINT)
        rest, _ = running.communicate(timeout=LIMIT_S)
    assert running.returncode == 130, rest
    assert list(soak_folder.iterdir()) == []
    assert not [pid for pid in processes("serve") if str(soak_folder) in _command(pid)]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
