"""Distribute, requests: what a source and its targets are asked, by their own access logs."""

import re
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import NamedTuple

from bench.copiers import (
    MIB,
    daemon_copier,
    distribute,
    new_registries,
    peak_mb,
    reset_peak,
    run_job,
    run_on_new,
)
from bench.figures import Bound, Figure, say
from bench.images import REPOSITORY, publish
from harness.daemon import Daemon
from harness.registry import Registry

# Apache's combined format, which docker-registry writes besides its own: `… "GET /v2/ HTTP/1.1" 200 2 "" "agent"`.
ACCESS = re.compile(r'^\S+ - - \[[^]]*\] "(?P<method>[A-Z]+) (?P<path>\S+) HTTP/[0-9.]+" \d+ (?P<written>\d+) ', re.M)
# A request is logged when its answer was written, which may be a little after the client had it.
SETTLED_S = 0.3

LAYERS = 4
LAYER_BYTES, QUICK_LAYER_BYTES = 32 * MIB, 1 * MIB
READ_TARGETS = (1, 4, 16)
TARGETS = 4
TAGS, QUICK_TAGS = 50, 5
ROUNDS = 3
ONE_IMAGE = "team/one"

# The manifest may be read at submission and again by the job: less than a thousandth of any image.
READ_BOUND = Bound("≤", 1.001)
PEAK_BOUND = Bound("≤", 100.0, "MB")
REQUESTS_BOUND = Bound("≤", 1.0, "requests")
TAGS_BOUND = Bound("≤", 2.0, "s")


class Request(NamedTuple):
    method: str
    path: str
    written_bytes: int


def requests(registry: Registry) -> list[Request]:
    """All requests so far, once no more are being logged."""
    text = registry.log_text()
    while True:
        time.sleep(SETTLED_S)
        before, text = text, registry.log_text()
        if text == before:
            return [Request(m["method"], m["path"], int(m["written"])) for m in ACCESS.finditer(text)]


def measure_reads(*, quick: bool) -> list[Figure]:
    """Distribute: bytes taken from the source as the targets become more, and the daemon's memory at the most."""
    figures = []
    with Daemon() as daemon, Registry() as source:
        image = publish(source, layers=LAYERS, layer_bytes=QUICK_LAYER_BYTES if quick else LAYER_BYTES)
        for targets in READ_TARGETS:
            known = len(requests(source))
            reset_peak(daemon.pid)
            cost = run_on_new(daemon_copier(daemon), source, image, targets)
            peak = peak_mb(daemon.pid)
            read = _read_bytes(requests(source)[known:])
            say(f"{targets} targets: {cost.wall_s:.2f} s (CPU {cost.cpu_s:.2f} s), peak {peak:.0f} MB")
            figures.append(_read_figure(targets, read, image.size_bytes))
    return [*figures, Figure(f"distribute, memory peak, {targets} targets", f"{peak:.0f} MB", "", peak, PEAK_BOUND)]


def _read_bytes(asked: list[Request]) -> int:
    """The bytes of manifests and blobs that were read. To a HEAD nothing is written, whatever its line says."""
    return sum(r.written_bytes for r in asked if r.method == "GET" and re.search(r"/(manifests|blobs)/", r.path))


def _read_figure(targets: int, read: int, size_bytes: int) -> Figure:
    if read < size_bytes:
        raise RuntimeError(f"the source's log tells of {read} bytes only; the image has {size_bytes}")
    shown, beside = f"{read / MIB:.2f} MiB", f"image {size_bytes / MIB:.2f} MiB"
    return Figure(f"distribute, source read, N = {targets}", shown, beside, read / size_bytes, READ_BOUND)


def measure_again(*, quick: bool) -> list[Figure]:
    """Distribute: what it takes to find that every target has everything already."""
    tags, rounds = (QUICK_TAGS, 1) if quick else (TAGS, ROUNDS)
    with Daemon() as daemon, Registry() as source, new_registries(TARGETS) as targets:
        return [_one_image(daemon, source, targets), _many_tags(daemon, source, targets, tags, rounds)]


def _one_image(daemon: Daemon, source: Registry, targets: list[Registry]) -> Figure:
    """Requests of a second and a third job for the same image, without and with `overwrite`."""
    publish(source, layers=2, layer_bytes=MIB, repository=ONE_IMAGE)
    copy = partial(distribute, daemon, source, targets, repository=ONE_IMAGE)
    copy()
    plain, overwriting = (_most_requests(targets, partial(copy, overwrite=overwrite)) for overwrite in (False, True))
    what, beside = "distribute, again, per target and tag", f"overwriting {overwriting}"
    return Figure(what, f"{plain}", beside, max(plain, overwriting), REQUESTS_BOUND)


def _many_tags(daemon: Daemon, source: Registry, targets: list[Registry], tags: int, rounds: int) -> Figure:
    for number in range(tags):
        source.put_image(REPOSITORY, f"v{number}")
    spec = {
        "source": {"endpoint": source.url, "image": REPOSITORY, "tags": {"regex": ".*"}},
        "targets": [{"endpoint": target.url} for target in targets],
    }
    run_job(daemon, spec)
    for target in targets:
        if target.tags(REPOSITORY) != source.tags(REPOSITORY):
            raise RuntimeError(f"{target.host} has not all tags")
    taken: list[float] = []
    for number in range(rounds):
        most = _most_requests(targets, lambda: taken.append(_seconds(daemon, spec)))
        say(f"round {number + 1}: {taken[-1]:.2f} s, {most / tags:.2f} requests per target and tag")
    took, beside = median(taken), f"{most / tags:.2f} requests each"
    return Figure(f"distribute, {tags} tags × {TARGETS} targets present", f"{took:.2f} s", beside, took, TAGS_BOUND)


def _seconds(daemon: Daemon, spec: dict[str, object]) -> float:
    began = time.perf_counter()
    run_job(daemon, spec)
    return time.perf_counter() - began


def _most_requests(targets: list[Registry], run: Callable[[], object]) -> int:
    """How many requests the target that got the most of them got meanwhile."""
    known = [len(requests(target)) for target in targets]
    run()
    return max(len(requests(target)) - count for target, count in zip(targets, known, strict=True))
