"""Distribute, reads: bytes taken from the source as the targets become more, and the daemon's memory at the most."""

from bench.distribute_log import read_bytes, requests
from bench.distribute_peers import daemon_copy, run_on_new
from bench.distribute_watch import MIB, peak_mib, reset_peak
from bench.figures import Bound, Figure, say
from bench.images import publish
from harness.daemon import Daemon
from harness.registry import Registry

LAYERS = 4
LAYER_BYTES = 32 * MIB
QUICK_LAYER_BYTES = 1 * MIB
TARGETS = (1, 4, 16)

# The manifest may be read at submission and again by the job: less than a thousandth of any image.
READ_BOUND = Bound("≤", 1.001)
PEAK_BOUND = Bound("≤", 150.0, "MiB")


def measure(*, quick: bool) -> list[Figure]:
    figures = []
    with Daemon() as daemon, Registry() as source:
        image = publish(source, layers=LAYERS, layer_bytes=QUICK_LAYER_BYTES if quick else LAYER_BYTES)
        for targets in TARGETS:
            known = len(requests(source))
            reset_peak(daemon.pid)
            cost = run_on_new(daemon_copy(daemon), source, image, targets)
            peak = peak_mib(daemon.pid)
            read = read_bytes(requests(source)[known:])
            say(f"{targets} targets: {cost.wall_s:.2f} s (CPU {cost.cpu_s:.2f} s), peak {peak:.0f} MiB")
            figures.append(_read(targets, read, image.size_bytes))
    return [*figures, Figure(f"distribute, memory peak, {targets} targets", f"{peak:.0f} MiB", "", peak, PEAK_BOUND)]


def _read(targets: int, read: int, size_bytes: int) -> Figure:
    if read < size_bytes:
        raise RuntimeError(f"the source's log tells of {read} bytes only; the image has {size_bytes}")
    shown, beside = f"{read / MIB:.2f} MiB", f"image {size_bytes / MIB:.2f} MiB"
    return Figure(f"distribute, source read, N = {targets}", shown, beside, read / size_bytes, READ_BOUND)
