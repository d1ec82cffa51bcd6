"""After a crash: take back the jobs it left running, and remove what it left in the outside world."""

import traceback
from collections.abc import Iterable

import structlog

from imagejobd.model.errors import ENGINE, Fault, Temporary
from imagejobd.model.kind import JobKind
from imagejobd.store.protocol import CANCEL_TOPIC, Store

SWEEP_EVERY_S = 60.0
SWEEP_RETRY_S = 5.0

# The one reason that the daemon's log gives elsewhere.
ENGINE_AWAY = "the Docker Engine does not answer"

log = structlog.get_logger("imagejobd.recovery")


async def rescue(store: Store, worker: str, *, crashes_max: int) -> None:
    """Queue again, cancel or quarantine every job that an earlier worker left running; and let all that wait for a
    peer try it, for nobody knows any more whether it answers."""
    for rescued in await store.rescue(worker, crashes_max=crashes_max):
        log.warning("rescued a job that was left running", job=rescued.uuid, state=rescued.state)
    await store.answered(None)


async def sweep_loop(store: Store, kinds: Iterable[JobKind]) -> None:
    """Sweep at boot, as soon as the outside world answers, every minute, and twice after each cancel.

    A job that is cancelled while it waits for another attempt has nobody else to clean up after it; and of one that was
    building the engine may name the image a moment after everything of it was removed.
    """
    kinds = tuple(kinds)
    logged: set[str] = set()
    was_cancelled = False
    with store.watch(CANCEL_TOPIC) as cancels:
        while True:
            failures = await sweep(store, kinds)
            for message in sorted(failures - logged - {ENGINE_AWAY}):
                log.warning("cannot clean up leftovers yet", error=message)
            logged = failures
            was_cancelled = await cancels.changed(SWEEP_RETRY_S if failures or was_cancelled else SWEEP_EVERY_S)


async def sweep(store: Store, kinds: Iterable[JobKind]) -> set[str]:
    """Remove everything in the outside world that belongs to no live job; returns why something did not go.

    The outside is listed before the store is asked which jobs live: one that starts in between is then known to live.
    One thing that cannot be removed, by a fault or by a defect of its kind, does not protect the others.
    """
    failures: set[str] = set()
    for kind in kinds:
        try:
            ownerless = await kind.leftovers() - await store.live()
        except Exception as failure:  # noqa: BLE001 - logged by the caller
            failures.add(_reason(failure))
            continue
        for uuid in sorted(ownerless):
            try:
                job = await store.get(uuid, tenant=None)
                # One that was submitted after the store was asked lives, too.
                if job is None or (job.kind == kind.name and job.state.is_final):
                    await kind.discard(uuid, job.checkpoint if job else {})
                    log.info("removed leftovers of an ended job", job=uuid, kind=kind.name)
            except Exception as failure:  # noqa: BLE001 - logged by the caller
                failures.add(_reason(failure))
    return failures


def _reason(failure: Exception) -> str:
    if isinstance(failure, Temporary) and failure.peer == ENGINE:
        return ENGINE_AWAY
    if isinstance(failure, Fault):
        return failure.message
    *_, place = traceback.extract_tb(failure.__traceback__)
    return f"{failure!r} at {place.filename}:{place.lineno}; this is a defect of imagejobd"
