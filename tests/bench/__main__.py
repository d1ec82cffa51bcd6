"""`python -m bench [--quick] [NAME…]`: measure all, or those that are named, and print one table.

The exit code is 0 also where a target is missed: figures of a busy machine must not stop anybody's work. It is 1 where
something could not be measured at all. `$IMAGEJOBD_BENCH_PEERS` names further tools that copy images (`bench.copiers`),
and `$IMAGEJOBD_BENCH_OLD` another checkout to measure beside (`bench.distribute`).
"""

import argparse
import os
import platform
import signal
import sqlite3
import subprocess
import sys

from bench import (
    accept,
    client,
    dispatch,
    distribute,
    distribute_links,
    distribute_loop,
    distribute_requests,
    followers,
    history,
    noise,
    overhead,
    page,
    policy,
    queue,
    run_overhead,
)
from bench.figures import Figure, say, table

MEASUREMENTS = {
    "accept": accept.measure,
    "queue": queue.measure,
    "history": history.measure,
    "overhead": overhead.measure,
    "client": client.measure,
    "noise": noise.measure,
    "followers": followers.measure,
    "run_overhead": run_overhead.measure,
    "dispatch": dispatch.measure,
    "policy": policy.measure,
    "page": page.measure,
    "distribute": distribute.measure,
    "distribute_old": distribute.measure_beside_older,
    "distribute_small": distribute.measure_small_blobs,
    "distribute_link": distribute_links.measure_shaped_source,
    "distribute_streams": distribute_links.measure_streams,
    "distribute_slow": distribute_links.measure_slow_target,
    "distribute_reads": distribute_requests.measure_reads,
    "distribute_again": distribute_requests.measure_again,
    "distribute_loop": distribute_loop.measure,
}


def main() -> int:
    arguments = _arguments()
    # All that runs beside it ends with it, also where a time limit ends it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    figures: list[Figure] = []
    failed: list[str] = []
    for name in arguments.names or MEASUREMENTS:
        print(f"measuring {name}: {_first_line(name)}", file=sys.stderr, flush=True)
        try:
            figures += MEASUREMENTS[name](quick=arguments.quick)
        except (RuntimeError, AssertionError, OSError, subprocess.SubprocessError) as error:
            failed.append(f"{name} could not be measured: {error}")
        say(f"load average {_load()}")
    print(f"\n{_machine()}{', --quick: sizes too small to judge by' if arguments.quick else ''}\n")
    print("\n".join([table(figures), *failed]))
    return 1 if failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description="Measure imagejobd beside the plain tools.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"what to measure: {', '.join(MEASUREMENTS)}")
    parser.add_argument("--quick", action="store_true", help="small sizes, to try the measurements themselves")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(MEASUREMENTS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(MEASUREMENTS)}")
    return arguments


def _first_line(name: str) -> str:
    """Of what documents the measurement: its own function, or else its module."""
    measure = MEASUREMENTS[name]
    return (measure.__doc__ or sys.modules[measure.__module__].__doc__ or "").splitlines()[0]


def _machine() -> str:
    python, sqlite = platform.python_version(), sqlite3.sqlite_version
    return f"{os.cpu_count()} cores, Python {python}, SQLite {sqlite}, load average {_load()}"


def _load() -> str:
    return " ".join(f"{load:.1f}" for load in os.getloadavg())


if __name__ == "__main__":
    sys.exit(main())
