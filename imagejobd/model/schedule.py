"""How a schedule of the configuration stands."""

import msgspec

from imagejobd.model.job import State


class ScheduleStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Times are epoch milliseconds. `next_ms` is when it is due next, and is over while it waits for room in the queue;
    `last_ms` when its last run was, with that run's `job` (a UUID) and, while the history has it, its `state`;
    `skipped_ms` is when a run was due, last, that was skipped."""

    name: str
    cron: str
    timezone: str
    kind: str
    next_ms: int | None
    last_ms: int | None
    skipped_ms: int | None
    job: str | None
    state: State | None
