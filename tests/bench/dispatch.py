"""Dispatching: payloads of 1 KB and of 64 MiB, kept durably, beside a bare aiohttp endpoint that keeps nothing.

The daemon's one dispatch slot is held by a build on an engine that never answers, so that nothing is worked on.
"""

import json
import os
import random
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import median

from bench.accept import Load, bare_server, load
from bench.disk import disk_folder
from bench.figures import Bound, Figure, say
from harness.bodies import envelope
from harness.daemon import Config, Daemon
from harness.logins import JWT_SECRET, mint

FOREVER_S = 86_400.0
JOB = "/api/v1/job"
SCRIPT = Path(__file__).with_name("dispatch.lua")
ROUNDS = 5
ROUND_S = 5
BODIES = 500
SMALL_BYTES = 1000
LARGE_BYTES = 64 * 1024 * 1024

REQUESTS_BOUND = Bound("≥", 0.4)
THROUGHPUT_BOUND = Bound("≥", 150.0, "MB/s")


def measure(*, quick: bool) -> list[Figure]:
    with disk_folder() as folder, _busy_daemon(folder) as daemon, bare_server(folder) as bare_url:
        return [*_small(folder, daemon.url, bare_url, quick=quick), _large(folder, daemon.url, bare_url, quick=quick)]


def _small(folder: Path, url: str, bare_url: str, *, quick: bool) -> list[Figure]:
    bodies = folder / "bodies"
    dice = random.Random(1)
    bodies.write_text("".join(f"{_body(dice.randbytes(SMALL_BYTES))}\n" for _ in range(BODIES)))
    env = os.environ | {"BODIES": str(bodies), "TOKEN": mint(1)}
    ours: list[Load] = []
    bare: list[Load] = []
    for number in range(2 if quick else ROUNDS):
        for loads, base in ((bare, bare_url), (ours, url)):
            loads.append(load(base + JOB, 1 if quick else ROUND_S, script=SCRIPT, env=env))
        say(f"round {number + 1}: {ours[-1].per_s:,.0f}/s, p99 {ours[-1].p99_ms:.1f} ms; bare {bare[-1].per_s:,.0f}/s")
    per_s, bare_per_s = (median(seen.per_s for seen in loads) for loads in (ours, bare))
    shown = f"{per_s:,.0f}/s", f"bare aiohttp {bare_per_s:,.0f}/s"
    return [Figure("dispatch, 1 KB payloads", *shown, per_s / bare_per_s, REQUESTS_BOUND)]


def _large(folder: Path, url: str, bare_url: str, *, quick: bool) -> Figure:
    payload, body = random.Random(2).randbytes(LARGE_BYTES // (8 if quick else 1)), folder / "body"
    body.write_text(_body(payload))
    ours: list[float] = []
    bare: list[float] = []
    for number in range(2 if quick else ROUNDS):
        for times, base in ((bare, bare_url), (ours, url)):
            times.append(_post(base + JOB, body))
        say(f"round {number + 1}: {ours[-1]:.2f} s; bare {bare[-1]:.2f} s")
    speed, bare_speed = (len(payload) / median(times) / 1e6 for times in (ours, bare))
    shown = f"{speed:.0f} MB/s", f"bare aiohttp, body read: {bare_speed:.0f} MB/s"
    return Figure(f"dispatch, {len(payload) >> 20} MiB payload", *shown, speed, THROUGHPUT_BOUND)


def _body(payload: bytes) -> str:
    return json.dumps(envelope(payload))


def _post(url: str, body: Path) -> float:
    """Seconds from the first byte to the answer."""
    command = ["curl", "-fsS", "-o", "/dev/null", "-w", "%{time_total}", "-H", f"Authorization: Bearer {mint(1)}"]
    done = subprocess.run(
        [*command, "-H", "Expect:", "--data-binary", f"@{body}", url], capture_output=True, check=True, text=True
    )
    return float(done.stdout)


@contextmanager
def _busy_daemon(folder: Path) -> Iterator[Daemon]:
    secret = folder / "jwt.secret"
    secret.write_text(JWT_SECRET)
    config: Config = {
        "server": {"state_dir": str(folder / "state")},
        "auth": {"jwt_secret_file": str(secret)},
        "engine": {"connect_timeout_s": FOREVER_S, "request_timeout_s": FOREVER_S},
        "limits": {"queue_max": 1_000_000_000, "dispatch": 1, "job_timeout_s": FOREVER_S},
        "kinds": {"dispatch": {"build_timeout_s": FOREVER_S}},
    }
    silent_path = folder / "engine.sock"
    with closing(socket.socket(socket.AF_UNIX)) as silent:
        silent.bind(str(silent_path))
        silent.listen(64)
        with Daemon(config, engine_host=f"unix://{silent_path}") as daemon:
            _hold_slot(daemon)
            yield daemon


def _hold_slot(daemon: Daemon) -> None:
    body = _body(b"FROM scratch\n").encode()
    command = ["curl", "-fsS", "-H", f"Authorization: Bearer {mint(1)}", "--data-binary", "@-", daemon.url + JOB]
    subprocess.run(command, input=body, capture_output=True, check=True)
    time.sleep(1)
