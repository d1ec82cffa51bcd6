"""Claims jobs while there are free slots, runs them, and interrupts them when the daemon stops.

The queue is the store's: kept here are only the attempts under way in this process.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Mapping

import structlog

from imagejobd.model.circuit import Circuits
from imagejobd.model.clock import Clock, utc
from imagejobd.model.errors import ENGINE, ClaimLost, Fault, StoreFailed, Temporary
from imagejobd.model.job import Claim, Job, State
from imagejobd.model.kind import JobKind
from imagejobd.model.traffic import Traffic
from imagejobd.runner.attempt import Attempt, Cause
from imagejobd.runner.eta import eta_s
from imagejobd.runner.gate import EngineGate
from imagejobd.runner.pauses import Pauses, covered_ms
from imagejobd.runner.settings import Limits
from imagejobd.store.protocol import CANCEL_TOPIC, QUEUE_TOPIC, Capacity, Store

# Nobody is notified of delayed jobs that become due; this is how late they may start.
POLL_S = 1.0
UNWRITTEN_RETRY_S = 20.0
# How long an interrupted job may take to stop its work and to be queued again, before the daemon leaves without it.
INTERRUPT_TIMEOUT_S = 15.0
CLAMP_EVERY_S = 3600.0

log = structlog.get_logger("imagejobd.runner")


class Runner:
    """Runs claimed jobs, bounded per kind and tenant. `slots` is how many of each kind run at once."""

    def __init__(
        self,
        store: Store,
        kinds: Mapping[str, JobKind],
        limits: Limits,
        *,
        slots: Mapping[str, int],
        worker: str,
        gate: EngineGate,
        circuits: Circuits,
        clock: Clock,
        traffic: Traffic | None = None,
    ) -> None:
        self._store = store
        self._kinds = kinds
        self._limits = limits
        self._slots = slots
        self._worker = worker
        self._gate = gate
        self._circuits = circuits
        self._clock = clock
        self._traffic = traffic or Traffic()
        self._attempts: dict[asyncio.Task[None], Attempt] = {}
        self._unwritten: list[Attempt] = []
        self._wake = asyncio.Event()
        self._pauses = Pauses(store, clock.now_ms, self._wake.set)
        # Held while jobs are claimed, so that a drain finds every job that was: started, never in between.
        self._claiming = asyncio.Lock()
        self._is_draining = False
        # Peers that answer again and whose jobs are not ready yet.
        self._answered: asyncio.Queue[str] = asyncio.Queue()
        circuits.on_close = self._answered.put_nowait
        gate.on_open = self._on_engine

    @property
    def running(self) -> int:
        return len(self._attempts)

    def waiting_for(self, job: Job) -> str | None:
        """What a queued job waits for besides its turn, for people; None where there is nothing of the sort."""
        if job.state is not State.QUEUED:
            return None
        if (pause := self._pauses.get(job.kind)) is not None:
            return pause.waiting
        if job.waits_for == ENGINE:
            return self._gate.waiting
        if job.waits_for is not None:
            outage = self._circuits.outages.get(job.waits_for)
            since = f" since {utc(outage.since_ms)}" if outage else ""
            return f"waiting for {job.waits_for}, which does not answer{since}"
        if (waiting := self.waiting_for_kind(job.kind)) is not None:
            return waiting
        if job.crashes_in_phase >= self._limits.crashes_max:
            return f"waiting to run alone, because the daemon died {job.crashes_in_phase} times while it was running"
        return None

    def waiting_for_kind(self, kind: str) -> str | None:
        """What all queued jobs of a kind wait for, for people."""
        if (pause := self._pauses.get(kind)) is not None:
            return pause.waiting
        return self._gate.waiting if self._uses_engine(kind) else None

    async def eta_s(self, job: Job) -> float | None:
        """In how many seconds a queued job probably starts (see `eta_s` of runner/eta.py); None where nobody can tell:
        it waits for something, or for its time, or nothing is known of its kind."""
        if job.state is not State.QUEUED or job.kind not in self._slots or self.waiting_for(job) is not None:
            return None
        if job.not_before_ms is not None and job.not_before_ms > self._clock.now_ms():
            return None
        slots, limits = self._slots[job.kind], self._limits
        most = min(slots, limits.per_tenant_running, limits.per_tenant.running.get(job.kind, slots))
        return eta_s(await self._store.backlog(job), most, self._clock.now_ms())

    def downtime_ms(self, kind: str, since_ms: int) -> int:
        """Milliseconds after `since_ms` (epoch) in which no job of the kind could start: it was paused, or the engine
        away."""
        outages = self._gate.outages if self._uses_engine(kind) else []
        return covered_ms([*outages, *self._pauses.intervals(kind)], since_ms)

    def _uses_engine(self, kind: str) -> bool:
        job_kind = self._kinds.get(kind)
        return job_kind is not None and job_kind.uses_engine

    def _on_engine(self) -> None:
        self._answered.put_nowait(ENGINE)
        self._wake.set()

    async def run(self) -> None:
        """Claim and run jobs until cancelled. Returns only by raising: a loop that ends is a defect."""
        async with asyncio.TaskGroup() as loops:
            for loop in (
                self._gate.run,
                self._pauses.run,
                self._claim_loop,
                self._queue_loop,
                self._cancel_loop,
                self._unwritten_loop,
                self._answer_loop,
                self._trial_loop,
                self._clock_loop,
            ):
                loops.create_task(loop(), name=loop.__name__)

    async def drain(self, timeout_s: float) -> None:
        """Claim nothing more, wait for what runs, interrupt the rest after `timeout_s`."""
        self._is_draining = True
        async with self._claiming:
            pass
        # From here on no end of this process is a job's doing. Where that cannot be written it counts as a crash.
        with contextlib.suppress(Fault):
            await self._store.drain(self._worker)
        if self._attempts:
            await asyncio.wait(self._attempts, timeout=timeout_s)
        self.interrupt_all()
        if self._attempts:
            await asyncio.wait(self._attempts, timeout=INTERRUPT_TIMEOUT_S)
        for attempt in list(self._attempts.values()):
            log.error("a job does not stop in time; it goes on after the next start", job=attempt.uuid)
            with contextlib.suppress(Fault):
                await attempt.requeue()

    def interrupt_all(self) -> None:
        """Stop what runs now; each job is queued again and keeps its checkpoint."""
        for attempt in self._attempts.values():
            attempt.stop(Cause.SHUTDOWN)

    async def _claim_loop(self) -> None:
        while True:
            self._wake.clear()
            async with self._claiming:
                claims = await self._claim()
                for claim in claims:
                    self._start(claim)
            if not claims:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(POLL_S):
                        await self._wake.wait()

    async def _claim(self) -> list[Claim]:
        free = self._free()
        if self._is_draining or not free:
            return []
        capacity = Capacity(
            free,
            self._limits.per_tenant_running,
            per_tenant=self._limits.per_tenant.running,
            slots={kind: slots for kind, slots in self._slots.items() if self._may_start(kind)},
            crashes_max=self._limits.crashes_max,
        )
        try:
            return await self._store.claim(self._worker, capacity)
        except Temporary as fault:
            log.error("cannot claim jobs now", error=fault.message)
            return []

    def _free(self) -> dict[str, int]:
        busy = Counter(attempt.kind for attempt in self._attempts.values())
        return {
            kind: slots - busy[kind]
            for kind, slots in self._slots.items()
            if slots > busy[kind] and self._may_start(kind)
        }

    def _may_start(self, kind: str) -> bool:
        return self._pauses.get(kind) is None and (self._gate.is_open or not self._kinds[kind].uses_engine)

    def _start(self, claim: Claim) -> None:
        attempt = Attempt(
            self._store,
            self._kinds[claim.job.kind],
            claim,
            self._limits,
            gate=self._gate,
            circuits=self._circuits,
            clock=self._clock,
            traffic=self._traffic,
        )
        task = asyncio.create_task(attempt.run(), name=f"job {claim.job.uuid}")
        self._attempts[task] = attempt
        task.add_done_callback(self._ended)
        if self._is_draining:
            attempt.stop(Cause.SHUTDOWN)

    def _ended(self, task: asyncio.Task[None]) -> None:
        attempt = self._attempts.pop(task)
        self._wake.set()
        if not task.cancelled() and (failure := task.exception()) is not None:
            log.error("a job's ending could not be written; it runs again", job=attempt.uuid, exc_info=failure)
            self._unwritten.append(attempt)

    async def _queue_loop(self) -> None:
        with self._store.watch(QUEUE_TOPIC) as queue:
            while True:
                if await queue.changed(POLL_S) and self._free():
                    self._wake.set()

    async def _cancel_loop(self) -> None:
        with self._store.watch(CANCEL_TOPIC) as cancels:
            while True:
                try:
                    requested = set(await self._store.cancel_requests(self._worker))
                except Temporary as fault:
                    log.error("cannot read cancel requests now", error=fault.message)
                else:
                    for attempt in self._attempts.values():
                        if attempt.uuid in requested:
                            attempt.stop(Cause.USER)
                await cancels.changed(POLL_S)

    async def _unwritten_loop(self) -> None:
        """Queue the jobs again whose ending could not be written: a suspect would wait for ever for one that stays
        `running` without anybody who works on it."""
        while True:
            await asyncio.sleep(UNWRITTEN_RETRY_S)
            for attempt in list(self._unwritten):
                try:
                    await attempt.requeue()
                except ClaimLost:
                    pass
                except StoreFailed:
                    raise
                except Fault as fault:
                    log.error("a job cannot be queued again yet", job=attempt.uuid, error=fault.message)
                    continue
                self._unwritten.remove(attempt)

    async def _answer_loop(self) -> None:
        """Make ready what waited for a peer that answers again."""
        while True:
            peer = await self._answered.get()
            try:
                count = await self._store.answered(peer)
            except Temporary as fault:
                log.error("cannot make the jobs ready yet that waited for a peer", peer=peer, error=fault.message)
                await asyncio.sleep(POLL_S)
                self._answered.put_nowait(peer)
            else:
                log.info("jobs that waited for a peer go on", peer=peer, jobs=count)

    async def _trial_loop(self) -> None:
        """Let one of the jobs that wait for a peer find out whether it answers again."""
        while True:
            await asyncio.sleep(POLL_S)
            for peer in self._circuits.due():
                try:
                    await self._store.try_one(peer, self._free())
                except Temporary as fault:
                    log.error("cannot start a job that tries a peer now", peer=peer, error=fault.message)

    async def _clock_loop(self) -> None:
        """Delay no job by a clock that was set back: correct delays at once where that is noticed, and every hour."""
        seen_ms = 0
        clamped_at = -CLAMP_EVERY_S
        while True:
            set_back_ms = self._clock.set_back_ms - seen_ms
            if set_back_ms or time.monotonic() - clamped_at > CLAMP_EVERY_S:
                try:
                    await self._store.clamp_delays(set_back_ms)
                except Temporary as fault:
                    log.error("cannot correct the delays of jobs now", error=fault.message)
                else:
                    seen_ms += set_back_ms
                    clamped_at = time.monotonic()
            await asyncio.sleep(POLL_S)
