"""What the schedules of the configuration ask of the store: how far each has come, and the job of its next run."""

from collections.abc import Mapping
from typing import Protocol

import msgspec

from imagejobd.model.job import Enqueued, NewJob


class ScheduleRecord(msgspec.Struct, frozen=True):
    """How far a schedule has come, in epoch milliseconds. `settled_ms` is when it was due last, be it run or skipped,
    or when it began; `last_ms` when its last run was due, and `job` the UUID of that; `skipped_ms` when the last one
    was due that was skipped."""

    settled_ms: int
    last_ms: int | None = None
    skipped_ms: int | None = None
    job: str | None = None


class ScheduleRecords(Protocol):
    """How far each schedule has come, durably. Raises what the store does."""

    async def begin(self, rules: Mapping[str, str]) -> None:
        """These are the schedules now, by name. One that is new, or whose rule is another than before, begins now; all
        others are forgotten."""
        ...

    async def all(self) -> dict[str, ScheduleRecord]:
        """By name."""
        ...

    async def run(
        self,
        name: str,
        due_ms: int,
        job: NewJob,
        *,
        queue_max: int,
        tenant_queue_max: int | None = None,
    ) -> Enqueued | None:
        """Settle what is due, in one transaction: enqueue `job`, which has neither secrets nor payloads, with the
        bounds and refusals of `Store.enqueue`; or skip it, and return None, while the job of the last run, or one that
        tries that again, has not ended."""
        ...

    async def settle(self, name: str, at_ms: int) -> None:
        """Nothing is due up to then, which may be earlier than before."""
        ...
