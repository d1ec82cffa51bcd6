"""Distribute, again: what it takes to find that every target has everything already."""

import time
from collections.abc import Callable
from functools import partial
from statistics import median

from bench.distribute_log import requests
from bench.distribute_peers import distribute, new_registries, run_job
from bench.distribute_watch import MIB
from bench.figures import Bound, Figure, say
from bench.images import REPOSITORY, publish
from harness.daemon import Daemon
from harness.registry import Registry

TARGETS = 4
TAGS = 50
QUICK_TAGS = 5
ROUNDS = 3
ONE_IMAGE = "team/one"

REQUESTS_BOUND = Bound("≤", 1.0, "requests")
TAGS_BOUND = Bound("≤", 2.0, "s")


def measure(*, quick: bool) -> list[Figure]:
    tags, rounds = (QUICK_TAGS, 1) if quick else (TAGS, ROUNDS)
    with Daemon() as daemon, Registry() as source, new_registries(TARGETS) as targets:
        return [*_one_image(daemon, source, targets), *_many_tags(daemon, source, targets, tags, rounds)]


def _one_image(daemon: Daemon, source: Registry, targets: list[Registry]) -> list[Figure]:
    """Requests of a second and a third job for the same image, without and with `overwrite`."""
    publish(source, layers=2, layer_bytes=MIB, repository=ONE_IMAGE)
    distribute(daemon, source, targets, repository=ONE_IMAGE)
    copy = partial(distribute, daemon, source, targets, repository=ONE_IMAGE)
    plain, overwriting = (_most_requests(targets, partial(copy, overwrite=overwrite)) for overwrite in (False, True))
    what, beside = "distribute, again, per target and tag", f"overwriting {overwriting}"
    return [Figure(what, f"{plain}", beside, max(plain, overwriting), REQUESTS_BOUND)]


def _many_tags(daemon: Daemon, source: Registry, targets: list[Registry], tags: int, rounds: int) -> list[Figure]:
    for number in range(tags):
        source.put_image(REPOSITORY, f"v{number}")
    spec = {
        "source": {"endpoint": source.url, "image": REPOSITORY, "tags": {"regex": ".*"}},
        "targets": [{"endpoint": target.url} for target in targets],
    }
    run_job(daemon, spec)
    _check_tags(source, targets)
    taken: list[float] = []
    for number in range(rounds):
        most = _most_requests(targets, lambda: taken.append(_seconds(daemon, spec)))
        say(f"round {number + 1}: {taken[-1]:.2f} s, {most / tags:.2f} requests per target and tag")
    took, beside = median(taken), f"{most / tags:.2f} requests each"
    return [Figure(f"distribute, {tags} tags × {TARGETS} targets present", f"{took:.2f} s", beside, took, TAGS_BOUND)]


def _seconds(daemon: Daemon, spec: dict[str, object]) -> float:
    began = time.perf_counter()
    run_job(daemon, spec)
    return time.perf_counter() - began


def _check_tags(source: Registry, targets: list[Registry]) -> None:
    for target in targets:
        if target.tags(REPOSITORY) != source.tags(REPOSITORY):
            raise RuntimeError(f"{target.host} has not all tags")


def _most_requests(targets: list[Registry], run: Callable[[], object]) -> int:
    """How many requests the target that got the most of them got meanwhile."""
    known = [len(requests(target)) for target in targets]
    run()
    return max(len(requests(target)) - count for target, count in zip(targets, known, strict=True))
