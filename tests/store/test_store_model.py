"""The store against a model of it in a dict, through random histories: retries, cancels, crashes, drains, silent peers,
jumping clocks."""

import asyncio
import sqlite3
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule
from simulated_clock import SimulatedClock

from imagejobd.model.errors import ClaimLost, ErrorCode, Temporary
from imagejobd.model.job import Claim, JobError, NewJob, Push, State
from imagejobd.store.protocol import Capacity, Ending
from imagejobd.store.sqlite.store import SqliteStore
from imagejobd.store.vault import KEY_BYTES, Vault

HOUR_MS = 3_600_000
QUEUE_MAX = 12
CRASHES_MAX = 2
PHASES = st.sampled_from(["building", "pushing"])
PEER = "registry.example"
BROKEN = JobError(ErrorCode.PUSH_FAILED, "connection reset")
TENANTS = st.sampled_from(["a", "b", "c"])
KINDS = st.sampled_from(["build", "run"])
ENDINGS = st.sampled_from([State.SUCCEEDED, State.FAILED, State.CANCELLED])
DELAYS_MS = st.sampled_from([None, -5, 0, 5, HOUR_MS])


class Expected(msgspec.Struct):
    """What the model knows of one job."""

    uuid: str
    kind: str
    tenant: str
    priority: int
    order: int
    not_before_ms: int | None
    delayed: bool
    state: State = State.QUEUED
    attempt: int = 0
    crashes: int = 0
    crashes_in_phase: int = 0
    crashes_alone: int = 0
    crash_phase: str | None = None
    phase: str | None = None
    faults: int = 0
    fault_phase: str | None = None
    waits: bool = False
    drained: bool = False
    cancel_requested: bool = False
    finished_ms: int | None = None
    token: str | None = None
    pushes: dict[int, str] = {}  # what became of the push to each target

    @property
    def is_suspect(self) -> bool:
        return self.crashes_in_phase >= CRASHES_MAX

    def enter(self, phase: str) -> None:
        if self.phase is not None and self.phase == (self.fault_phase or self.phase):
            self.faults = 0
        if self.phase is not None and self.phase == (self.crash_phase or self.phase):
            self.crashes_in_phase = self.crashes_alone = 0
        self.phase = phase

    def fail(self) -> None:
        if not self.cancel_requested:
            self.faults, self.fault_phase = self.faults + 1, self.phase
            self.crashes_in_phase, self.crashes_alone = max(0, self.crashes_in_phase - 1), 0

    def crash(self, *, alone: bool) -> None:
        self.crashes += 1
        self.crashes_in_phase += 1
        self.crashes_alone = self.crashes_alone + 1 if alone else 0
        self.crash_phase = self.phase

    def move_to(self, state: State, now_ms: int) -> None:
        self.state, self.token, self.phase = state, None, None
        self.finished_ms = None if state is State.QUEUED else now_ms

    def back_to_queue(self, now_ms: int) -> None:
        self.move_to(State.CANCELLED if self.cancel_requested else State.QUEUED, now_ms)


class StoreMachine(RuleBasedStateMachine):
    jobs = Bundle("jobs")
    claims = Bundle("claims")

    @initialize()
    def open(self) -> None:
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "jobs.db"
        self.clock = SimulatedClock()
        self.model: dict[str, Expected] = {}
        self.paused: set[str] = set()
        self.boot = 0
        self.order = 0
        self._open()

    def _open(self) -> None:
        self.stack = AsyncExitStack()
        opening = SqliteStore.open(self.path, vault=Vault(bytes(KEY_BYTES)), clock=self.clock)
        self.store: SqliteStore = self.run(self.stack.enter_async_context(opening))

    def run(self, coroutine: Any) -> Any:
        return self.runner.run(coroutine)

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.run(self.stack.aclose())
            self.runner.close()
            self.folder.cleanup()

    @property
    def worker(self) -> str:
        return f"boot{self.boot}"

    def in_state(self, state: State) -> list[Expected]:
        return [job for job in self.model.values() if job.state is state]

    @rule(target=jobs, kind=KINDS, tenant=TENANTS, priority=st.integers(-1, 1), delay_ms=DELAYS_MS)
    def enqueue(self, kind: str, tenant: str, priority: int, delay_ms: int | None) -> str:
        not_before_ms = None if delay_ms is None else self.clock.now_ms + delay_ms
        job = NewJob(kind=kind, spec={}, tenant=tenant, priority=priority, not_before_ms=not_before_ms)
        try:
            self.run(self.store.enqueue(job, queue_max=QUEUE_MAX))
        except Temporary:
            assert len(self.in_state(State.QUEUED)) >= QUEUE_MAX
            return job.uuid
        assert len(self.in_state(State.QUEUED)) < QUEUE_MAX
        self.order += 1
        self.model[job.uuid] = Expected(
            job.uuid, kind, tenant, priority, self.order, not_before_ms, delayed=(delay_ms or 0) > 0
        )
        return job.uuid

    @rule(target=claims, build=st.integers(0, 3), run=st.integers(0, 3), per_tenant=st.integers(1, 3))
    def claim(self, build: int, run: int, per_tenant: int) -> list[Claim]:
        for job in self.in_state(State.QUEUED):
            if job.delayed and (job.not_before_ms or 0) <= self.clock.now_ms:
                job.delayed = job.waits = False
        capacity = Capacity({"build": build, "run": run}, per_tenant, crashes_max=CRASHES_MAX)
        claims: list[Claim] = self.run(self.store.claim(self.worker, capacity))
        if any(job.is_suspect for job in self.in_state(State.RUNNING)) or self._ready_suspects():
            self._check_suspect(claims)
            return claims
        for claim in claims:
            self._check_turn(claim, dict(capacity.free), per_tenant)
            job = self.model[claim.job.uuid]
            capacity = Capacity(capacity.free | {job.kind: capacity.free[job.kind] - 1}, per_tenant)  # type: ignore[operator]
            self._start(job, claim)
        assert not self._claimable(dict(capacity.free), per_tenant), "there was room for more"
        return claims

    def _start(self, job: Expected, claim: Claim) -> None:
        job.state, job.token, job.attempt = State.RUNNING, claim.token, job.attempt + 1
        job.waits = job.drained = False

    def _ready_suspects(self) -> list[Expected]:
        return [job for job in self.in_state(State.QUEUED) if job.is_suspect and self._may_start(job)]

    def _check_suspect(self, claims: list[Claim]) -> None:
        """One suspect at most starts, the oldest, and only while nothing else runs."""
        if self.in_state(State.RUNNING):
            assert claims == []
            return
        (claim,) = claims
        first = min(self._ready_suspects(), key=lambda job: job.order)
        assert claim.job.uuid == first.uuid
        self._start(first, claim)

    def _may_start(self, job: Expected) -> bool:
        return not job.delayed and job.kind not in self.paused

    def _running(self, tenant: str) -> int:
        return sum(job.tenant == tenant for job in self.in_state(State.RUNNING))

    def _claimable(self, free: dict[str, int], per_tenant: int) -> list[Expected]:
        return [
            job
            for job in self.in_state(State.QUEUED)
            if self._may_start(job) and free[job.kind] > 0 and self._running(job.tenant) < per_tenant
        ]

    def _check_turn(self, claim: Claim, free: dict[str, int], per_tenant: int) -> None:
        """The claimed job was due, its tenant had the fewest running, and it was the first of its tenant."""
        claimable = self._claimable(free, per_tenant)
        job = self.model[claim.job.uuid]
        assert job in claimable
        assert self._running(job.tenant) == min(self._running(other.tenant) for other in claimable)
        of_tenant = [other for other in claimable if other.tenant == job.tenant]
        assert job is min(of_tenant, key=lambda other: (-other.priority, other.order))

    def _if_held(self, claim: Claim, coroutine: Any) -> Expected | None:
        """Run a verb on a claim; the job if the claim held, None if it was rightly refused."""
        job = self.model.get(claim.job.uuid)
        held = job is not None and job.token == claim.token
        if held:
            self.run(coroutine)
            return job
        with pytest.raises(ClaimLost):
            self.run(coroutine)
        return None

    @rule(claims=consumes(claims), state=ENDINGS)
    def finish(self, claims: list[Claim], state: State) -> None:
        for claim in claims:
            if job := self._if_held(claim, self.store.finish(claim, Ending(state))):
                job.move_to(state, self.clock.now_ms)

    @rule(claims=claims, delay_ms=st.sampled_from([-5, 0, 5, HOUR_MS]))
    def retry(self, claims: list[Claim], delay_ms: int) -> None:
        not_before_ms = self.clock.now_ms + delay_ms
        for claim in claims:
            if job := self._if_held(claim, self.store.retry(claim, BROKEN, not_before_ms=not_before_ms)):
                job.fail()
                job.back_to_queue(self.clock.now_ms)
                job.not_before_ms, job.delayed = not_before_ms, delay_ms > 0

    @rule(claims=claims)
    def wait_for_peer(self, claims: list[Claim]) -> None:
        not_before_ms = self.clock.now_ms + HOUR_MS
        for claim in claims:
            verb = self.store.retry(claim, BROKEN, not_before_ms=not_before_ms, waits_for=PEER)
            if job := self._if_held(claim, verb):
                job.fail()
                job.back_to_queue(self.clock.now_ms)
                job.not_before_ms, job.delayed, job.waits = not_before_ms, True, True

    @rule(claims=claims)
    def cut_by_the_engine(self, claims: list[Claim]) -> None:
        for claim in claims:
            if job := self._if_held(claim, self.store.retry(claim, BROKEN, not_before_ms=0, is_attempt=False)):
                job.attempt -= not job.cancel_requested
                job.fail()
                job.back_to_queue(self.clock.now_ms)
                job.not_before_ms = 0

    @rule(kind=KINDS)
    def pause(self, kind: str) -> None:
        self.run(self.store.pause([kind], reason="why", by="who"))
        self.paused.add(kind)

    @rule(kind=KINDS)
    def resume(self, kind: str) -> None:
        self.run(self.store.resume([kind]))
        self.paused.discard(kind)

    @invariant()
    def pauses_are_kept(self) -> None:
        if hasattr(self, "store"):
            assert set(self.run(self.store.pauses())) == self.paused

    @rule()
    def peer_answers(self) -> None:
        waiting = [job for job in self.in_state(State.QUEUED) if job.waits]
        assert self.run(self.store.answered(PEER)) == len(waiting)
        for job in waiting:
            job.waits = job.delayed = False

    @rule()
    def try_the_peer(self) -> None:
        self.run(self.store.try_one(PEER, ["build", "run"]))
        waiting = [job for job in self.in_state(State.QUEUED) if job.waits]
        ready = {uuid for (uuid,) in self._query("select uuid from job where waits_for is not null and delayed = 0")}
        tried = [job for job in waiting if job.uuid in ready]
        assert len(tried) == min(1, len(waiting))
        for job in tried:
            job.delayed = False

    @rule()
    def drain(self) -> None:
        self.run(self.store.drain(self.worker))
        for job in self.in_state(State.RUNNING):
            job.drained = True

    @rule(claims=claims)
    def interrupt(self, claims: list[Claim]) -> None:
        for claim in claims:
            if job := self._if_held(claim, self.store.interrupt(claim)):
                job.attempt -= not job.cancel_requested
                job.back_to_queue(self.clock.now_ms)

    @rule(claims=claims, phase=PHASES)
    def ctx(self, claims: list[Claim], phase: str) -> None:
        for claim in claims:
            if job := self._if_held(claim, self.store.enter_phase(claim, phase)):
                job.enter(phase)
            self._if_held(claim, self.store.log(claim, "line\n"))
            self._if_held(claim, self.store.checkpoint(claim, {"a": 1}, blobs=["sha256:1"]))

    @rule(claims=claims, numbers=st.sets(st.integers(0, 3)), state=st.sampled_from(["copied", "skipped"]))
    def push(self, claims: list[Claim], numbers: set[int], state: str) -> None:
        pushes = [
            Push(image=0, target=target, registry="r", repository="a", tags={"1": state}) for target in sorted(numbers)
        ]
        for claim in claims:
            if job := self._if_held(claim, self.store.record_pushes(claim, pushes)):
                job.pushes = job.pushes | dict.fromkeys(numbers, state)

    @rule(uuid=jobs)
    def cancel(self, uuid: str) -> None:
        answer = self.run(self.store.request_cancel(uuid, tenant=None))
        job = self.model.get(uuid)
        if job is not None and job.state is State.QUEUED:
            job.move_to(State.CANCELLED, self.clock.now_ms)
        elif job is not None and job.state is State.RUNNING:
            job.cancel_requested = True
        assert answer == (job and job.state)

    @rule(clean=st.booleans())
    def crash_and_restart(self, clean: bool) -> None:
        if clean:
            self.run(self.stack.aclose())
            self._open()
        self.boot += 1
        self.run(self.store.rescue(self.worker, crashes_max=CRASHES_MAX))
        running = self.in_state(State.RUNNING)
        crashed = [job for job in running if not job.drained]
        for job in running:
            if not job.drained:
                job.crash(alone=len(crashed) == 1)
            if not job.cancel_requested and not job.drained and job.crashes_alone >= CRASHES_MAX:
                job.move_to(State.FAILED, self.clock.now_ms)
                continue
            job.attempt -= not job.cancel_requested
            job.back_to_queue(self.clock.now_ms)

    @rule(age_ms=st.sampled_from([0, 10, HOUR_MS]))
    def prune(self, age_ms: int) -> None:
        limit_ms = self.clock.now_ms - age_ms
        limits = {"jobs_before_ms": limit_ms, "logs_before_ms": limit_ms, "blobs_before_ms": limit_ms}
        while self.run(self.store.prune(**limits, batch_max=3)).rows == 3:
            pass
        self.model = {
            uuid: job for uuid, job in self.model.items() if job.finished_ms is None or job.finished_ms >= limit_ms
        }

    @rule(ms=st.sampled_from([1, 10, HOUR_MS, -HOUR_MS]))
    def jump(self, ms: int) -> None:
        self.clock.advance(ms)

    @invariant()
    def rows_are_as_expected(self) -> None:
        if not hasattr(self, "path"):
            return
        db = sqlite3.connect(self.path)
        columns = (
            "uuid, state, attempt, crashes, crashes_in_phase, crashes_alone, faults, delayed, finished_ms, claim_token"
        )
        rows = db.execute(f"select {columns} from job").fetchall()
        assert {row[0]: row[1:] for row in rows} == {
            uuid: (
                job.state,
                job.attempt,
                job.crashes,
                job.crashes_in_phase,
                job.crashes_alone,
                job.faults,
                job.delayed and job.state is State.QUEUED,
                job.finished_ms,
                job.token,
            )
            for uuid, job in self.model.items()
        }
        pushes = db.execute("select uuid, target, outcome from push left join job on job.id = job_id").fetchall()
        assert {(uuid, target): outcome for uuid, target, outcome in pushes} == {
            (uuid, target): outcome for uuid, job in self.model.items() for target, outcome in job.pushes.items()
        }
        self._lanes_count_right(db)
        db.close()

    def _query(self, sql: str) -> list[Any]:
        db = sqlite3.connect(self.path)
        try:
            return db.execute(sql).fetchall()
        finally:
            db.close()

    def _lanes_count_right(self, db: sqlite3.Connection) -> None:
        counted = db.execute(
            "select tenant, kind, sum(state = 'queued' and delayed = 0), sum(delayed), sum(state = 'running') "
            "from job group by tenant, kind order by tenant, kind"
        ).fetchall()
        kept = db.execute("select tenant, kind, ready, delayed, running from lane order by tenant, kind").fetchall()
        missing = [lane for lane in kept if lane not in counted]
        assert [lane for lane in counted if lane not in kept] == []
        assert all(lane[2:] == (0, 0, 0) for lane in missing)


StoreMachine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestStoreModel = StoreMachine.TestCase
