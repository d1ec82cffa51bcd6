"""One attempt at one job, from claim to ending.

An attempt ends with a verdict: an ending for good, a retry, or an interruption. Only the inner task, the kind's
own work, is ever cancelled; the verdict is always written, whatever goes wrong on the way to it, so an attempt is never
left `running`.
"""

import asyncio
import time
import traceback
from collections.abc import Callable
from enum import StrEnum

import msgspec
import structlog

from imagejobd.model.errors import ClaimLost, ErrorCode, Fault, Permanent, Temporary
from imagejobd.model.failpoint import failpoint
from imagejobd.model.job import Claim, JobError, Json
from imagejobd.model.state import State
from imagejobd.model.work import Kind
from imagejobd.runner import retry
from imagejobd.runner.live import LiveWork
from imagejobd.runner.settings import Limits
from imagejobd.store.protocol import Ending, Store

# The cleaning comes before the verdict, so that whoever reads that a job is over finds nothing of it in the engine.
# That must leave time for the verdict within the runner's `INTERRUPT_TIMEOUT_S`; what takes longer is the sweep's.
DISCARD_TIMEOUT_S = 8.0
STORAGE_RETRY_S = 1.0

log = structlog.get_logger("imagejobd.runner")


class Cause(StrEnum):
    """Why an attempt was stopped from outside."""

    USER = "user"
    SHUTDOWN = "shutdown"


class Retry(msgspec.Struct, frozen=True):
    """The verdict after a temporary fault."""

    error: JobError
    wait_s: float


class Interruption(msgspec.Struct, frozen=True):
    """The verdict when the daemon stops: the job goes on later, from its checkpoint."""


Verdict = Ending | Retry | Interruption


class Attempt:
    """A claim being worked on."""

    def __init__(self, store: Store, kind: Kind, claim: Claim, limits: Limits, now_ms: Callable[[], int]) -> None:
        self._store = store
        self._kind = kind
        self._claim = claim
        self._limits = limits
        self._now_ms = now_ms
        self._work = LiveWork(store, claim, log_max_bytes=limits.log_max_bytes)
        self._task: asyncio.Task[Json] | None = None
        self._cause: Cause | None = None
        self._log = log.bind(job=claim.job.uuid, kind=claim.job.kind, attempt=claim.job.attempt)

    @property
    def uuid(self) -> str:
        return self._claim.job.uuid

    @property
    def kind(self) -> str:
        return self._claim.job.kind

    def stop(self, cause: Cause) -> None:
        """Cancel the work; the first cause counts."""
        if self._cause is None:
            self._cause = cause
            if self._task is not None:
                self._task.cancel()

    async def run(self) -> None:
        """Work, judge, tidy, write the verdict. Raises only when the store has failed."""
        started = time.monotonic()
        self._log.info("job started", tenant=self._claim.job.tenant)
        failpoint("after_claim")
        self._task = asyncio.create_task(self._within_job_timeout())
        if self._cause is not None:
            self._task.cancel()
        await asyncio.wait([self._task])
        try:
            verdict = self._judge_surely(self._task)
            await self._tidy(verdict)
            failpoint("before_finish")
            verdict = await self._write_surely(verdict)
            failpoint("after_finish")
        except ClaimLost:
            self._log.warning("the claim was lost while the job ran; its next holder goes on")
            return
        self._log.info("job ended", **_describe(verdict), seconds=round(time.monotonic() - started, 3))

    async def _within_job_timeout(self) -> Json:
        limit_s = self._limits.job_timeout_s
        clock = asyncio.timeout(limit_s)
        try:
            async with clock:
                return await self._kind.run(self._work)
        except TimeoutError:
            if not clock.expired():
                raise
            raise Permanent(
                ErrorCode.TIMEOUT, f"the job took longer than limits.job_timeout_s = {limit_s:g} s and was stopped"
            ) from None

    def _judge_surely(self, task: asyncio.Task[Json]) -> Verdict:
        try:
            return self._judge(task)
        except ClaimLost:
            raise
        except Exception as defect:  # noqa: BLE001 - without a verdict the job would stay running for ever
            return self._failed_by(defect)

    def _judge(self, task: asyncio.Task[Json]) -> Verdict:
        if not task.cancelled() and task.exception() is None:
            return Ending(State.SUCCEEDED, result=task.result())
        if self._cause is Cause.USER:
            return Ending(State.CANCELLED)
        if self._cause is Cause.SHUTDOWN:
            return Interruption()
        # A kind that cancels itself is a defect: taken for an interruption it would be tried again without end.
        fault = self._as_fault(asyncio.CancelledError() if task.cancelled() else task.exception())
        if isinstance(fault, ClaimLost):
            raise fault
        wait_s = retry.delay_s(fault, self._claim.job.attempt, self._limits) if isinstance(fault, Temporary) else None
        error = self._error(fault)
        if wait_s is not None:
            return Retry(error, wait_s)
        if isinstance(fault, Temporary):
            error = JobError(error.code, f"{error.message} (gave up after {self._claim.job.attempt} attempts)")
        return Ending(State.FAILED, error=error)

    def _failed_by(self, defect: Exception) -> Ending:
        return Ending(State.FAILED, error=self._error(self._as_fault(defect)))

    def _error(self, fault: Fault) -> JobError:
        return JobError(fault.code, _printable(self._work.redact(fault.message)))

    def _as_fault(self, failure: BaseException | None) -> Fault:
        if isinstance(failure, Fault):
            return failure
        # The message of somebody else's exception may quote what it was given.
        trace = self._work.redact("".join(traceback.format_exception(failure)))
        self._log.error("job failed by a defect of imagejobd", exception=trace)
        return Permanent(
            ErrorCode.INTERNAL,
            f"internal error ({type(failure).__name__}); the daemon's log has the details under this job's id",
        )

    async def _tidy(self, verdict: Verdict) -> None:
        """Say the outcome in the job's log, and leave nothing of an ended job in the outside world.

        The log's last words may be given up, the verdict never.
        """
        try:
            await self._work.log(_last_words(verdict))
            await self._work.close()
        except ClaimLost:
            raise
        except Exception as failure:  # noqa: BLE001 - the verdict comes next, and says more than the log
            self._log.warning("the end of the job's log is lost", error=self._work.redact(str(failure)))
        if isinstance(verdict, Ending) and verdict.state is not State.SUCCEEDED:
            await self._discard()

    async def _discard(self) -> None:
        try:
            async with asyncio.timeout(DISCARD_TIMEOUT_S):
                await self._kind.discard(self.uuid, self._work.checkpoint)
        except Exception as failure:  # noqa: BLE001 - the verdict comes next, and the sweep is the net
            error = self._work.redact(str(failure) or type(failure).__name__)
            self._log.warning("could not clean up after the job; the next sweep will", error=error)

    async def _write_surely(self, verdict: Verdict) -> Verdict:
        """Write the verdict, or a failure where the store does not take it; returns the one that is written."""
        try:
            await self._write_patiently(verdict)
        except ClaimLost:
            raise
        except Exception as defect:  # noqa: BLE001 - a result that is no JSON, say
            verdict = self._failed_by(defect)
            await self._write_patiently(verdict)
        return verdict

    async def _write_patiently(self, verdict: Verdict) -> None:
        """A full disk is waited out, because the work is done and must not be lost."""
        while True:
            try:
                return await self._write(verdict)
            except Temporary as fault:
                self._log.error("cannot write the job's ending yet", error=fault.message)
                await asyncio.sleep(STORAGE_RETRY_S)

    async def _write(self, verdict: Verdict) -> None:
        match verdict:
            case Ending():
                await self._store.finish(self._claim, verdict)
            case Retry(error, wait_s):
                await self._store.retry(self._claim, error, not_before_ms=self._now_ms() + int(wait_s * 1000))
            case Interruption():
                await self._store.interrupt(self._claim)


def _printable(text: str) -> str:
    """A message may quote a program's output: SQLite's JSON functions end it at a NUL, terminals obey an escape."""
    return "".join(char if char.isprintable() or char == "\n" else " " for char in text)


def _last_words(verdict: Verdict) -> str:
    match verdict:
        case Ending(state=State.FAILED, error=JobError(message=message)):
            return f"\nfailed: {message}\n"
        case Ending(state=State.CANCELLED):
            return "\ncancelled\n"
        case Retry(error, wait_s):
            return f"\n{error.message}\nwill be tried again in {wait_s:.0f} s\n"
        case Interruption():
            return "\ninterrupted: the daemon stops; the job goes on when it is back\n"
    return ""


def _describe(verdict: Verdict) -> dict[str, str]:
    match verdict:
        case Ending(state=state, error=None):
            return {"outcome": state}
        case Ending(state=state, error=JobError(code, message)):
            return {"outcome": state, "code": code, "error": message}
        case Retry(error, wait_s):
            return {"outcome": "retry", "code": error.code, "error": error.message, "wait_s": f"{wait_s:.1f}"}
        case _:
            return {"outcome": "interrupted"}
