"""What a kind works with while an attempt goes on: `model.work.Work` on top of the store."""

import asyncio
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from imagejobd.model.errors import ErrorCode, Permanent
from imagejobd.model.job import Claim, Job
from imagejobd.model.secret import Redactor, Secret
from imagejobd.runner.behind import WriteBehind
from imagejobd.runner.joblog import JobLog
from imagejobd.store.protocol import Store

PROGRESS_EVERY_S = 0.25
# Programs echo a secret of several lines line by line; shorter lines of it are too common to mask.
SECRET_LINE_MIN_CHARS = 8


class LiveWork:
    """One claimed job's log, phases, progress and checkpoint. `close` before the ending is written."""

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
        await self._store.enter_phase(self._claim, name)
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
        await self._joblog.append(text)

    async def note(self, event: str, **data: Any) -> None:
        await self._store.note(self._claim, event, data)

    def progress(self, **values: Any) -> None:
        self._progress.update(values)
        self._progress_is_new = True
        self._progress_behind.soon()

    async def close(self) -> None:
        """Bring the last of log and progress to the store."""
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
