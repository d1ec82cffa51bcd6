"""What a kind works with while an attempt goes on: `model.work.Work` on top of the store."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from imagejobd.model.errors import ErrorCode, Fault, Permanent, Temporary
from imagejobd.model.job import Claim, Job
from imagejobd.model.secret import Redactor, Secret
from imagejobd.runner.behind import WriteBehind
from imagejobd.runner.joblog import JobLog
from imagejobd.store.protocol import Store

PROGRESS_EVERY_S = 0.25
# What an attempt says, and for how long, that may be kept back.
UNSAID_MAX_CHARS = 16 * 1024
UNSAID_MAX_S = 10.0
# Time that does not count prolongs a limit bit by bit: this is the least bit.
LIMIT_LOOK_MIN_S = 1.0
# Programs echo a secret of several lines line by line; shorter lines of it are too common to mask.
SECRET_LINE_MIN_CHARS = 8


class LiveWork:
    """One claimed job's log, phases, progress and checkpoint. `end_log` before the ending is written.

    An attempt after a temporary fault keeps its first words back, for so long as it may turn out to fail as the one
    before it did: then they are not said again.

    `downtime_s` is how long the Docker Engine has been away so far, in seconds since any moment; it grows while the
    engine is away.
    """

    def __init__(
        self, store: Store, claim: Claim, *, log_max_bytes: int, downtime_s: Callable[[], float] = lambda: 0.0
    ) -> None:
        self._store = store
        self._claim = claim
        self._checkpoint: dict[str, Any] = dict(claim.job.checkpoint)
        self._progress: dict[str, Any] = {}
        self._progress_is_new = False
        self._progressed_at = 0.0
        self._downtime_s = downtime_s
        self._progress_behind = WriteBehind(self._write_progress, delay_s=PROGRESS_EVERY_S)
        self._concealed = set(claim.secrets.values())
        self._redactor: Redactor | None = None
        self._joblog = JobLog(self._write_log, self.redact, max_bytes=log_max_bytes, stored_bytes=claim.job.log_bytes)
        # What an attempt says that may turn out to repeat the one before it; None once it is in the log.
        self._unsaid: str | None = "" if claim.job.faults else None
        self._unsaid_timer: asyncio.Task[None] | None = None
        self.phase_name: str | None = None
        self.faults = claim.job.faults

    @property
    def job(self) -> Job:
        return self._claim.job

    @property
    def secrets(self) -> Mapping[str, Secret]:
        return self._claim.secrets

    def conceal(self, secret: Secret) -> None:
        if secret not in self._concealed:
            self._concealed.add(secret)
            self._redactor = None

    def redact(self, text: str) -> str:
        """`text` without the job's own secrets and those that were concealed."""
        if self._redactor is None:
            # Not before it is needed: a job may conceal hundreds of words, one by one.
            self._redactor = _redactor(self._concealed)
        return self._redactor(text)

    @property
    def checkpoint(self) -> Mapping[str, Any]:
        return self._checkpoint

    @asynccontextmanager
    async def phase(self, name: str, *, timeout_s: float, waits_for: str | None = None) -> AsyncIterator[None]:
        self.faults = await self._store.enter_phase(self._claim, name)
        self.phase_name = name
        clock = asyncio.get_running_loop().time
        self._progressed_at = clock()
        started_at = clock() - self._downtime_s()

        def counted_s() -> float:
            if waits_for is not None:
                return clock() - self._progressed_at
            return clock() - self._downtime_s() - started_at

        async with limited(timeout_s, counted_s, _too_long(name, timeout_s, waits_for)):
            yield

    async def save(self, *, blobs: Collection[str] = (), **values: Any) -> None:
        self._checkpoint.update(values)
        await self._store.checkpoint(self._claim, values, blobs=blobs)

    async def log(self, text: str) -> None:
        if self._unsaid is None:
            await self._joblog.append(text)
            return
        self._unsaid += text
        if self._unsaid_timer is None:
            self._unsaid_timer = asyncio.create_task(self._say_later())
        if len(self._unsaid) > UNSAID_MAX_CHARS:
            await self._say()

    async def _say_later(self) -> None:
        await asyncio.sleep(UNSAID_MAX_S)
        with contextlib.suppress(Fault):
            await self._say()

    async def _say(self) -> None:
        """Bring to the log what was kept back, and nothing is kept back any more."""
        unsaid, self._unsaid = self._unsaid, None
        if unsaid:
            await self._joblog.append(unsaid)

    async def note(self, event: str, **data: Any) -> None:
        await self._store.note(self._claim, event, data)

    def progress(self, **values: Any) -> None:
        if any(name not in self._progress or self._progress[name] != value for name, value in values.items()):
            self._progressed_at = asyncio.get_running_loop().time()
        self._progress.update(values)
        self._progress_is_new = True
        self._progress_behind.soon()

    async def end_log(self, text: str | None) -> None:
        """Bring the last of log and progress to the store, with `text` as the last words.

        None drops what was kept back, because it repeats the attempt before.
        """
        if self._unsaid_timer is not None:
            self._unsaid_timer.cancel()
        if text is not None:
            if self._unsaid is not None and self.job.faults > 1:
                await self._joblog.append(f"\n(this happened {self.job.faults} times)\n")
            await self._say()
            await self._joblog.append(text)
        await self._progress_behind.now()
        await self._joblog.close()

    async def _write_log(self, text: str) -> None:
        await self._store.log(self._claim, text)

    async def _write_progress(self) -> None:
        if self._progress_is_new:
            self._progress_is_new = False
            await self._store.progress(self._claim, self._progress)


@asynccontextmanager
async def limited(limit_s: float, counted_s: Callable[[], float], fault: Fault) -> AsyncIterator[None]:
    """Cancel the block, and raise `fault`, when `counted_s`, which may stand still, is at `limit_s`."""
    limit = asyncio.timeout(None)
    try:
        async with limit:
            with _watched(limit, limit_s, counted_s):
                yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise fault from None


@contextmanager
def _watched(limit: asyncio.Timeout, limit_s: float, counted_s: Callable[[], float]) -> Iterator[None]:
    """Let `limit` expire when `counted_s`, which may stand still or go back but never overtakes the clock, is at
    `limit_s`."""
    loop = asyncio.get_running_loop()
    handle: asyncio.TimerHandle | None = None

    def look(rest_s: float) -> None:
        nonlocal handle
        handle = loop.call_later(rest_s, again)

    def again() -> None:
        rest_s = limit_s - counted_s()
        if rest_s > 0:
            look(max(rest_s, LIMIT_LOOK_MIN_S))
        else:
            limit.reschedule(loop.time())

    look(limit_s)
    try:
        yield
    finally:
        if handle is not None:
            handle.cancel()


def _too_long(name: str, timeout_s: float, waits_for: str | None) -> Fault:
    if waits_for is None:
        return Permanent(ErrorCode.TIMEOUT, f"{name} took longer than its limit of {timeout_s:g} s and was stopped")
    return Temporary(
        ErrorCode.TIMEOUT, f"{name} was stopped: it has waited for {waits_for} for {timeout_s:g} s without progress"
    )


def _redactor(secrets: Collection[Secret]) -> Redactor:
    return Redactor({*secrets, *(line for secret in secrets for line in _lines(secret))})


def _lines(secret: Secret) -> Iterator[Secret]:
    return (Secret(line) for line in secret.reveal().splitlines() if len(line) >= SECRET_LINE_MIN_CHARS)
