"""One image copied to new, empty registries: by `skopeo copy`, and by the daemon through its distribute API.

Each run has registries of its own that nothing was ever sent to, on the same file system for all; all dirty pages are
written back before it begins. A run counts only when every target has the image afterwards.
"""

import json
import os
import resource
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from bench.distribute_watch import cpu_seconds
from bench.images import REPOSITORY, TAG, Image
from harness.client import Client, Fields
from harness.daemon import Daemon
from harness.registry import Registry
from harness.services import program

RUN_MAX_S = 600.0


class Cost(NamedTuple):
    """Seconds on the clock, and of the processors (user and system) in the copying process or processes."""

    wall_s: float
    cpu_s: float


Copy = Callable[[Registry, Sequence[Registry]], Cost]


def run_on_new(copy: Copy, source: Registry, image: Image, targets: int) -> Cost:
    """Copy `image` to as many new registries. Raises `RuntimeError` where it did not get everywhere."""
    with new_registries(targets) as registries:
        os.sync()
        cost = copy(source, registries)
        for registry in registries:
            if registry.digest(REPOSITORY, TAG) != image.digest:
                raise RuntimeError(f"the image is not at {registry.host}")
    return cost


@contextmanager
def new_registries(count: int) -> Iterator[list[Registry]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Registry()) for _ in range(count)]


def skopeo_in_turn(source: Registry, targets: Sequence[Registry]) -> Cost:
    """`skopeo copy` to one target after the other."""
    with _skopeo_cost() as cost:
        for target in targets:
            _run_all([_skopeo_argv(source, target)])
    return cost[0]


def skopeo_at_once(source: Registry, targets: Sequence[Registry]) -> Cost:
    """As many `skopeo copy` side by side."""
    with _skopeo_cost() as cost:
        _run_all([_skopeo_argv(source, target) for target in targets])
    return cost[0]


def daemon_copy(daemon: Daemon) -> Copy:
    """One job of the distribute API for all targets, from the request to `finished_at`."""

    def copy(source: Registry, targets: Sequence[Registry]) -> Cost:
        cpu_s, began = cpu_seconds(daemon.pid), time.perf_counter()
        distribute(daemon, source, targets)
        return Cost(time.perf_counter() - began, cpu_seconds(daemon.pid) - cpu_s)

    return copy


def distribute(
    daemon: Daemon,
    source: Registry,
    targets: Sequence[Registry],
    *,
    repository: str = REPOSITORY,
    overwrite: bool = False,
) -> Any:
    """Submit and wait for the end; returns the last status. Raises `RuntimeError` where the job did not finish."""
    request = {
        "source": {"endpoint": source.url, "image": repository, "ref": TAG},
        "targets": [{"endpoint": target.url, "overwrite": overwrite} for target in targets],
    }
    client = Client(daemon)
    job = client.call("POST", "/api/distribute/image", request).json["id"]
    client.ended(job, timeout_s=RUN_MAX_S)
    status = client.call("GET", f"/api/distribute/image/{job}").json
    if status["value"] != "FINISHED":
        raise RuntimeError(f"the distribution ended otherwise: {json.dumps(status)}")
    return status


def run_job(daemon: Daemon, spec: Fields) -> Fields:
    """Run a distribute job of the native API; returns it. Raises `RuntimeError` where it did not succeed."""
    client = Client(daemon)
    job = client.ended(client.submit("distribute", spec), timeout_s=RUN_MAX_S)
    if job["state"] != "succeeded":
        raise RuntimeError(f"the job ended otherwise: {json.dumps(job)}")
    return job


@contextmanager
def _skopeo_cost() -> Iterator[list[Cost]]:
    """What the children that end meanwhile cost; the list is filled at the end of the block."""
    cost: list[Cost] = []
    cpu_s, began = _children_cpu_s(), time.perf_counter()
    yield cost
    cost.append(Cost(time.perf_counter() - began, _children_cpu_s() - cpu_s))


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _skopeo_argv(source: Registry, target: Registry) -> list[str]:
    names = [f"docker://{registry.host}/{REPOSITORY}:{TAG}" for registry in (source, target)]
    return [str(program("skopeo")), "copy", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false", *names]


def _run_all(commands: list[list[str]]) -> None:
    """Run them side by side. Raises `RuntimeError` for the first that fails; none is left running."""
    running = [subprocess.Popen(command, stdin=subprocess.DEVNULL) for command in commands]
    try:
        for child in running:
            if child.wait(RUN_MAX_S):
                raise RuntimeError(f"{' '.join(child.args)} exited with {child.returncode}")
    finally:
        for child in running:
            child.kill()
            child.wait()
