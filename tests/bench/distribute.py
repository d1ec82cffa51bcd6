"""Distribute: 1 GiB to one registry and to four, beside the tools that copy; its processor time and its memory.

Most of the time is the registries' own: on few cores they take what they are given no faster, whoever gives it.
"""

import os
from pathlib import Path

from bench.copiers import (
    DAEMON,
    MIB,
    SKOPEO,
    OtherTree,
    beside_each,
    daemon_copier,
    in_turns,
    peak_mb,
    reset_peak,
    tool_copiers,
)
from bench.figures import Bound, Figure, say
from bench.images import publish
from harness.daemon import Daemon
from harness.registry import Registry

# Another checkout of imagejobd, to measure this one beside.
OLDER_VARIABLE = "IMAGEJOBD_BENCH_OLD"
LAYERS = 4
LAYER_BYTES, QUICK_LAYER_BYTES = 256 * MIB, 8 * MIB
SMALL_BLOBS, QUICK_SMALL_BLOBS = 2_000, 100
SMALL_BLOB_BYTES = 10_000
TARGETS = 4
ROUNDS = 3

ONE_TARGET_BOUND = Bound("≤", 0.75)
TARGETS_BOUND = Bound("≤", 0.65)
OLDER_BOUND = Bound("≤", 0.7)
SMALL_BOUND = Bound("≤", 0.5)
CPU_BOUND = Bound("≤", 0.4)
REGISTRIES_BOUND = Bound("≤", 1.0)
PEAK_BOUND = Bound("≤", 100.0, "MB")


def measure(*, quick: bool) -> list[Figure]:
    rounds = 1 if quick else ROUNDS
    with Daemon() as daemon, Registry() as source:
        image = publish(source, layers=LAYERS, layer_bytes=QUICK_LAYER_BYTES if quick else LAYER_BYTES)
        copiers = {DAEMON: daemon_copier(daemon), **tool_copiers()}
        one = in_turns(copiers, source, image, targets=1, rounds=rounds)
        reset_peak(daemon.pid)
        many = in_turns(copiers, source, image, targets=TARGETS, rounds=rounds)
        peak = peak_mb(daemon.pid)
    ours, skopeo = many[DAEMON], many[SKOPEO]
    return [
        *beside_each("distribute, 1 target", one, ONE_TARGET_BOUND),
        *beside_each(f"distribute, {TARGETS} targets", many, TARGETS_BOUND),
        _cpu(f"distribute, CPU for {TARGETS} targets", ours.cpu_s, skopeo.cpu_s, CPU_BOUND),
        _cpu("distribute, CPU of the registries", ours.registries_cpu_s, skopeo.registries_cpu_s, REGISTRIES_BOUND),
        Figure(f"distribute, memory peak, {TARGETS} targets", f"{peak:.0f} MB", "", peak, PEAK_BOUND),
    ]


def measure_beside_older(*, quick: bool) -> list[Figure]:
    """Distribute: the same to four registries, by this tree's daemon and by that of the tree $IMAGEJOBD_BENCH_OLD."""
    checkout = os.environ.get(OLDER_VARIABLE)
    if not checkout:
        say(f"left out: ${OLDER_VARIABLE} names no other checkout")
        return []
    older = "older"
    with Daemon() as daemon, OtherTree(Path(checkout).resolve()) as other, Registry() as source:
        image = publish(source, layers=LAYERS, layer_bytes=QUICK_LAYER_BYTES if quick else LAYER_BYTES)
        copiers = {DAEMON: daemon_copier(daemon), older: daemon_copier(other)}
        costs = in_turns(copiers, source, image, targets=TARGETS, rounds=1 if quick else ROUNDS)
    ours_s, older_s = costs[DAEMON].wall_s, costs[older].wall_s
    what = f"distribute, {TARGETS} targets, beside the older tree"
    return [Figure(what, f"{ours_s:.2f} s", f"{older} {older_s:.2f} s", ours_s / older_s, OLDER_BOUND)]


def measure_small_blobs(*, quick: bool) -> list[Figure]:
    """Distribute: 2,000 blobs of 10 KB to four registries, where requests and not bytes take the time."""
    blobs = QUICK_SMALL_BLOBS if quick else SMALL_BLOBS
    with Daemon() as daemon, Registry() as source:
        image = publish(source, layers=blobs, layer_bytes=SMALL_BLOB_BYTES)
        copiers = {DAEMON: daemon_copier(daemon), **tool_copiers()}
        costs = in_turns(copiers, source, image, targets=TARGETS, rounds=1 if quick else ROUNDS)
    return beside_each(f"distribute, {blobs:,} blobs of 10 KB, {TARGETS} targets", costs, SMALL_BOUND)


def _cpu(what: str, ours_s: float, skopeo_s: float, bound: Bound) -> Figure:
    return Figure(what, f"{ours_s:.2f} s", f"{SKOPEO} {skopeo_s:.2f} s", ours_s / skopeo_s, bound)
