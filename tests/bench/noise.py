"""Noise: a build that prints 200,000 lines, beside the docker client with its plain progress in a file.

Also: every line is in the log that the API gives, in order; and the daemon's memory, idle and at its peak.
"""

import re
import time
import urllib.request
from pathlib import Path
from statistics import median

from bench.figures import Bound, Figure, say
from bench.peers import Peers
from harness.base_image import BUSYBOX
from harness.daemon import Daemon

LINES = 200_000
BURST_LINES = 5_000
REST_S = 0.03
ROUNDS = 5
IDLE_S = 2.0
MIB = 1024 * 1024

COST_BOUND = Bound("≤", 1.1)
PEAK_BOUND = Bound("≤", 150.0, "MiB")
IDLE_BOUND = Bound("≤", 80.0, "MiB")


def measure(*, quick: bool) -> list[Figure]:
    rounds, lines = (1, 20_000) if quick else (ROUNDS, LINES)
    ours: list[float] = []
    docker: list[float] = []
    with Peers.running() as peers:
        (peers.context / "Dockerfile").write_text(dockerfile(lines))
        time.sleep(IDLE_S)
        idle = _memory_mib(peers.daemon, "VmRSS")
        readable = lines
        for number in range(rounds):
            turns = [(docker, peers.by_docker), (ours, peers.by_daemon)]
            for times, run in turns if number % 2 else reversed(turns):
                times.append(run())
            readable = min(readable, _readable(peers))
            say(f"round {number + 1}: {ours[-1]:.2f} s; docker {docker[-1]:.2f} s; {readable:,} lines in order")
        peak = _memory_mib(peers.daemon, "VmHWM")
    cost, docker_cost = median(ours), median(docker)
    return [
        Figure(
            f"noise, {lines:,} lines", f"{cost:.2f} s", f"docker {docker_cost:.2f} s", cost / docker_cost, COST_BOUND
        ),
        Figure("noise, lines readable", f"{readable:,}", "", readable, Bound("≥", lines, "lines")),
        Figure("memory, peak", f"{peak:.0f} MiB", "", peak, PEAK_BOUND),
        Figure("memory, idle", f"{idle:.0f} MiB", "", idle, IDLE_BOUND),
    ]


def dockerfile(lines: int) -> str:
    """A step that prints numbered lines as long as a compiler's, with a short rest after every burst.

    Without rests BuildKit gathers over 1 MiB in one progress record, at which Docker 20.10 loops for ever and its own
    client with it.
    """
    bursts = lines // BURST_LINES
    words = "cc -O2 -c src/module.c"
    return (
        f"FROM {BUSYBOX}\n"
        f"COPY nonce /nonce\n"
        f"RUN for burst in $(seq 0 {bursts - 1}); do "
        f"seq $((burst * {BURST_LINES} + 1)) $((burst * {BURST_LINES} + {BURST_LINES})) | sed 's|.*|line & {words}|'; "
        f"sleep {REST_S}; done\n"
    )


def _readable(peers: Peers) -> int:
    """How many lines, from the first on, the builder's API and the native one both give in order."""
    url = peers.daemon.url
    logs = [
        _get(f"{url}/api/v2/jobs/{peers.job}/log").decode(),
        _get(f"{url}/api/v1/{peers.job}/logs").decode("unicode_escape"),
    ]
    return min(_in_order(log) for log in logs)


def _in_order(log: str) -> int:
    """How many numbered lines follow each other without a gap, from 1 on."""
    numbers = [int(number) for number in re.findall(r"#\d+ line (\d+) cc ", log)]
    return next((at for at, number in enumerate(numbers) if number != at + 1), len(numbers))


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url) as response:
        return bytes(response.read())


def _memory_mib(daemon: Daemon, field: str) -> float:
    """`VmRSS` (resident now) or `VmHWM` (its peak so far) of the daemon."""
    for line in Path(f"/proc/{daemon.pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / MIB
    raise ProcessLookupError(f"{daemon.pid} has ended")
