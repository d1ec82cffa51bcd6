"""Durable accept: `POST /api/v1/build` under wrk, beside a bare aiohttp endpoint that keeps nothing.

The daemon has no engine, so that jobs are accepted and nothing is built.
"""

import os
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import msgspec

from bench.disk import disk_folder
from bench.figures import Bound, Figure, say
from bench.python import server
from harness.daemon import Config, Daemon
from harness.process import free_port
from harness.services import program

CONNECTIONS = 32
ROUNDS = 5
ROUND_S = 5
SCRIPT = Path(__file__).with_name("accept.lua")
BUILD = "/api/v1/build"

REQUESTS_BOUND = Bound("≥", 0.5)
P99_BOUND = Bound("≤", 15.0, "ms")


class Load(msgspec.Struct):
    """What wrk saw in one round."""

    per_s: float
    p99_ms: float
    errors: int


def measure(*, quick: bool) -> list[Figure]:
    rounds, seconds = (2, 1) if quick else (ROUNDS, ROUND_S)
    ours: list[Load] = []
    bare: list[Load] = []
    with disk_folder() as folder, _idle_daemon(folder) as daemon, bare_server(folder) as bare_url:
        for url in (daemon.url, bare_url):  # both warm
            load(url + BUILD, 1)
        for number in range(rounds):
            bare.append(load(bare_url + BUILD, seconds))
            ours.append(load(daemon.url + BUILD, seconds))
            say(
                f"round {number + 1}: {ours[-1].per_s:,.0f}/s, p99 {ours[-1].p99_ms:.1f} ms;"
                f" bare {bare[-1].per_s:,.0f}/s, p99 {bare[-1].p99_ms:.1f} ms"
            )
    per_s, bare_per_s = (median(seen.per_s for seen in loads) for loads in (ours, bare))
    p99_ms, bare_p99_ms = (median(seen.p99_ms for seen in loads) for loads in (ours, bare))
    return [
        Figure(
            f"accept, {CONNECTIONS} connections",
            f"{per_s:,.0f}/s",
            f"bare aiohttp {bare_per_s:,.0f}/s",
            per_s / bare_per_s,
            REQUESTS_BOUND,
        ),
        Figure("accept, p99", f"{p99_ms:.1f} ms", f"bare aiohttp {bare_p99_ms:.1f} ms", p99_ms, P99_BOUND),
    ]


def load(url: str, seconds: int, *, script: Path = SCRIPT, env: Mapping[str, str] = os.environ) -> Load:
    """Send what `script` makes over and over. Raises `RuntimeError` when any request fails."""
    command = [str(program("wrk")), "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", str(script), url]
    done = subprocess.run(command, capture_output=True, check=True, text=True, env=env)
    seen = msgspec.json.decode(done.stdout.splitlines()[-1], type=Load)
    if seen.errors:
        raise RuntimeError(f"{seen.errors} of the requests to {url} failed")
    return seen


@contextmanager
def bare_server(folder: Path) -> Iterator[str]:
    port = free_port()
    with server("bench.bare_server", port, log_file=folder / "bare.log", is_ready=lambda: _listens(port)):
        yield f"http://127.0.0.1:{port}"


def _idle_daemon(folder: Path) -> Daemon:
    """A daemon that accepts without end and starts nothing: it has no engine, for which builds wait."""
    config: Config = {"server": {"state_dir": str(folder / "state")}, "limits": {"queue_max": 1_000_000_000}}
    return Daemon(config)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
