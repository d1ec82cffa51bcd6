"""The runner: claims jobs while there is room, watches over them, and lets go of them when the daemon stops.

Everything it knows about the queue it asks the store; what it keeps itself is the attempts under way in this process.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping

import structlog

from imagejobd.model.clock import now_ms as wall_clock_ms
from imagejobd.model.errors import Temporary
from imagejobd.model.job import Claim
from imagejobd.model.work import Kind
from imagejobd.runner.attempt import Attempt, Cause
from imagejobd.runner.settings import Limits
from imagejobd.store.protocol import CANCEL_TOPIC, QUEUE_TOPIC, Room, Store

# Delayed jobs become due without anybody saying so; this is how late they may start.
POLL_S = 1.0
LEASE_S = 60.0
# How long an interrupted job may take to stop its work and to be queued again, before the daemon leaves without it.
INTERRUPT_TIMEOUT_S = 15.0

log = structlog.get_logger("imagejobd.runner")


class Runner:
    """Runs claimed jobs, bounded per kind and tenant. `slots` is how many of each kind run at once."""

    def __init__(
        self,
        store: Store,
        kinds: Mapping[str, Kind],
        limits: Limits,
        *,
        slots: Mapping[str, int],
        worker: str,
        now_ms: Callable[[], int] = wall_clock_ms,
    ) -> None:
        self._store = store
        self._kinds = kinds
        self._limits = limits
        self._slots = slots
        self._worker = worker
        self._now_ms = now_ms
        self._attempts: dict[asyncio.Task[None], Attempt] = {}
        self._wake = asyncio.Event()
        # Held while jobs are claimed, so that a drain finds every job that was: started, never in between.
        self._claiming = asyncio.Lock()
        self._is_draining = False

    @property
    def running(self) -> int:
        return len(self._attempts)

    async def run(self) -> None:
        """Claim and watch until cancelled. Returns only by raising: a loop that ends is a defect."""
        async with asyncio.TaskGroup() as loops:
            for loop in (self._claim_loop, self._hear_queue, self._cancel_loop, self._lease_loop):
                loops.create_task(loop(), name=loop.__name__)

    async def drain(self, timeout_s: float) -> None:
        """Claim nothing more, wait for what runs, interrupt what is left after `timeout_s`."""
        self._is_draining = True
        async with self._claiming:
            pass
        if self._attempts:
            await asyncio.wait(self._attempts, timeout=timeout_s)
        self.interrupt_all()
        if self._attempts:
            await asyncio.wait(self._attempts, timeout=INTERRUPT_TIMEOUT_S)
        for attempt in self._attempts.values():
            log.error("leaving a job that does not stop; the next start takes it back", job=attempt.uuid)

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
                await _wait(self._wake, POLL_S)

    async def _claim(self) -> list[Claim]:
        free = self._free()
        if self._is_draining or not free:
            return []
        room = Room(free, self._limits.per_tenant_running)
        try:
            return await self._store.claim(self._worker, room, lease_until_ms=self._lease_until_ms())
        except Temporary as fault:
            log.error("cannot claim jobs now", error=fault.message)
            return []

    def _free(self) -> dict[str, int]:
        busy = Counter(attempt.kind for attempt in self._attempts.values())
        return {kind: slots - busy[kind] for kind, slots in self._slots.items() if slots > busy[kind]}

    def _start(self, claim: Claim) -> None:
        attempt = Attempt(self._store, self._kinds[claim.job.kind], claim, self._limits, self._now_ms)
        task = asyncio.create_task(attempt.run(), name=f"job {claim.job.uuid}")
        self._attempts[task] = attempt
        task.add_done_callback(self._ended)
        if self._is_draining:
            attempt.stop(Cause.SHUTDOWN)

    def _ended(self, task: asyncio.Task[None]) -> None:
        attempt = self._attempts.pop(task)
        self._wake.set()
        if not task.cancelled() and (failure := task.exception()) is not None:
            log.error("a job's ending could not be written", job=attempt.uuid, exc_info=failure)

    async def _hear_queue(self) -> None:
        with self._store.watch(QUEUE_TOPIC) as queue:
            while True:
                if await queue.changed(POLL_S) and self._free():
                    self._wake.set()

    async def _cancel_loop(self) -> None:
        with self._store.watch(CANCEL_TOPIC) as requests:
            while True:
                wanted = await self._cancel_requests()
                for attempt in self._attempts.values():
                    if attempt.uuid in wanted:
                        attempt.stop(Cause.USER)
                await requests.changed(POLL_S)

    async def _cancel_requests(self) -> set[str]:
        try:
            return set(await self._store.cancel_requests(self._worker))
        except Temporary as fault:
            log.error("cannot read cancel requests now", error=fault.message)
            return set()

    async def _lease_loop(self) -> None:
        while True:
            await asyncio.sleep(LEASE_S / 3)
            try:
                await self._store.renew(self._worker, lease_until_ms=self._lease_until_ms())
            except Temporary as fault:
                log.error("cannot renew leases now", error=fault.message)

    def _lease_until_ms(self) -> int:
        return self._now_ms() + int(LEASE_S * 1000)


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        pass
