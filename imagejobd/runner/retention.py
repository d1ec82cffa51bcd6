"""What is deleted when: old jobs, logs and payloads; and jobs that waited too long fail."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from imagejobd.model.clock import Clock
from imagejobd.model.clock import now_ms as wall_clock_ms
from imagejobd.model.errors import Temporary
from imagejobd.runner.settings import Retention
from imagejobd.store.protocol import ContentStore, IsOver, Pruned, Store

EXPIRE_EVERY_S = 5.0
PRUNE_EVERY_S = 600.0
# Rows in one transaction: between two of them waiting requests get their turn at the writer. A block of log lies on 16
# pages, so that this many take a tenth of a second.
BATCH_MAX = 200
DAY_MS = 24 * 3600 * 1000
# A blob is written before the row that names it is committed.
BLOB_MIN_AGE_S = 3600.0

# Milliseconds after an epoch millisecond in which no job of a kind could start.
DowntimeMs = Callable[[str, int], int]

log = structlog.get_logger("imagejobd.retention")


async def expire_loop(store: Store, queue_timeout_s: float, clock: Clock, downtime_ms: DowntimeMs) -> None:
    """Fail the jobs that waited longer than they may without ever starting. Time in which none of their kind could
    start, and time that the clock only jumped over, is no waiting; nor is the time before this start, of which nobody
    knows what it was."""
    most_ms = int(queue_timeout_s * 1000)
    started_ms = clock.now_ms()

    def is_over(kind: str, due_ms: int) -> bool:
        since_ms = max(due_ms, started_ms)
        return clock.elapsed_ms(since_ms) - downtime_ms(kind, since_ms) >= most_ms

    while True:
        await _try("expire jobs", _expire(store, clock.now_ms() - most_ms, is_over))
        await asyncio.sleep(EXPIRE_EVERY_S)


async def _expire(store: Store, due_before_ms: int, is_over: IsOver) -> None:
    for uuid in await store.expire(due_before_ms=due_before_ms, is_over=is_over):
        log.warning("job waited too long in the queue", job=uuid)


async def prune_loop(
    store: Store, blobs: ContentStore, keep: Retention, now_ms: Callable[[], int] = wall_clock_ms
) -> None:
    """Delete what is older than the retention says, then the blobs that nothing refers to any more.

    Once a day the store looks at its data anew, because what it knew of them has aged by then. Each step is tried,
    whatever became of the others: on a full disk rows cannot be deleted, but blobs can.
    """
    optimized_ms = now_ms()  # the store was, when it was closed
    while True:
        await _try("delete old jobs and logs", _prune(store, keep, now_ms()))
        await _try("remove unused blobs", _collect(store, blobs))
        if now_ms() - optimized_ms >= DAY_MS and await _try("optimize the database", store.optimize()):
            optimized_ms = now_ms()
        await asyncio.sleep(PRUNE_EVERY_S)


async def _try(what: str, step: Coroutine[Any, Any, None]) -> bool:
    """Whether it was done; a fault is logged, and a later round tries again."""
    try:
        await step
    except Temporary as fault:
        log.error(f"cannot {what} now", error=fault.message)
        return False
    return True


async def _collect(store: Store, blobs: ContentStore) -> None:
    await blobs.collect(await store.referenced_blobs(), min_age_s=BLOB_MIN_AGE_S)


async def _prune(store: Store, keep: Retention, at_ms: int) -> None:
    while True:
        pruned: Pruned = await store.prune(
            jobs_before_ms=at_ms - int(keep.history_days * DAY_MS),
            logs_before_ms=at_ms - int(keep.log_days * DAY_MS),
            blobs_before_ms=at_ms - int(keep.payload_days * DAY_MS),
            batch_max=BATCH_MAX,
        )
        if pruned.rows < BATCH_MAX:
            return
