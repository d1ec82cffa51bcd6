"""Distribute, links: sources and targets behind ways that are longer or narrower than loopback.

One is a link to a network namespace, shaped by the kernel. The others are relays (`harness.relay`), because a kernel
without netem has no delay to give.
"""

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from statistics import median
from typing import NamedTuple

from bench.copiers import (
    DAEMON,
    MIB,
    RUN_MAX_S,
    SKOPEO_AT_ONCE,
    Endpoint,
    beside_each,
    daemon_copier,
    distribute,
    in_turns,
    new_registries,
    run_on_new,
    submit,
    tool_copier,
    tool_copiers,
)
from bench.figures import Bound, Figure, say
from bench.images import REPOSITORY, TAG, Image, publish
from harness.client import Client
from harness.daemon import Daemon
from harness.distribute_box import has_tag
from harness.registry import Registry
from harness.relay import Relay
from harness.services import program
from harness.waiting import until

TARGETS = 4
ROUNDS = 3

SHAPED_LAYERS = 4
SHAPED_LAYER_BYTES, QUICK_SHAPED_LAYER_BYTES = 48 * MIB, 4 * MIB
RATE = "800mbit"
# A segment as the sender hands it over may be 64 KiB, and at this rate a clock tick of 4 ms lets 400 KB through.
BURST = "512kb"
QUEUE_LATENCY = "50ms"
# Kept for benchmarks of networks (RFC 2544), so no real peer is shadowed by it.
NEAR_ADDRESS, FAR_ADDRESS, PREFIX_BITS = "198.18.77.1", "198.18.77.2", 30
SHAPED_BOUND = Bound("≤", 0.32)

STREAM_LAYERS = 16
STREAM_LAYER_BYTES, QUICK_STREAM_LAYER_BYTES = 32 * MIB, 4 * MIB
LINK_BYTES_PER_S = 400e6 / 8
CONNECTION_BYTES_PER_S = 100e6 / 8
ROUND_TRIP_S = 0.04
# By when as many streams as help are expected, and up to which part of the image: the last layers leave some of them
# without work, whoever copies.
RAMP_S, QUICK_RAMP_S = 3.0, 0.3
STEADY_PART = 0.9
STEADY_SAMPLES_MIN = 4
STREAMS_BOUND = Bound("≥", 0.85, "of the link")

SLOW_LAYERS = 4
SLOW_LAYER_BYTES, QUICK_SLOW_LAYER_BYTES = 256 * MIB, 4 * MIB
SLOW_BYTES_PER_S = 1e6
FAST_TARGETS = 3
SLOW_BOUND = Bound("≤", 1.15)


def measure_shaped_source(*, quick: bool) -> list[Figure]:
    """Distribute: one image to four registries from a source behind 800 Mbit/s, beside the tools."""
    layer_bytes = QUICK_SHAPED_LAYER_BYTES if quick else SHAPED_LAYER_BYTES
    with _shaped_link() as namespace, FarRegistry(namespace) as source, Daemon() as daemon:
        image = publish(source, layers=SHAPED_LAYERS, layer_bytes=layer_bytes)
        # Over a link, other than on loopback, a tool is a little faster side by side.
        at_once = tool_copier(program("skopeo"), at_once=TARGETS)
        copiers = {DAEMON: daemon_copier(daemon), **tool_copiers(), SKOPEO_AT_ONCE: at_once}
        costs = in_turns(copiers, source, image, targets=TARGETS, rounds=1 if quick else ROUNDS)
    return beside_each(f"distribute, {TARGETS} targets, source at 800 Mbit/s", costs, SHAPED_BOUND)


class FarRegistry(Registry):
    """A docker-registry inside a network namespace, to be reached at `FAR_ADDRESS`."""

    def __init__(self, namespace: str) -> None:
        super().__init__()
        self._process.argv[:0] = [str(program("ip")), "netns", "exec", namespace]

    @property
    def host(self) -> str:
        return f"{FAR_ADDRESS}:{self.port}"


@contextmanager
def _shaped_link() -> Iterator[str]:
    """The name of a namespace that sends to here at `RATE` at most. Raises `RuntimeError` where there can be none."""
    name = f"ijbench{os.getpid()}"
    near, far = f"ijb{os.getpid()}n", f"ijb{os.getpid()}f"
    inside = ["ip", "-n", name]
    try:
        _run("ip", "netns", "add", name)
        _run("ip", "link", "add", near, "type", "veth", "peer", "name", far, "netns", name)
        _run("ip", "address", "add", f"{NEAR_ADDRESS}/{PREFIX_BITS}", "dev", near)
        _run(*inside, "address", "add", f"{FAR_ADDRESS}/{PREFIX_BITS}", "dev", far)
        _run("ip", "link", "set", near, "up")
        _run(*inside, "link", "set", far, "up")
        shape = ["root", "tbf", "rate", RATE, "burst", BURST, "latency", QUEUE_LATENCY]
        _run("tc", "-n", name, "qdisc", "add", "dev", far, *shape)
        yield name
    finally:
        if Path(f"/sys/class/net/{near}").exists():
            _run("ip", "link", "delete", near)
        if Path(f"/run/netns/{name}").exists():
            _run("ip", "netns", "delete", name)


def _run(*command: str) -> None:
    done = subprocess.run([program(command[0]), *command[1:]], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"no shaped link: {' '.join(command)} exited with {done.returncode}: {done.stderr.strip()} "
            "(network namespaces and traffic control need root, and a kernel with veth and tbf)"
        )


class Goodput(NamedTuple):
    """Parts of the link's rate: once all streams are expected to be there, and from the request to the job's end."""

    steady: float
    overall: float


def measure_streams(*, quick: bool) -> list[Figure]:
    """Distribute: a source 40 ms away, and one that gives 100 Mbit/s to each connection; 400 Mbit/s in all."""
    ways = {
        "40 ms away": {"round_trip_s": ROUND_TRIP_S},
        "100 Mbit/s each": {"connection_bytes_per_s": CONNECTION_BYTES_PER_S},
    }
    figures = []
    with Daemon() as daemon, Registry() as source:
        layer_bytes = QUICK_STREAM_LAYER_BYTES if quick else STREAM_LAYER_BYTES
        image = publish(source, layers=STREAM_LAYERS, layer_bytes=layer_bytes)
        for (way, shape), targets in product(ways.items(), (1, TARGETS)):
            what = f"distribute, {targets} target{'s' * (targets > 1)}, source {way}"
            rounds: list[Goodput] = []
            for _ in range(1 if quick else ROUNDS):
                # A relay of its own, so that no connection is open already.
                with Relay(source.host, link_bytes_per_s=LINK_BYTES_PER_S, **shape) as relay:
                    rounds.append(_goodput(daemon, relay, image, targets, QUICK_RAMP_S if quick else RAMP_S))
            say(f"{what}: " + "; ".join(f"{steady:.2f}, {overall:.2f} in all" for steady, overall in rounds))
            steady, overall = (median(parts) for parts in zip(*rounds, strict=True))
            shown = f"{steady * LINK_BYTES_PER_S / 1e6:.1f} MB/s"
            figures.append(Figure(what, shown, f"with start and end {overall:.2f}", steady, STREAMS_BOUND))
    return figures


def _goodput(daemon: Daemon, relay: Relay, image: Image, targets: int, ramp_s: float) -> Goodput:
    began_at: list[float] = []

    def copy(source: Endpoint, registries: Sequence[Endpoint]) -> None:
        began_at.append(time.monotonic())
        distribute(daemon, source, registries)

    cost = run_on_new(daemon_copier(daemon)._replace(copy=copy), relay, image, targets)
    ramped = [sample for sample in relay.samples() if sample.at >= began_at[0] + ramp_s]
    steady = [sample for sample in ramped if sample.sent_bytes <= STEADY_PART * image.size_bytes]
    if len(steady) < STEADY_SAMPLES_MIN:
        raise RuntimeError(f"the copy was over after {cost.wall_s:.1f} s, before it could be measured")
    first, last = steady[0], steady[-1]
    bytes_per_s = (last.sent_bytes - first.sent_bytes) / (last.at - first.at)
    return Goodput(bytes_per_s / LINK_BYTES_PER_S, image.size_bytes / cost.wall_s / LINK_BYTES_PER_S)


def measure_slow_target(*, quick: bool) -> list[Figure]:
    """Distribute: three registries, without and with a fourth that takes 1 MB/s only."""
    layer_bytes = QUICK_SLOW_LAYER_BYTES if quick else SLOW_LAYER_BYTES
    times: dict[bool, list[float]] = {False: [], True: []}
    with Daemon() as daemon, Registry() as source:
        image = publish(source, layers=SLOW_LAYERS, layer_bytes=layer_bytes)
        for number in range(1 if quick else ROUNDS):
            for with_slow in (False, True) if number % 2 else (True, False):
                times[with_slow].append(_fast_targets_s(daemon, source, image, with_slow=with_slow))
            say(f"round {number + 1}: {times[True][-1]:.2f} s with the slow target, {times[False][-1]:.2f} s without")
    beside_slow_s, alone_s = median(times[True]), median(times[False])
    what = f"distribute, {FAST_TARGETS} targets beside one at 1 MB/s"
    return [Figure(what, f"{beside_slow_s:.2f} s", f"without it {alone_s:.2f} s", beside_slow_s / alone_s, SLOW_BOUND)]


def _fast_targets_s(daemon: Daemon, source: Registry, image: Image, *, with_slow: bool) -> float:
    """Seconds until the fast targets have the image; the slow one is then given up."""
    client = Client(daemon)
    with (
        new_registries(FAST_TARGETS + 1) as registries,
        Relay(registries[-1].host, link_bytes_per_s=SLOW_BYTES_PER_S) as slow,
    ):
        fast = registries[:-1]
        os.sync()
        began = time.perf_counter()
        job = submit(client, source, [*fast, *([slow] if with_slow else [])])
        until(lambda: _has_ended(client, job, fast), timeout_s=RUN_MAX_S, what="the fast targets to have the image")
        took = time.perf_counter() - began
        client.cancel(job)
        client.ended(job)
        if any(registry.digest(REPOSITORY, TAG) != image.digest for registry in fast):
            raise RuntimeError(f"the distribution ended otherwise: {client.job(job)}")
    return took


def _has_ended(client: Client, job: str, fast: Sequence[Registry]) -> bool:
    """Whether the image is at all fast targets, or never will be."""
    return all(has_tag(registry, REPOSITORY, TAG) for registry in fast) or client.job(job)["finished_at"] is not None
