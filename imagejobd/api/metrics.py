"""`GET /metrics`: the daemon's numbers for Prometheus, in its text format. docs/monitoring.md describes each of them.

What happened to jobs is read out of the store's history, where every change of every job is, whoever made it: so no
end is missed, be it in the queue, after a crash or by a time limit, and nobody else has to count. Counters begin at 0
with each start, as Prometheus expects. No label is a stranger's word but the names of registries, which are bounded in
number (model/traffic.py).
"""

import asyncio
import os
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol, TypeVar

from aiohttp import web
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from imagejobd import __version__
from imagejobd.model.circuit import Circuits
from imagejobd.model.errors import ErrorCode, Fault
from imagejobd.model.histogram import Histogram
from imagejobd.model.job import State, Transition, next_state
from imagejobd.model.traffic import Traffic
from imagejobd.store.protocol import Store
from imagejobd.store.statistics import Activity, Commits, KindStats, Stats

# How often the history is read, and the event loop is looked at. A job that fails again and again, and whose history
# keeps the last failure only, is not tried more often unless it is configured so.
EVERY_S = 1.0
# How long an answer serves later callers: anybody may ask.
ANSWER_MAX_AGE_S = 0.5
STORE_TIMEOUT_S = 3.0

# Ranges of the histograms.
JOB_SECONDS = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 4 * 3600)
LAG_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)

_MS_PER_S = 1000

Labels = tuple[str, ...]
L = TypeVar("L", bound=Labels)


class EngineHealth(Protocol):
    """What is known of the Docker Engine."""

    @property
    def is_open(self) -> bool:
        """Whether it answers."""
        ...

    def downtime_s(self) -> float:
        """Seconds in which it did not, so far."""
        ...


class JobMetrics:
    """What happened to jobs since the start. `kinds` are those that the daemon knows."""

    def __init__(self, kinds: Collection[str]) -> None:
        # Prometheus sees the first of something only as a change from 0.
        codes = [code.value for code in ErrorCode]
        self._submitted = _zeros((kind,) for kind in kinds)
        self._finished = _zeros((kind, State.FAILED.value, code) for kind in kinds for code in codes)
        others = (State.SUCCEEDED.value, State.CANCELLED.value)
        self._finished.update(_zeros((kind, state, "") for kind in kinds for state in others))
        self._retries = _zeros((kind, code) for kind in kinds for code in codes)
        self._interruptions = _zeros((kind,) for kind in kinds)
        self._crashes = _zeros((kind,) for kind in kinds)
        self._waits = _histograms()
        self._durations = _histograms()
        self._phases = _histograms()

    def add(self, activity: Activity) -> None:
        kind, code, count = activity.kind, activity.code or "", activity.count
        seconds = None if activity.duration_ms is None else activity.duration_ms / _MS_PER_S
        self._crashes[kind,] += count if activity.is_crash else 0
        match activity.event:
            case "enqueue":
                self._submitted[kind,] += count
            case Transition.CLAIM if seconds is not None:
                self._waits[kind,].add(seconds, count)
            case "leave_phase" if seconds is not None:
                self._phases[kind, activity.phase or ""].add(seconds, count)
            case Transition.RETRY:
                self._retries[kind, code] += count
            case Transition.INTERRUPT:
                self._interruptions[kind,] += count
            case Transition.SUCCEED | Transition.FAIL | Transition.CANCEL as move:
                state = next_state(State.RUNNING, Transition(move)) or ""
                self._finished[kind, state, code] += count
                if seconds is not None:
                    self._durations[kind, state].add(seconds, count)

    def families(self) -> Iterator[Metric]:
        yield _counter("imagejobd_jobs_submitted", "Jobs that were accepted.", ("kind",), self._submitted)
        yield _counter(
            "imagejobd_jobs_finished",
            "Jobs that ended, by state and code of the error (empty without one).",
            ("kind", "state", "code"),
            self._finished,
        )
        yield _counter(
            "imagejobd_retries", "Attempts after which a job is tried again.", ("kind", "code"), self._retries
        )
        yield _counter(
            "imagejobd_interruptions", "Attempts that a stop of the daemon interrupted.", ("kind",), self._interruptions
        )
        yield _counter("imagejobd_crashes", "Jobs that were running when the daemon died.", ("kind",), self._crashes)
        yield _histogram(
            "imagejobd_job_wait_seconds", "From when a job was due to its first start.", ("kind",), self._waits
        )
        yield _histogram(
            "imagejobd_job_duration_seconds",
            "From the first start of a job to its end, with the pauses between attempts.",
            ("kind", "state"),
            self._durations,
        )
        yield _histogram(
            "imagejobd_phase_duration_seconds", "Of phases that were left.", ("kind", "phase"), self._phases
        )


class Metrics(Collector):
    """All metrics. `run` has to run beside; whoever asks gets what `scrape` returns.

    `since_event` is the cursor of the store's history at which the counters begin. `slots` is how many jobs of each
    kind run at once, `queue_max` how many may wait; `crashes_max` see `Capacity`. `webhooks` are counts by webhook and
    outcome, which grow.
    """

    def __init__(
        self,
        store: Store,
        commits: Commits,
        *,
        since_event: int,
        slots: Mapping[str, int],
        queue_max: int,
        crashes_max: int,
        engine: EngineHealth,
        circuits: Circuits,
        traffic: Traffic,
        state_dir: Path,
        webhooks: Mapping[tuple[str, str], int] | None = None,
    ) -> None:
        self._store = store
        self._commits = commits
        self._cursor = since_event
        self._slots = slots
        self._queue_max = queue_max
        self._crashes_max = crashes_max
        self._engine = engine
        self._circuits = circuits
        self._traffic = traffic
        self._state_dir = state_dir
        self._webhooks = webhooks or {}
        self._jobs = JobMetrics(slots)
        self._lag = Histogram(LAG_SECONDS)
        # How the store stands; None where it did not answer the last time.
        self._stats: tuple[Stats, Mapping[str, KindStats]] | None = None
        self._reading = asyncio.Lock()
        self._text = b""
        self._text_at = float("-inf")
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._registry.register(self)

    async def run(self) -> None:
        """Read the history as it grows, and see how late the event loop is, until cancelled."""
        while True:
            due = time.monotonic() + EVERY_S
            await asyncio.sleep(EVERY_S)
            self._lag.add(max(0.0, time.monotonic() - due))
            with suppress(Fault, TimeoutError):  # `imagejobd_store_up` tells
                async with self._reading, asyncio.timeout(STORE_TIMEOUT_S):
                    await self._read_history()

    async def scrape(self) -> bytes:
        """The numbers now, or as they were a moment ago. Those of a store that does not answer are missing."""
        async with self._reading:
            if time.monotonic() - self._text_at > ANSWER_MAX_AGE_S:
                try:
                    async with asyncio.timeout(STORE_TIMEOUT_S):
                        await self._read_history()
                        kinds = await self._store.kind_stats(crashes_max=self._crashes_max)
                        self._stats = await self._store.stats(), kinds
                except (Fault, TimeoutError):
                    self._stats = None
                self._text = generate_latest(self._registry)
                self._text_at = time.monotonic()
            return self._text

    async def _read_history(self) -> None:
        """Add up what is new. Cut at any time, it goes on from there."""
        while True:
            activities, cursor = await self._store.activity(self._cursor)
            if cursor == self._cursor:
                return
            self._cursor = cursor
            for activity in activities:
                self._jobs.add(activity)

    def collect(self) -> Iterator[Metric]:
        """What prometheus-client asks for; see `scrape`."""
        yield _gauge("imagejobd_build_info", "The version that runs.", ("version",), {(__version__,): 1})
        yield _gauge("imagejobd_store_up", "Whether the job database could be read.", (), {(): self._stats is not None})
        if self._stats is not None:
            yield from self._queue_families(*self._stats)
        yield _gauge("imagejobd_queue_max", "Jobs that may wait, of all kinds together.", (), {(): self._queue_max})
        slots = {(kind,): number for kind, number in self._slots.items()}
        yield _gauge("imagejobd_slots", "Jobs of a kind that run at once.", ("kind",), slots)
        yield from self._jobs.families()
        yield from self._outside_families()
        yield from self._machine_families()

    def _queue_families(self, stats: Stats, stored: Mapping[str, KindStats]) -> Iterator[Metric]:
        kinds = {kind: KindStats() for kind in self._slots} | dict(stored)
        jobs = {(kind, State.QUEUED.value): one.ready + one.delayed for kind, one in kinds.items()}
        jobs |= {(kind, State.RUNNING.value): one.running for kind, one in kinds.items()}
        yield _gauge("imagejobd_jobs", "Jobs that have not ended, by state.", ("kind", "state"), jobs)
        depth = {(kind, "ready"): one.ready for kind, one in kinds.items()}
        depth |= {(kind, "delayed"): one.delayed for kind, one in kinds.items()}
        yield _gauge(
            "imagejobd_queue_depth",
            "Queued jobs: ready ones wait for their turn, delayed ones for their time or a registry.",
            ("kind", "state"),
            depth,
        )
        now_ms = time.time() * _MS_PER_S
        due_ms = {kind: one.oldest_due_ms for kind, one in kinds.items()}
        oldest = {(kind,): 0.0 if due is None else max(0.0, now_ms - due) / _MS_PER_S for kind, due in due_ms.items()}
        yield _gauge(
            "imagejobd_queue_oldest_seconds",
            "How long the ready job that waits longest has been due.",
            ("kind",),
            oldest,
        )
        paused = {(kind,): one.is_paused for kind, one in kinds.items()}
        yield _gauge("imagejobd_paused", "Whether no job of a kind is started, as somebody wants.", ("kind",), paused)
        suspects = {(kind,): one.suspects for kind, one in kinds.items()}
        yield _gauge("imagejobd_suspects", "Queued jobs that run alone because of crashes.", ("kind",), suspects)
        yield _gauge("imagejobd_wal_bytes", "Size of the database's write-ahead log.", (), {(): stats.wal_bytes})

    def _outside_families(self) -> Iterator[Metric]:
        yield _gauge("imagejobd_engine_up", "Whether the Docker Engine answers.", (), {(): self._engine.is_open})
        downtime = {(): self._engine.downtime_s()}
        yield _counter("imagejobd_engine_downtime_seconds", "In which it did not.", (), downtime)
        circuits = {(): len(self._circuits.outages)}
        yield _gauge("imagejobd_open_circuits", "Hosts that are known not to answer.", (), circuits)
        for how, text in (
            ("read", "Of blobs that came from a registry to be copied."),
            ("sent", "Of blobs that went to a registry."),
            ("mounted", "Of blobs that a registry took over from another of its repositories."),
            ("skipped", "Of blobs that a registry had already."),
        ):
            values = {(name,): getattr(total, how) for name, total in self._traffic.registries.items()}
            yield _counter(f"imagejobd_registry_{how}_bytes", text, ("registry",), values)

        text = "Messages that a webhook took or that were given up, and tries that it refused."
        yield _counter("imagejobd_webhook_messages", text, ("webhook", "outcome"), self._webhooks)

    def _machine_families(self) -> Iterator[Metric]:
        commits = self._commits
        yield _histogram("imagejobd_commit_requests", "Requests that one commit took.", (), {(): commits.requests})
        yield _histogram("imagejobd_commit_seconds", "From BEGIN to the end of COMMIT.", (), {(): commits.seconds})
        with suppress(OSError):  # the folder was removed: /readyz tells
            disk = os.statvfs(self._state_dir)
            free, size = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
            yield _gauge("imagejobd_disk_free_bytes", "On the disk of the state folder.", (), {(): free})
            yield _gauge("imagejobd_disk_size_bytes", "Of the disk of the state folder.", (), {(): size})
        yield _histogram(
            "imagejobd_event_loop_lag_seconds", "By which a timer of a second came late.", (), {(): self._lag}
        )


def routes(metrics: Metrics) -> list[web.RouteDef]:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=await metrics.scrape(), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})

    return [web.get("/metrics", answer)]


def _zeros(labels: Iterable[Labels]) -> Counter[Labels]:
    return Counter(dict.fromkeys(labels, 0))


def _histograms() -> defaultdict[Labels, Histogram]:
    return defaultdict(lambda: Histogram(JOB_SECONDS))


def _counter(name: str, text: str, labels: Labels, values: Mapping[L, float]) -> Metric:
    """`_total` is added to the name."""
    family = CounterMetricFamily(name, text, labels=labels)
    for label_values, value in values.items():
        family.add_metric(label_values, value)
    return family


def _gauge(name: str, text: str, labels: Labels, values: Mapping[L, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for label_values, value in values.items():
        family.add_metric(label_values, value)
    return family


def _histogram(name: str, text: str, labels: Labels, values: Mapping[L, Histogram]) -> Metric:
    family = HistogramMetricFamily(name, text, labels=labels)
    for label_values, histogram in values.items():
        bounds = [*map(str, map(float, histogram.bounds)), "+Inf"]
        family.add_metric(label_values, list(zip(bounds, histogram.cumulative(), strict=True)), histogram.sum)
    return family
