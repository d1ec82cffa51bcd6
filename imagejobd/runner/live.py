"""What a kind works with while an attempt goes on: `model.work.Work` on top of the store."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from imagejobd.model.errors import ErrorCode, Fault, Permanent
from imagejobd.model.job import Claim, Job
from imagejobd.model.secret import Redactor, Secret
from imagejobd.runner.behind import WriteBehind
from imagejobd.runner.joblog import JobLog
from imagejobd.store.protocol import Store

PROGRESS_EVERY_S = 0.25
# What an attempt says, and for how long, that may be kept back.
UNSAID_MAX = 100
UNSAID_MAX_S = 10.0
# Programs echo a secret of several lines line by line; shorter lines of it are too common to mask.
SECRET_LINE_MIN_CHARS = 8


class LiveWork:
    """One claimed job's log, phases, progress and checkpoint. `end_log` before the ending is written.

    An attempt after a temporary fault keeps its first words back, for so long as it may turn out to fail as the one
    before it did: then they are not said again.
    """

    def __init__(self, store: Store, claim: Claim, *, log_max_bytes: int) -> None:
        self._store = store
        self._claim = claim
        self._checkpoint: dict[str, Any] = dict(claim.job.checkpoint)
        self._progress: dict[str, Any] = {}
        self._progress_is_new = False
        self._progress_behind = WriteBehind(self._write_progress, delay_s=PROGRESS_EVERY_S)
        self._concealed = set(claim.secrets.values())
        self._redactor: Redactor | None = None
        self._joblog = JobLog(self._write_log, self.redact, max_bytes=log_max_bytes, stored_bytes=claim.job.log_bytes)
        # What an attempt says that may turn out to repeat the one before it; None once it is in the log.
        self._unsaid: list[str] | None = [] if claim.job.faults else None
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
    async def phase(self, name: str, *, timeout_s: float) -> AsyncIterator[None]:
        self.faults = await self._store.enter_phase(self._claim, name)
        self.phase_name = name
        clock = asyncio.timeout(timeout_s)
        try:
            async with clock:
                yield
        except TimeoutError:
            if not clock.expired():
                raise
            raise Permanent(
                ErrorCode.TIMEOUT, f"{name} took longer than its limit of {timeout_s:g} s and was stopped"
            ) from None

    async def save(self, *, blobs: Collection[str] = (), **values: Any) -> None:
        self._checkpoint.update(values)
        await self._store.checkpoint(self._claim, values, blobs=blobs)

    async def log(self, text: str) -> None:
        if self._unsaid is None:
            await self._joblog.append(text)
            return
        self._unsaid.append(text)
        if self._unsaid_timer is None:
            self._unsaid_timer = asyncio.create_task(self._say_later())
        if len(self._unsaid) > UNSAID_MAX:
            await self._say()

    async def _say_later(self) -> None:
        await asyncio.sleep(UNSAID_MAX_S)
        with contextlib.suppress(Fault):
            await self._say()

    async def _say(self) -> None:
        """Bring to the log what was kept back, and nothing is kept back any more."""
        unsaid, self._unsaid = self._unsaid, None
        for text in unsaid or ():
            await self._joblog.append(text)

    async def note(self, event: str, **data: Any) -> None:
        await self._store.note(self._claim, event, data)

    def progress(self, **values: Any) -> None:
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


def _redactor(secrets: Collection[Secret]) -> Redactor:
    return Redactor({*secrets, *(line for secret in secrets for line in _lines(secret))})


def _lines(secret: Secret) -> Iterator[Secret]:
    return (Secret(line) for line in secret.reveal().splitlines() if len(line) >= SECRET_LINE_MIN_CHARS)
