"""Distribute: one image to one registry and to four, beside `skopeo copy`; the daemon's memory and event loop.

Most of the time is the registries' own: on few cores they take what they are given no faster, whoever gives it.
"""

from typing import NamedTuple

from bench import distribute_again, distribute_link, distribute_reads
from bench.distribute_peers import daemon_copy, run_on_new, skopeo_at_once, skopeo_in_turn
from bench.distribute_turns import AT_ONCE, DAEMON, IN_TURN, beside_the_faster, cpu_s, in_turns, wall_s
from bench.distribute_watch import MIB, Pulse, peak_mib, reset_peak
from bench.figures import Bound, Figure, say
from bench.images import Image, publish
from harness.daemon import Daemon
from harness.registry import Registry

LAYERS = 4
LAYER_BYTES = 256 * MIB
QUICK_LAYER_BYTES = 8 * MIB
TARGETS = 4
ONE_TARGET_ROUNDS, ROUNDS = 3, 2

ONE_TARGET_BOUND = Bound("≤", 0.6)
TARGETS_BOUND = Bound("≤", 0.5)
CPU_BOUND = Bound("≤", 0.6)
PEAK_BOUND = Bound("≤", 150.0, "MiB")
BLOCK_BOUND = Bound("≤", 50.0, "ms")


class Rig(NamedTuple):
    daemon: Daemon
    source: Registry
    image: Image


def measure(*, quick: bool) -> list[Figure]:
    with Daemon() as daemon, Registry() as source:
        image = publish(source, layers=LAYERS, layer_bytes=QUICK_LAYER_BYTES if quick else LAYER_BYTES)
        rig = Rig(daemon, source, image)
        return [*_to_one(rig, quick=quick), *_to_many(rig, quick=quick), *_pulse(rig)]


# One row each, so that what cannot be measured on a machine (a network namespace, say) does not hide the others.
MEASUREMENTS = {
    "distribute": measure,
    "distribute_link": distribute_link.measure,
    "distribute_reads": distribute_reads.measure,
    "distribute_again": distribute_again.measure,
}


def _to_one(rig: Rig, *, quick: bool) -> list[Figure]:
    copies = {DAEMON: daemon_copy(rig.daemon), IN_TURN: skopeo_in_turn}
    costs = in_turns(copies, rig.source, rig.image, targets=1, rounds=1 if quick else ONE_TARGET_ROUNDS)
    ours_s, skopeo_s = (wall_s(costs[who]) for who in (DAEMON, IN_TURN))
    shown, beside = f"{ours_s:.2f} s", f"skopeo {skopeo_s:.2f} s"
    return [Figure("distribute, 1 target", shown, beside, ours_s / skopeo_s, ONE_TARGET_BOUND)]


def _to_many(rig: Rig, *, quick: bool) -> list[Figure]:
    copies = {DAEMON: daemon_copy(rig.daemon), IN_TURN: skopeo_in_turn, AT_ONCE: skopeo_at_once}
    reset_peak(rig.daemon.pid)
    costs = in_turns(copies, rig.source, rig.image, targets=TARGETS, rounds=1 if quick else ROUNDS)
    peak = peak_mib(rig.daemon.pid)
    ours_s, skopeo_s = cpu_s(costs[DAEMON]), min(cpu_s(costs[IN_TURN]), cpu_s(costs[AT_ONCE]))
    return [
        beside_the_faster(f"distribute, {TARGETS} targets", costs, TARGETS_BOUND),
        Figure(
            f"distribute, CPU for {TARGETS} targets",
            f"{ours_s:.2f} s",
            f"skopeo {skopeo_s:.2f} s",
            ours_s / skopeo_s,
            CPU_BOUND,
        ),
        Figure(f"distribute, memory peak, {TARGETS} targets", f"{peak:.0f} MiB", "", peak, PEAK_BOUND),
    ]


def _pulse(rig: Rig) -> list[Figure]:
    """In a run of its own, because 200 requests a second are not free."""
    pulse = Pulse(rig.daemon.port)
    with pulse.taken():
        run_on_new(daemon_copy(rig.daemon), rig.source, rig.image, TARGETS)
    say("the wait for the loop includes the wait for a processor: on a busy machine it is mostly that")
    worst, p99 = f"{pulse.worst_ms:.1f} ms", f"p99 {pulse.p99_ms:.1f} ms"
    return [Figure("distribute, longest wait for the loop", worst, p99, pulse.worst_ms, BLOCK_BOUND)]
