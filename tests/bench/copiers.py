"""Who copies one image to new, empty registries, and what that costs: the daemon's distribute API, and other tools.

Each run has registries of its own that nothing was ever sent to, on the same file system for all; all dirty pages are
written back before it begins. A run counts only when every target has the image afterwards.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple, Protocol

from bench.figures import Bound, Figure, say
from bench.images import REPOSITORY, TAG, Image
from harness.client import Client, Fields
from harness.daemon import Daemon
from harness.registry import Registry
from harness.services import program

# Paths of further tools, with colons between them; the name of each file begins with that of the tool.
PEERS_VARIABLE = "IMAGEJOBD_BENCH_PEERS"
DAEMON, SKOPEO, SKOPEO_AT_ONCE = "imagejobd", "skopeo", "skopeo at once"
RUN_MAX_S = 600.0
ERROR_TAIL_CHARS = 2_000
MIB = 1024 * 1024
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# /proc/PID/clear_refs: "reset the peak resident set size to the current value" (proc(5)).
RESET_PEAK = "5"

PEER_BOUND = Bound("≤", 1.0)


class Endpoint(Protocol):
    """A registry, or a relay in front of one."""

    @property
    def host(self) -> str: ...

    @property
    def url(self) -> str: ...


class Copier(NamedTuple):
    """`copy` brings the image from a source to all targets; `cpu_s` tells what that has taken of processors so far."""

    copy: Callable[[Endpoint, Sequence[Endpoint]], object]
    cpu_s: Callable[[], float]


class Cost(NamedTuple):
    """Seconds on the clock, and of processors (user and system): the copier's, and all target registries'."""

    wall_s: float
    cpu_s: float
    registries_cpu_s: float


def in_turns(
    copiers: Mapping[str, Copier], source: Endpoint, image: Image, *, targets: int, rounds: int
) -> dict[str, Cost]:
    """What each copier costs: the medians of the rounds. Who goes first changes, so that a machine that slows favours
    nobody."""
    costs: dict[str, list[Cost]] = {who: [] for who in copiers}
    order = list(copiers)
    for number in range(rounds):
        for who in order[number % len(order) :] + order[: number % len(order)]:
            costs[who].append(run_on_new(copiers[who], source, image, targets))
        latest = (f"{who} {taken[-1].wall_s:.2f} s (CPU {taken[-1].cpu_s:.2f} s)" for who, taken in costs.items())
        say(f"{targets} targets, round {number + 1}: " + "; ".join(latest))
    return {who: Cost(*map(median, zip(*taken, strict=True))) for who, taken in costs.items()}


def run_on_new(copier: Copier, source: Endpoint, image: Image, targets: int) -> Cost:
    """Copy `image` to as many new registries. Raises `RuntimeError` where it did not get everywhere."""
    with new_registries(targets) as registries:
        os.sync()
        cpu_s, began = copier.cpu_s(), time.perf_counter()
        copier.copy(source, registries)
        wall_s = time.perf_counter() - began
        cost = Cost(wall_s, copier.cpu_s() - cpu_s, sum(process_cpu_s(registry.pid) for registry in registries))
        for registry in registries:
            if registry.digest(REPOSITORY, TAG) != image.digest:
                raise RuntimeError(f"the image is not at {registry.host}")
    return cost


@contextmanager
def new_registries(count: int) -> Iterator[list[Registry]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Registry()) for _ in range(count)]


def beside_each(what: str, costs: Mapping[str, Cost], bound: Bound) -> list[Figure]:
    """The daemon's seconds beside each other copier's: `bound` holds for Debian's skopeo, and for others `≤ 1`."""
    ours_s = costs[DAEMON].wall_s
    figures = []
    for who, cost in costs.items():
        if who != DAEMON:
            limit = bound if who in (SKOPEO, SKOPEO_AT_ONCE) else PEER_BOUND
            figures.append(Figure(what, f"{ours_s:.2f} s", f"{who} {cost.wall_s:.2f} s", ours_s / cost.wall_s, limit))
    return figures


def daemon_copier(daemon: Daemon) -> Copier:
    """One job of the distribute API for all targets, from the request to its end."""
    return Copier(partial(distribute, daemon), partial(process_cpu_s, daemon.pid))


def tool_copiers() -> dict[str, Copier]:
    """Debian's skopeo and each tool of `$IMAGEJOBD_BENCH_PEERS`, by name; each copies to one target after the other.

    Raises `RuntimeError` for a tool that is not known, not there or named twice.
    """
    tools = {SKOPEO: program("skopeo")}
    for path in filter(None, os.environ.get(PEERS_VARIABLE, "").split(":")):
        tool = Path(path)
        _argv(tool, "source", "target")
        if tool.name in tools or not os.access(tool, os.X_OK):
            raise RuntimeError(f"${PEERS_VARIABLE}: {tool} is no program, or one of the same name is measured already")
        tools[tool.name] = tool
    return {name: tool_copier(tool) for name, tool in tools.items()}


def tool_copier(tool: Path, *, at_once: int = 1) -> Copier:
    """A run of `tool` for each target, so many side by side."""

    def copy(source: Endpoint, targets: Sequence[Endpoint]) -> None:
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(lambda target: _run(_argv(tool, source.host, target.host)), targets))

    return Copier(copy, _children_cpu_s)


def _run(argv: list[str]) -> None:
    done = subprocess.run(argv, capture_output=True, stdin=subprocess.DEVNULL, timeout=RUN_MAX_S, check=False)
    if done.returncode:
        said = done.stderr.decode(errors="replace")[-ERROR_TAIL_CHARS:]
        raise RuntimeError(f"{' '.join(argv)} exited with {done.returncode}: {said}")


def _argv(tool: Path, source: str, target: str) -> list[str]:
    """The tool's command that copies the image from one host to another over plain HTTP."""
    references = [f"{host}/{REPOSITORY}:{TAG}" for host in (source, target)]
    if tool.name.startswith("skopeo"):
        options = ["--quiet", "--src-tls-verify=false", "--dest-tls-verify=false"]
        return [str(tool), "--insecure-policy", "copy", *options, *(f"docker://{name}" for name in references)]
    if tool.name.startswith("crane"):
        return [str(tool), "copy", "--insecure", *references]
    if tool.name.startswith("regctl"):
        hosts = [option for host in (source, target) for option in ("--host", f"reg={host},tls=disabled")]
        return [str(tool), *hosts, "image", "copy", *references]
    raise RuntimeError(f"${PEERS_VARIABLE}: {tool} is neither skopeo nor crane nor regctl, by its name")


class OtherTree(Daemon):
    """The daemon of another checkout, run by the virtual environment there, or by this one where there is none."""

    def __init__(self, checkout: Path) -> None:
        super().__init__(env={"PYTHONPATH": str(checkout)})
        self.checkout = checkout
        python = checkout / ".venv/bin/python"
        # Without -P the folder that the benchmark runs in, which is this checkout, would come first.
        self._process.argv[:1] = [str(python) if python.exists() else sys.executable, "-P"]

    def start(self, *, failpoints: str = "", umask: int = -1) -> None:
        """As `Daemon.start`. Raises `RuntimeError` where another tree's daemon than that one's would be run."""
        which = [*self._process.argv[:2], "-c", "import imagejobd; print(imagejobd.__file__)"]
        done = subprocess.run(which, env=self._env, capture_output=True, text=True, check=False)
        if not done.stdout.startswith(f"{self.checkout}/"):
            raise RuntimeError(f"{self.checkout} holds no imagejobd: {done.stdout}{done.stderr[-ERROR_TAIL_CHARS:]}")
        super().start(failpoints=failpoints, umask=umask)


def distribute(
    daemon: Daemon,
    source: Endpoint,
    targets: Sequence[Endpoint],
    *,
    repository: str = REPOSITORY,
    overwrite: bool = False,
) -> None:
    """Copy through the distribute API. Raises `RuntimeError` where the job did not finish."""
    client = Client(daemon)
    job = submit(client, source, targets, repository=repository, overwrite=overwrite)
    client.ended(job, timeout_s=RUN_MAX_S)
    status = client.call("GET", f"/api/distribute/image/{job}").json
    if status["value"] != "FINISHED":
        raise RuntimeError(f"the distribution ended otherwise: {json.dumps(status)}")


def submit(
    client: Client,
    source: Endpoint,
    targets: Sequence[Endpoint],
    *,
    repository: str = REPOSITORY,
    overwrite: bool = False,
) -> str:
    """Begin a copy through the distribute API; the job's UUID. Raises `RuntimeError` where it is refused."""
    request = {
        "source": {"endpoint": source.url, "image": repository, "ref": TAG},
        "targets": [{"endpoint": target.url, "overwrite": overwrite} for target in targets],
    }
    answer = client.call("POST", "/api/distribute/image", request)
    if answer.status >= 300:
        raise RuntimeError(f"the daemon refuses to distribute: {answer.text}")
    job: str = answer.json["id"]
    return job


def run_job(daemon: Daemon, spec: Fields) -> None:
    """Run a distribute job of the native API. Raises `RuntimeError` where it did not succeed."""
    client = Client(daemon)
    job = client.ended(client.submit("distribute", spec), timeout_s=RUN_MAX_S)
    if job["state"] != "succeeded":
        raise RuntimeError(f"the job ended otherwise: {json.dumps(job)}")


def process_cpu_s(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def _children_cpu_s() -> float:
    """User and system time of all children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def reset_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text(RESET_PEAK)


def peak_mb(pid: int) -> float:
    """The most memory that was resident since `reset_peak`, in units of 1,000,000 bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ProcessLookupError(f"{pid} has ended")
