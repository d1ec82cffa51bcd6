"""Queue: no-op jobs accepted, claimed, run and finished, beside huey's SqliteHuey, both with synchronous=FULL.

A job here also leaves its history, its events and two lines in the daemon's log; huey keeps nothing of a finished task.
"""

import tempfile
from pathlib import Path
from statistics import median

from bench.disk import disk_folder
from bench.figures import Bound, Figure, say
from bench.python import run_module

JOBS = 20_000
ROUNDS = 3

RATE_BOUND = Bound("≥", 3_000.0, "/s")
RATIO_BOUND = Bound("≥", 3.0)


def measure(*, quick: bool) -> list[Figure]:
    jobs, rounds = (2_000, 1) if quick else (JOBS, ROUNDS)
    ours: list[float] = []
    hueys: list[float] = []
    with disk_folder() as folder:
        for number in range(rounds):
            hueys.append(jobs / _seconds(folder, "bench.huey_jobs", jobs))
            ours.append(jobs / _seconds(folder, "bench.noop_jobs", jobs))
            say(f"round {number + 1}: {ours[-1]:,.0f} jobs/s; huey {hueys[-1]:,.0f}/s")
    per_s, huey_per_s = median(ours), median(hueys)
    shown, beside = f"{per_s:,.0f}/s", f"huey {huey_per_s:,.0f}/s"
    return [
        Figure("queue, no-op jobs", shown, beside, per_s, RATE_BOUND),
        Figure("queue, beside SqliteHuey", shown, beside, per_s / huey_per_s, RATIO_BOUND),
    ]


def _seconds(folder: Path, module: str, jobs: int) -> float:
    """Seconds for `jobs` jobs on a new database."""
    state_dir = tempfile.mkdtemp(dir=folder)
    return float(run_module(module, state_dir, jobs, log_file=folder / "log"))
