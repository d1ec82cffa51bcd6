"""What the rest of the daemon asks of its job queue: verbs, not tables.

Each verb is one transaction. Every change to a claimed job carries its claim token and raises `ClaimLost`
when that no longer holds. The suite in `tests/store/conformance.py` is this protocol's other half.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import msgspec

from imagejobd.model.job import (
    Claim,
    Enqueued,
    Event,
    Job,
    JobError,
    JobId,
    Json,
    NewJob,
    Phase,
    Push,
    State,
)
from imagejobd.model.secrets import Secret
from imagejobd.store.filters import Failures, Filter, Page, Place, Retryable
from imagejobd.store.schedules import ScheduleRecords
from imagejobd.store.statistics import Activity, KindStats, Stats
from imagejobd.store.webhooks import WebhookRecords

# The default of a setting: a job that was running through so many crashes of the daemon is a suspect.
CRASHES_MAX = 3

# Published when jobs come into the queue, or are ready earlier than they were to be.
QUEUE_TOPIC = "queue"
# Published when a kind is paused or resumed.
PAUSE_TOPIC = "pause"
# Published when the history of any job has a new line.
EVENT_TOPIC = "event"
# Published when somebody wants a job cancelled, and when one was cancelled that no worker was running.
CANCEL_TOPIC = "cancel"

# Whether a job of a kind, that was due at an epoch millisecond, has waited too long.
IsOver = Callable[[str, int], bool]


def job_topic(job_id: JobId) -> str:
    """The topic that is published on every committed change of one job, log blocks included."""
    return f"job:{job_id}"


class Capacity(msgspec.Struct, frozen=True):
    """How much may be claimed now: free slots of each kind that may start, and how many jobs a tenant may have running,
    in all and of each kind.

    Of `slots`, all there are of a kind, each tenant has its share while several wait for one. A job that was running
    through `crashes_max` crashes of the daemon is a suspect and runs alone.
    """

    free: Mapping[str, int]
    per_tenant_running: int
    per_tenant: Mapping[str, int] = {}
    slots: Mapping[str, int] = {}
    crashes_max: int = CRASHES_MAX


class Ending(msgspec.Struct, frozen=True):
    """How a job ended for good. `state` is final; `error` goes with failed (and says why for cancelled)."""

    state: State
    result: Json | None = None
    error: JobError | None = None


class Pause(msgspec.Struct, frozen=True):
    """Why and since when (epoch milliseconds) no job of a kind is started, and who wants that."""

    reason: str
    since_ms: int
    by: str

    @property
    def waiting(self) -> str:
        """What the jobs of the kind wait for."""
        return f"paused: {self.reason}" if self.reason else "paused"


class Depth(msgspec.Struct, frozen=True):
    """How many jobs of a kind wait and run, and when the oldest was created of those that could start now."""

    queued: int
    running: int
    oldest_queued_ms: int | None


class Backlog(msgspec.Struct, frozen=True):
    """What a queued job has before it: how many jobs of its kind will start earlier, when those that run were claimed,
    and how long the last ones took that succeeded."""

    ahead: int
    running_since_ms: Sequence[int]
    durations_ms: Sequence[int]


class Rescued(msgspec.Struct, frozen=True):
    """What became of a job that a dead worker left running: queued, cancelled, or failed (quarantined)."""

    uuid: str
    state: State


class Pruned(msgspec.Struct, frozen=True):
    """How many rows one `prune` removed, of each sort and in all; a full batch of `rows` means there may be more."""

    jobs: int
    logs: int
    blobs: int
    rows: int


class LogBlock(msgspec.Struct, frozen=True):
    """A piece of a job's log. `offset` counts the UTF-8 bytes of all text before it."""

    offset: int
    text: str


class Subscription(Protocol):
    """One watcher of a topic."""

    async def changed(self, timeout_s: float) -> bool:
        """Wait for a publication since the watch began or last answered; False when `timeout_s` passed without one."""
        ...


class Store(Protocol):
    """The durable queue. Raises `Temporary(storage_full)` when the disk is full, and recovers when it no longer is."""

    async def enqueue(
        self,
        job: NewJob,
        *,
        queue_max: int,
        tenant_queue_max: int | None = None,
        tenant_stored_max_bytes: int | None = None,
    ) -> Enqueued:
        """Store a job; when this returns it is on disk.

        Raises `Temporary(queue_full)` with `queue_max` jobs queued, or `tenant_queue_max` of its tenant,
        `Temporary(storage_full)` when the payloads of its tenant would be more than `tenant_stored_max_bytes`, and
        `Permanent(conflict)` when the tenant has used the idempotency key for another kind or spec.
        """
        ...

    async def repeat(self, job: Job, secrets: Mapping[str, Secret] | None = None) -> NewJob:
        """A new job with the spec, the secrets and the payload of an ended one; `secrets` take the place of its own.

        Raises `Permanent(invalid)` for a secret that the job never had, and `Permanent(conflict)` where one of its
        secrets, which the message names, or its payload is gone by now. To `enqueue` it raises `Permanent(conflict)`
        when the job was tried again meanwhile, or earlier: of one job there is one retry.
        """
        ...

    async def retryable(self, which: Failures, *, after: Place | None, limit: int) -> Retryable:
        """Jobs that failed or were cancelled, and were not tried again, from old to new. It may be fewer than `limit`,
        and none, although there are more: only so many rows are read at once."""
        ...

    async def claim(self, worker: str, capacity: Capacity) -> list[Claim]:
        """Start as many queued, due jobs as `capacity` allows.

        Fair: the tenant with fewest running jobs first, then the one served longest ago; within a tenant the highest
        priority, then the oldest. While several tenants wait for a kind, none gets more than its share of the slots. A
        suspect (see `Capacity`) starts when nothing else runs, and nothing else starts while it waits or runs. No job
        of a paused kind starts. A claim is an attempt.
        """
        ...

    async def pause(self, kinds: Collection[str], *, reason: str, by: str) -> None:
        """Start no job of these kinds until they are resumed, whatever restarts come between. All else goes on: what
        runs, its retries, cancelling, recovery. Of a kind that is paused already reason and name change."""
        ...

    async def resume(self, kinds: Collection[str]) -> None:
        """Start jobs of these kinds again."""
        ...

    async def pauses(self) -> dict[str, Pause]:
        """The kinds that are paused."""
        ...

    async def depths(self, tenant: str | None) -> dict[str, Depth]:
        """How long the queue is, of one tenant or of all, by kind; kinds with nothing waiting or running may lack."""
        ...

    async def cancel_requests(self, worker: str) -> list[str]:
        """UUIDs of this worker's running jobs that somebody wants cancelled."""
        ...

    async def enter_phase(self, claim: Claim, name: str) -> int:
        """Begin a phase; the one before it ends now, and the last one when the job leaves `running`.

        Returns how many faults count against the job now: none, once it has left the phase of the last one behind. The
        same goes for crashes.
        """
        ...

    async def checkpoint(self, claim: Claim, values: Mapping[str, Any], *, blobs: Collection[str] = ()) -> None:
        """Merge `values` into the job's checkpoint and reference `blobs` from it."""
        ...

    async def log(self, claim: Claim, text: str) -> None:
        """Append one block to the job's log."""
        ...

    async def progress(self, claim: Claim, values: Mapping[str, Any]) -> None:
        """Replace the job's progress."""
        ...

    async def note(self, claim: Claim, event: str, data: Json) -> None:
        """Append a line of the kind's own to the job's history."""
        ...

    async def record_pushes(self, claim: Claim, pushes: Sequence[Push]) -> None:
        """Keep how pushes of the job stand now, all of them or none, each in place of what was kept of it before."""
        ...

    async def finish(self, claim: Claim, ending: Ending) -> None:
        """End the job; its secrets are deleted in the same transaction."""
        ...

    async def retry(
        self,
        claim: Claim,
        error: JobError,
        *,
        not_before_ms: int,
        waits_for: str | None = None,
        is_attempt: bool = True,
    ) -> None:
        """Queue the job again after a temporary fault; `error` stays visible until the next ending.

        With `waits_for` it is ready when that peer has `answered`, and at `not_before_ms` at the latest. Of attempts
        that fail as the one before did, in the same phase, the job's history keeps the first and the last.
        """
        ...

    async def answered(self, peer: str | None) -> int:
        """Make all jobs ready that wait for `peer`, or for any peer where it is None; how many they were."""
        ...

    async def try_one(self, peer: str, kinds: Collection[str]) -> None:
        """Make one of the jobs of `kinds` ready that wait for `peer`, the one that was tried longest ago; none while
        one of them is."""
        ...

    async def interrupt(self, claim: Claim) -> None:
        """Queue the job again because the daemon stops. Not an attempt."""
        ...

    async def drain(self, worker: str) -> None:
        """Note that this worker was asked to stop: however it ends, the jobs that it runs have not caused it."""
        ...

    async def clamp_delays(self, set_back_ms: int) -> int:
        """Let no job wait longer for its next attempt than its pause, although the clock was set back: by `set_back_ms`
        just now, and by as much as shows in the rows before. How many jobs that concerned."""
        ...

    async def request_cancel(self, uuid: str, *, tenant: str | None) -> State | None:
        """Cancel a queued job at once, ask for a running one. Returns the state after it; None for an unknown job."""
        ...

    async def rescue(self, worker: str, *, crashes_max: int) -> list[Rescued]:
        """Take back every running job that is not `worker`'s and whose worker is gone.

        Not an attempt, but a crash, unless its worker was asked to stop. A job that was the only one through
        `crashes_max` crashes in a row has failed (`quarantined`), and keeps its secrets.
        """
        ...

    async def expire(self, *, due_before_ms: int, is_over: IsOver | None = None) -> list[str]:
        """Fail (`timeout`) the jobs that were never started though due (or created) before then, where `is_over` is
        true of them; their UUIDs."""
        ...

    async def prune(self, *, jobs_before_ms: int, logs_before_ms: int, blobs_before_ms: int, batch_max: int) -> Pruned:
        """Forget finished jobs, logs and payloads that are older than their limit, `batch_max` rows at most in all.

        A payload is a blob's reference, or `content` of the spec.
        """
        ...

    async def get(self, uuid: str, *, tenant: str | None) -> Job | None: ...

    async def get_by_id(self, job_id: JobId, *, tenant: str | None) -> Job | None: ...

    async def list_jobs(self, which: Filter, *, cursor: int | None, limit: int) -> Page:
        """A page of jobs without what may be long: the checkpoint, the result's and the source's images, and the
        spec's Dockerfile, arguments, labels and payload.

        `get` has them of one job; of a page they could be a gigabyte. A page may be short, or empty, although there are
        more jobs that fit: only so many rows are read at once, and `next_cursor` goes on from there.
        """
        ...

    async def position(self, job: Job) -> int:
        """How many jobs of its tenant and kind start before a queued job; 0 for one that is not queued."""
        ...

    async def backlog(self, job: Job) -> Backlog:
        """What is before a queued job: in its own tenant's queue, and of each other tenant that waits for the kind, for
        they take turns, as many at most and one."""
        ...

    async def phases(self, job_id: JobId) -> list[Phase]: ...

    async def pushes(self, job_id: JobId) -> list[Push]:
        """All that was recorded of a job's pushes, by image and target."""
        ...

    async def read_log(
        self, job_id: JobId, *, from_offset: int, max_blocks: int, to_offset: int | None = None
    ) -> list[LogBlock]:
        """The log's blocks that end after `from_offset` (bytes of UTF-8) and begin before `to_offset`, in order."""
        ...

    async def log_tail(self, job_id: JobId, *, lines: int, end: int) -> int:
        """The offset at which the last `lines` lines of the log's first `end` bytes begin, `end` being the end of a
        block. A last line counts also where it has no line break yet. Reads no more of the log than it has to."""
        ...

    async def is_log_pruned(self, job_id: JobId) -> bool:
        """Whether the job had a log that `prune` has deleted."""
        ...

    async def changes_since(self, event_id: int, *, job_id: JobId | None, limit: int) -> list[Event]:
        """The first `limit` events after the cursor `event_id`, of one job or of all, in order."""
        ...

    async def last_event(self) -> int:
        """The cursor of `changes_since` and `activity` behind all that has happened."""
        ...

    async def live(self) -> set[str]:
        """UUIDs of all jobs that have not ended."""
        ...

    async def referenced_blobs(self) -> set[str]: ...

    async def stats(self) -> Stats: ...

    async def kind_stats(self, *, crashes_max: int) -> Mapping[str, KindStats]:
        """How the queue stands, by kind; those that have no job in it may be missing. `crashes_max` see `Capacity`."""
        ...

    async def activity(self, after: int) -> tuple[Sequence[Activity], int]:
        """What happened after the cursor `after`, a bounded part of it, and the cursor behind that: `after` itself when
        there was nothing."""
        ...

    async def probe(self) -> None:
        """Commit a change of a row: proof that jobs can be stored.

        Raises `Temporary` where the fault passes by itself (a full disk), and `StoreFailed` where only a restart helps.
        """
        ...

    async def optimize(self) -> None:
        """Refresh the statistics that make queries quick; once a day is enough."""
        ...

    @property
    def webhooks(self) -> WebhookRecords: ...

    @property
    def schedules(self) -> ScheduleRecords: ...

    def watch(self, topic: str) -> AbstractContextManager[Subscription]:
        """Learn of the commits that publish `topic`: that there were some, not which. Read the store again then."""
        ...
