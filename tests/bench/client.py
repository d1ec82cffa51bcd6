"""The client: `imagejobd build FOLDER` beside `docker build FOLDER && docker push`, and `imagejobd --help`."""

import subprocess
import sys
import time
from statistics import median

from bench.figures import Bound, Figure, say
from bench.overhead import FILES, ROUNDS, make_context
from bench.peers import Peers
from harness.daemon import SOURCE_ROOT

HELP_ROUNDS = 20
BUILD_BOUND = Bound("≤", 1.15)
HELP_BOUND = Bound("≤", 150, "ms")


def measure(*, quick: bool) -> list[Figure]:
    rounds, files = (1, 20) if quick else (ROUNDS, FILES)
    times: dict[str, list[float]] = {"imagejobd build": [], "docker": []}
    with Peers.running() as peers:
        make_context(peers.context, files)
        runs = [peers.by_client, peers.by_docker]
        for run in runs:  # all warm
            run()
        for number in range(rounds):
            turns = list(zip(times.values(), runs, strict=True))
            for taken, run in turns if number % 2 else turns[::-1]:
                taken.append(run())
            say(f"round {number + 1}: " + "; ".join(f"{who} {taken[-1]:.2f} s" for who, taken in times.items()))
    ours, beside = (median(taken) for taken in times.values())
    help_ms = median(help_s() for _ in range(HELP_ROUNDS)) * 1000
    return [
        Figure("imagejobd build FOLDER", f"{ours:.2f} s", f"docker {beside:.2f} s", ours / beside, BUILD_BOUND),
        Figure("imagejobd --help", f"{help_ms:.0f} ms", "", help_ms, HELP_BOUND),
    ]


def help_s() -> float:
    """Seconds until the help is printed."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "imagejobd", "--help"]
    subprocess.run(command, cwd=SOURCE_ROOT, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began
