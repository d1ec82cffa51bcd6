"""What is deleted when: old jobs, logs and payloads; and jobs that waited too long fail."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

from imagejobd.model.clock import Clock
from imagejobd.model.clock import now_ms as wall_clock_ms
from imagejobd.model.errors import Temporary
from imagejobd.runner.settings import Retention
from imagejobd.store.content import ContentStore
from imagejobd.store.protocol import Pruned, Store

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
        with _later_if_it_fails("expire jobs"):
            for uuid in await store.expire(due_before_ms=clock.now_ms() - most_ms, is_over=is_over):
                log.warning("job waited too long in the queue", job=uuid)
        await asyncio.sleep(EXPIRE_EVERY_S)


async def prune_loop(
    store: Store, blobs: ContentStore, keep: Retention, now_ms: Callable[[], int] = wall_clock_ms
) -> None:
    """Delete what is older than the retention says, then the blobs that nothing refers to any more.

    Once a day the store looks at its data anew, because what it knew of them has aged by then. Each step is tried,
    whatever became of the others: on a full disk rows cannot be deleted, but blobs can.
    """
    optimized_ms = now_ms()  # the store was, when it was closed
    while True:
        with _later_if_it_fails("delete old jobs and logs"):
            await _prune(store, keep, now_ms())
        with _later_if_it_fails("remove unused blobs"):
            await blobs.collect(await store.referenced_blobs(), min_age_s=BLOB_MIN_AGE_S)
        if now_ms() - optimized_ms >= DAY_MS:
            with _later_if_it_fails("optimize the database"):
                await store.optimize()
                optimized_ms = now_ms()
        await asyncio.sleep(PRUNE_EVERY_S)


@contextmanager
def _later_if_it_fails(what: str) -> Iterator[None]:
    """A temporary fault is logged, and a later round tries again."""
    try:
        yield
    except Temporary as fault:
        log.error(f"cannot {what} now", error=fault.message)


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
