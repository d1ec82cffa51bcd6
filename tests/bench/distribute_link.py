"""Distribute, shaped source: one image to four registries from a source behind 800 Mbit/s, beside `skopeo copy`.

The source runs in a network namespace of its own; the link to it is a pair of virtual interfaces, shaped on its side.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.distribute_peers import daemon_copy, skopeo_at_once, skopeo_in_turn
from bench.distribute_turns import AT_ONCE, DAEMON, IN_TURN, beside_the_faster, in_turns
from bench.distribute_watch import MIB
from bench.figures import Bound, Figure
from bench.images import publish
from harness.daemon import Daemon
from harness.registry import Registry
from harness.services import program

LAYERS = 4
LAYER_BYTES = 48 * MIB
QUICK_LAYER_BYTES = 4 * MIB
TARGETS = 4
ROUNDS = 3

RATE = "800mbit"
# A segment as the sender hands it over may be 64 KiB, and at this rate a clock tick of 4 ms lets 400 KB through.
BURST = "512kb"
QUEUE_LATENCY = "50ms"
# Kept for benchmarks of networks (RFC 2544), so no real peer is shadowed by it.
NEAR_ADDRESS, FAR_ADDRESS, PREFIX_BITS = "198.18.77.1", "198.18.77.2", 30

LINK_BOUND = Bound("≤", 0.3)


class FarRegistry(Registry):
    """A docker-registry inside a network namespace, to be reached at `FAR_ADDRESS`."""

    def __init__(self, namespace: str) -> None:
        super().__init__()
        self._process.argv[:0] = [str(program("ip")), "netns", "exec", namespace]

    @property
    def host(self) -> str:
        return f"{FAR_ADDRESS}:{self.port}"


def measure(*, quick: bool) -> list[Figure]:
    with _shaped_link() as namespace, FarRegistry(namespace) as source, Daemon() as daemon:
        image = publish(source, layers=LAYERS, layer_bytes=QUICK_LAYER_BYTES if quick else LAYER_BYTES)
        copies = {DAEMON: daemon_copy(daemon), IN_TURN: skopeo_in_turn, AT_ONCE: skopeo_at_once}
        costs = in_turns(copies, source, image, targets=TARGETS, rounds=1 if quick else ROUNDS)
    return [beside_the_faster(f"distribute, {TARGETS} targets, source at 800 Mbit/s", costs, LINK_BOUND)]


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
        _remove(name, near)


def _remove(namespace: str, interface: str) -> None:
    """Whatever of it there is."""
    if Path(f"/sys/class/net/{interface}").exists():
        _run("ip", "link", "delete", interface)
    if Path(f"/run/netns/{namespace}").exists():
        _run("ip", "netns", "delete", namespace)


def _run(*command: str) -> None:
    done = subprocess.run([program(command[0]), *command[1:]], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"no shaped link: {' '.join(command)} exited with {done.returncode}: {done.stderr.strip()} "
            "(network namespaces and traffic control need root, and a kernel with veth and tbf)"
        )
