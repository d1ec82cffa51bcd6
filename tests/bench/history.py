"""History: what a claim and a listing cost with a million finished jobs, beside the same with a thousand."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from statistics import median

import uvloop

from bench.disk import disk_folder
from bench.figures import Bound, Figure, say
from bench.finished_jobs import make_history
from imagejobd.model.clock import now_ms
from imagejobd.model.job import NewJob, State
from imagejobd.store.filters import Filter
from imagejobd.store.protocol import Capacity, Ending
from imagejobd.store.sqlite.store import SqliteStore
from imagejobd.store.vault import KEY_BYTES, Vault

SHORT, LONG = 1_000, 1_000_000
ROUNDS = 300
WAITING = 50
PAGE = 50
TENANT, WORKER = "tenant-7", "w"
BUILDS = frozenset({"build"})
FILTERS = {
    "list, any": Filter(),
    "list, by state": Filter(states=frozenset({State.FAILED})),
    "list, queued": Filter(states=frozenset({State.QUEUED})),
    "list, by kind": Filter(kinds=BUILDS),
    "list, by tenant": Filter(tenant=TENANT),
    "list, by tenant, kind, state": Filter(tenant=TENANT, kinds=BUILDS, states=frozenset({State.SUCCEEDED})),
    "list, by label": Filter(label=("release", "yes")),
}
# Two at once, of which the first walks its jobs; what nothing passes reads as much as a page may.
IMAGE, FAILED = "registry.example:5000/team/app", frozenset({State.FAILED})
PAIRS = {
    "list, by image and state": Filter(image=IMAGE, states=FAILED),
    "list, by submitter and image": Filter(submitter="person-3", image=IMAGE),
    "list, by label and state": Filter(label=("release", "yes"), states=frozenset({State.SUCCEEDED})),
    "list, by label and state, none": Filter(label=("release", "yes"), states=FAILED),
    "list, by state and time": Filter(states=FAILED, created_before_ms=now_ms() - 180 * 86_400_000),
}

COST_BOUND = Bound("≤", 1.2)
PAIR_BOUND = Bound("≤", 10.0, "ms")

Act = Callable[[SqliteStore], Awaitable[float]]


def measure(*, quick: bool) -> list[Figure]:
    long, rounds = (20_000, 50) if quick else (LONG, ROUNDS)
    with disk_folder() as folder:
        for jobs in (SHORT, long):
            say(f"making a history of {jobs:,} jobs")
            make_history(_database(folder, jobs), jobs, now_ms())
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
            costs = loop.run(_costs(folder, (SHORT, long), rounds))
    return [
        Figure(
            what,
            f"{at_long:,.0f} µs",
            f"{SHORT:,} jobs {at_short:,.0f} µs",
            *((at_long / 1e3, PAIR_BOUND) if what in PAIRS else (at_long / at_short, COST_BOUND)),
        )
        for what, (at_short, at_long) in costs.items()
    ]


async def _costs(folder: Path, sizes: tuple[int, int], rounds: int) -> dict[str, tuple[float, float]]:
    """The median microseconds of each act in the short and in the long history, measured in turns."""
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(_open(_database(folder, jobs))) for jobs in sizes]
        for store in stores:
            for _ in range(WAITING):
                await _enqueue(store)
        acts = {"claim": _claim} | {what: _listing(which) for what, which in (FILTERS | PAIRS).items()}
        costs: dict[str, tuple[float, float]] = {}
        for what, act in acts.items():
            pairs = [(await act(stores[0]), await act(stores[1])) for _ in range(rounds)]
            short, long = (median(one) * 1e6 for one in zip(*pairs, strict=True))
            costs[what] = short, long
            say(f"{what}: {short:,.0f} µs and {long:,.0f} µs")
        return costs


def _database(folder: Path, jobs: int) -> Path:
    return folder / f"{jobs}.db"


def _open(path: Path) -> AbstractAsyncContextManager[SqliteStore]:
    return SqliteStore.open(path, vault=Vault(b"k" * KEY_BYTES))


async def _enqueue(store: SqliteStore) -> None:
    await store.enqueue(NewJob(kind="build", spec={"image": "registry.example/app:1"}, tenant=TENANT), queue_max=1_000)


async def _claim(store: SqliteStore) -> float:
    """Seconds of one claim among waiting jobs; the job is ended and replaced by another outside the measure."""
    began = time.perf_counter()
    (claim,) = await store.claim(WORKER, Capacity({"build": 1}, per_tenant_running=8))
    took = time.perf_counter() - began
    await store.finish(claim, Ending(State.SUCCEEDED, result={}))
    await _enqueue(store)
    return took


def _listing(which: Filter) -> Act:
    async def act(store: SqliteStore) -> float:
        began = time.perf_counter()
        await store.list_jobs(which, cursor=None, limit=PAGE)
        return time.perf_counter() - began

    return act
