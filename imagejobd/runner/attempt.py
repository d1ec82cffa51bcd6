"""One attempt at one job, from claim to ending, and when there is another one.

Whether a job is tried again says the type of the error; when, and when it is enough, is decided here. Only the inner
task, the kind's own work, is ever cancelled; the outcome is always written, whatever goes wrong before, so an attempt
is never left `running`. Work that does not end when its user cancels it is abandoned: its claim is gone, so it can
change nothing any more.
"""

import asyncio
import random
import time
import traceback
from enum import StrEnum

import msgspec
import structlog

from imagejobd.model.circuit import Circuits
from imagejobd.model.clock import Clock
from imagejobd.model.errors import ENGINE, RETRY_AFTER_MAX_S, ClaimLost, ErrorCode, Fault, Permanent, Temporary
from imagejobd.model.failpoint import failpoint
from imagejobd.model.job import Claim, JobError, Json, State, log_fields, log_image
from imagejobd.model.kind import JobKind
from imagejobd.model.traffic import Traffic
from imagejobd.runner.context import AttemptContext, limited
from imagejobd.runner.gate import EngineGate
from imagejobd.runner.settings import Limits
from imagejobd.store.protocol import Ending, Store

# Far past any ceiling, and far from where a float ends.
DOUBLINGS_MAX = 30
# Cleaning up comes before the outcome is written, so that whoever reads that a job is over finds nothing of it in the
# engine. That must leave time to write within the runner's `INTERRUPT_TIMEOUT_S`; what takes longer is the sweep's.
DISCARD_TIMEOUT_S = 8.0
# Who cancels does not wait for an engine that hangs: the time in which the work has to end, and to be cleaned up after.
CANCEL_TIMEOUT_S = 1.5
CANCEL_WORK_TIMEOUT_S = 1.0
STORAGE_RETRY_S = 1.0
ENGINE_ANSWER_TIMEOUT_S = 1.0

# Work that did not end when it was cancelled, kept from the garbage collector until it does.
_abandoned: set[asyncio.Task[Json]] = set()

log = structlog.get_logger("imagejobd.runner")


class Cause(StrEnum):
    """Why an attempt was stopped from outside."""

    USER = "user"
    SHUTDOWN = "shutdown"


class Retry(msgspec.Struct, frozen=True):
    """The outcome after a temporary fault. `waits_for` is a peer that has to answer first; what the engine cut by going
    away is no attempt. With `is_repeat` it failed as the attempt before it."""

    error: JobError
    wait_s: float
    waits_for: str | None = None
    is_attempt: bool = True
    is_repeat: bool = False


class Interruption(msgspec.Struct, frozen=True):
    """The outcome when the daemon stops: the job goes on later, from its checkpoint."""


AttemptOutcome = Ending | Retry | Interruption


class Attempt:
    """A claim being worked on."""

    def __init__(
        self,
        store: Store,
        kind: JobKind,
        claim: Claim,
        limits: Limits,
        *,
        gate: EngineGate,
        circuits: Circuits,
        clock: Clock,
        traffic: Traffic,
    ) -> None:
        self._store = store
        self._kind = kind
        self._claim = claim
        self._limits = limits
        self._gate = gate
        self._downtime_before_s = gate.downtime_s()
        self._circuits = circuits
        self._clock = clock
        self._ctx = AttemptContext(
            store, claim, log_max_bytes=limits.log_max_bytes, downtime_s=gate.downtime_s, traffic=traffic
        )
        self._task: asyncio.Task[Json] | None = None
        self._cause: Cause | None = None
        self._stopped = asyncio.Event()
        self._stopped_at = 0.0
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
            self._stopped_at = time.monotonic()
            self._stopped.set()
            if self._task is not None:
                self._task.cancel()

    async def requeue(self) -> None:
        """Queue the job again although its work does not end, because the daemon leaves. Raises what the store does."""
        await self._store.interrupt(self._claim)

    async def run(self) -> None:
        """Work, judge, tidy, write the outcome. Raises only when the store has failed."""
        started = time.monotonic()
        job = self._claim.job
        if not job.faults:
            self._log.info("job started", **log_fields(job), **log_image(job))
        failpoint("after_claim")
        self._task = asyncio.create_task(self._within_job_timeout())
        if self._cause is not None:
            self._task.cancel()
        await self._until_ended(self._task)
        try:
            outcome = await self._judge_or_fail(self._task)
            await self._tidy(outcome)
            failpoint("before_finish")
            outcome = await self._write_or_fail(outcome)
            failpoint("after_finish")
        except ClaimLost:
            self._log.warning("the claim was lost while the job ran; whoever claimed it next goes on")
            return
        if not (isinstance(outcome, Retry) and outcome.is_repeat):
            seconds = round(time.monotonic() - started, 3)
            self._log.info("job ended", **_log_fields_of(outcome), **log_fields(job), **log_image(job), seconds=seconds)

    async def _until_ended(self, task: asyncio.Task[Json]) -> None:
        """Wait for the work; when its user has cancelled it, not longer than that may take."""
        stopped = asyncio.create_task(self._stopped.wait())
        await asyncio.wait([task, stopped], return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        await asyncio.wait([task], timeout=CANCEL_WORK_TIMEOUT_S if self._cause is Cause.USER else None)
        if not task.done():
            self._log.warning("the cancelled work does not end and is abandoned; the next sweep cleans up after it")
            _abandoned.add(task)
            task.add_done_callback(_forget)

    async def _within_job_timeout(self) -> Json:
        if not self._kind.has_job_timeout:
            return await self._work()
        limit_s, downtime_s = self._limits.job_timeout_s, self._gate.downtime_s
        started_at = time.monotonic() - downtime_s()
        why = f"the job took longer than limits.job_timeout_s = {limit_s:g} s and was stopped"
        async with limited(
            limit_s, lambda: time.monotonic() - downtime_s() - started_at, Permanent(ErrorCode.TIMEOUT, why)
        ):
            return await self._work()

    async def _work(self) -> Json:
        """The kind's own work, once nothing is known to be down without which it can do nothing."""
        for host in self._kind.hosts(self._claim.job):
            if (refusal := self._circuits.refusal(host)) is not None:
                raise refusal
        return await self._kind.run(self._ctx)

    async def _judge_or_fail(self, task: asyncio.Task[Json]) -> AttemptOutcome:
        try:
            return await self._judge(task)
        except ClaimLost:
            raise
        except Exception as defect:  # noqa: BLE001 - without an outcome the job would stay running for ever
            return self._failed_by(defect)

    async def _judge(self, task: asyncio.Task[Json]) -> AttemptOutcome:
        if not task.done():
            return Ending(State.CANCELLED)
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
        if isinstance(fault, Temporary):
            return await self._judge_temporary(fault)
        return Ending(State.FAILED, error=self._error(fault))

    async def _judge_temporary(self, fault: Temporary) -> AttemptOutcome:
        """Whether, when and on what condition there is another attempt."""
        job, error, faults = self._claim.job, self._error(fault), self._ctx.faults
        is_repeat = faults > 0 and (job.fault_phase, job.error) == (self._ctx.phase_name, error)
        spent_s = self._spent_s() if faults else 0.0
        wait_s = delay_s(fault, faults + 1, spent_s, self._limits)
        if fault.peer == ENGINE and (self._was_engine_away() or await self._engine_is_away()):
            # However often: but it pauses, for it may be this very job that takes the engine down.
            pause_s = wait_s or self._limits.retry_max_s
            if self._kind.uses_engine:
                return Retry(error, pause_s, is_attempt=False, is_repeat=is_repeat)
            pause_s = max(pause_s, self._limits.retry_for_s)
            return Retry(error, pause_s, waits_for=ENGINE, is_attempt=False, is_repeat=is_repeat)
        if wait_s is None:
            times = f"gave up after {faults + 1} attempts in {spent_s:.0f} s, see limits.retry_for_s"
            return Ending(State.FAILED, error=JobError(error.code, f"{error.message} ({times})"))
        if fault.peer is not None and self._circuits.is_open(fault.peer):
            return Retry(error, self._limits.retry_for_s - spent_s, waits_for=fault.peer, is_repeat=is_repeat)
        return Retry(error, wait_s, is_repeat=is_repeat)

    def _spent_s(self) -> float:
        """Seconds since the first of the faults that count, without those in which a needed engine was away."""
        since_ms = self._claim.job.faults_since_ms
        if since_ms is None:
            return 0.0
        away_ms = self._gate.downtime_ms(since_ms) if self._kind.uses_engine else 0
        return max(0, self._clock.elapsed_ms(since_ms) - away_ms) / 1000

    def _was_engine_away(self) -> bool:
        """Whether it was found not to answer during the work of a job that needs it: it may be back by now."""
        return self._kind.uses_engine and self._gate.downtime_s() > self._downtime_before_s

    async def _engine_is_away(self) -> bool:
        """Whether it does not answer now, or not soon."""
        try:
            async with asyncio.timeout(ENGINE_ANSWER_TIMEOUT_S):
                return not await self._gate.check()
        except TimeoutError:
            self._gate.doubt()
            return True

    def _failed_by(self, defect: Exception) -> Ending:
        return Ending(State.FAILED, error=self._error(self._as_fault(defect)))

    def _error(self, fault: Fault) -> JobError:
        message = self._ctx.redact(fault.message)
        # It may quote a program's output: SQLite's JSON functions end it at a NUL, terminals obey an escape.
        return JobError(fault.code, "".join(char if char.isprintable() or char == "\n" else " " for char in message))

    def _as_fault(self, failure: BaseException | None) -> Fault:
        if isinstance(failure, Fault):
            return failure
        # The message of somebody else's exception may quote what it was given.
        trace = self._ctx.redact("".join(traceback.format_exception(failure)))
        self._log.error("job failed by a defect of imagejobd", exception=trace)
        return Permanent(
            ErrorCode.INTERNAL,
            f"internal error ({type(failure).__name__}); the daemon's log has the details under this job's id",
        )

    async def _tidy(self, outcome: AttemptOutcome) -> None:
        """Write the outcome into the job's log, and leave nothing of an ended job in the outside world.

        The end of the log may be lost, the outcome never.
        """
        try:
            await self._ctx.end_log(self._log_end(outcome))
        except ClaimLost:
            raise
        except Exception as failure:  # noqa: BLE001 - the outcome comes next, and says more than the log
            self._log.warning("the end of the job's log is lost", error=self._ctx.redact(str(failure)))
        if isinstance(outcome, Ending) and outcome.state is not State.SUCCEEDED:
            await self._discard()

    def _log_end(self, outcome: AttemptOutcome) -> str | None:
        """What the log says of the end; None when that, and all that came before, would repeat the attempt before."""
        match outcome:
            case Ending(state=State.FAILED, error=JobError(message=message)):
                return f"failed: {message}\n"
            case Ending(state=State.CANCELLED):
                return "cancelled\n"
            case Retry(is_repeat=True):
                return None
            case Retry(error, is_attempt=False):
                return f"{error.message}\nthe job goes on when {ENGINE} answers\n"
            case Retry(error, _, waits_for=str(peer)):
                return f"{error.message}\nthe job goes on when {peer} answers\n"
            case Retry(error, wait_s):
                attempt = self._claim.job.attempt
                return f"{error.message}\nattempt {attempt} failed; the next one comes in {wait_s:.0f} s\n"
            case Interruption():
                return "interrupted: the daemon stops; the job goes on when it is back\n"
        return ""

    async def _discard(self) -> None:
        """Clean up, within what is left of a cancel's time; not at all where the engine cannot be asked."""
        timeout_s = DISCARD_TIMEOUT_S
        if self._cause is Cause.USER:
            timeout_s = CANCEL_TIMEOUT_S - (time.monotonic() - self._stopped_at)
        if self._kind.uses_engine and not self._gate.is_open:
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self._kind.discard(self.uuid, self._ctx.checkpoint)
        except Exception as failure:  # noqa: BLE001 - the outcome comes next, and the sweep is the net
            error = self._ctx.redact(str(failure) or type(failure).__name__)
            self._log.warning("cannot clean up after the job now; the next sweep will", error=error)

    async def _write_or_fail(self, outcome: AttemptOutcome) -> AttemptOutcome:
        """Write the outcome, or a failure where the store does not take it; returns the one that is written."""
        try:
            await self._write_despite_full_disk(outcome)
        except ClaimLost:
            raise
        except Exception as defect:  # noqa: BLE001 - a result that is no JSON, say
            outcome = self._failed_by(defect)
            await self._write_despite_full_disk(outcome)
        return outcome

    async def _write_despite_full_disk(self, outcome: AttemptOutcome) -> None:
        """A full disk is waited out, because the work is done and must not be lost."""
        while True:
            try:
                return await self._write(outcome)
            except Temporary as fault:
                self._log.error("cannot write the job's ending yet", error=fault.message)
                await asyncio.sleep(STORAGE_RETRY_S)

    async def _write(self, outcome: AttemptOutcome) -> None:
        match outcome:
            case Ending():
                await self._store.finish(self._claim, outcome)
            case Retry(error, wait_s, waits_for, is_attempt):
                not_before_ms = self._clock.now_ms() + int(wait_s * 1000)
                await self._store.retry(
                    self._claim, error, not_before_ms=not_before_ms, waits_for=waits_for, is_attempt=is_attempt
                )
                # It may have answered before anybody could see that this job waits for it.
                if waits_for is not None and self._is_back(waits_for):
                    await self._store.answered(waits_for)
            case Interruption():
                await self._store.interrupt(self._claim)

    def _is_back(self, peer: str) -> bool:
        return self._gate.is_open if peer == ENGINE else not self._circuits.is_open(peer)


def delay_s(
    fault: Temporary, faults: int, spent_s: float, limits: Limits, *, jitter: float | None = None
) -> float | None:
    """Seconds to wait after the `faults`-th temporary fault in a row, or None when there is to be no further attempt
    because the first of them is `limits.retry_for_s` ago or longer.

    Exponential with jitter over the upper half, so that jobs that failed together do not come back together; never
    sooner than the peer's Retry-After. The last attempt comes when the time is over, not before.
    """
    remaining_s = limits.retry_for_s - spent_s
    if remaining_s <= 0:
        return None
    ceiling_s = min(limits.retry_max_s, limits.retry_first_s * 2.0 ** min(faults - 1, DOUBLINGS_MAX))
    share = random.random() if jitter is None else jitter  # noqa: S311 - spreads load, guards nothing
    backoff_s = ceiling_s * (0.5 + 0.5 * share)
    return min(max(backoff_s, min(fault.retry_after_s or 0.0, RETRY_AFTER_MAX_S)), remaining_s)


def _forget(task: asyncio.Task[Json]) -> None:
    _abandoned.discard(task)
    if not task.cancelled():
        task.exception()  # nobody else asks for it


def _log_fields_of(outcome: AttemptOutcome) -> dict[str, str]:
    match outcome:
        case Ending(state=state, error=None):
            return {"outcome": state}
        case Ending(state=state, error=JobError(code, message)):
            return {"outcome": state, "code": code, "error": message}
        case Retry(error, wait_s, waits_for, is_attempt):
            peer = {} if is_attempt and waits_for is None else {"waits_for": waits_for or ENGINE}
            return {"outcome": "retry", "code": error.code, "error": error.message, "wait_s": f"{wait_s:.1f}"} | peer
        case _:
            return {"outcome": "interrupted"}
