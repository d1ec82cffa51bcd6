"""Schedules: jobs of the configuration that come by themselves, one run of each at a time.

A run and the note that it has been are one transaction, so that no crash loses or doubles it. What came due while the
daemon was away is done once, however often it was missed. The jobs are the operator's, tenant `local`, with no more
rights than others of that tenant: their submitter has a name and no subject, which could be an admin's.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Annotated, Any

import msgspec
import structlog
from msgspec import Meta

from imagejobd.model.clock import now_ms as wall_clock_ms
from imagejobd.model.clock import utc
from imagejobd.model.cron import Cron
from imagejobd.model.errors import Permanent, Temporary, invalid
from imagejobd.model.job import (
    IMAGES_MAX,
    PRIORITY_MAX,
    PRIORITY_MIN,
    Json,
    NewJob,
    check_labels,
    log_fields,
    log_image,
    uuid7,
)
from imagejobd.model.kind import Accepted, JobKind
from imagejobd.model.schedule import ScheduleStatus
from imagejobd.runner.settings import Limits
from imagejobd.store.protocol import Store
from imagejobd.store.schedules import ScheduleRecord

POLL_S = 1.0
STORE_RETRY_S = 10.0
# The label by which a schedule's jobs are found.
LABEL = "schedule"

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")

log = structlog.get_logger("imagejobd.schedules")


class ScheduleSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[schedule]]`: a job of `kind` with `spec`, each time that `cron` says by the clocks of `timezone`."""

    name: str
    cron: str
    timezone: str = "UTC"
    kind: str
    spec: dict[str, Any]
    labels: dict[str, str] = {}
    priority: Annotated[int, Meta(ge=PRIORITY_MIN, le=PRIORITY_MAX)] = 0


class Schedule(msgspec.Struct, frozen=True):
    """One of the configuration, checked; `job` is what each run is a copy of."""

    settings: ScheduleSettings
    cron: Cron
    job: NewJob

    @property
    def name(self) -> str:
        return self.settings.name

    def due_ms(self, settled_ms: int, now_ms: int) -> int | None:
        """The last time that it came due after `settled_ms` and until now; None where it did not."""
        first_ms = self.cron.next_after(settled_ms)
        if first_ms is None or first_ms > now_ms:
            return None
        return max(first_ms, self.cron.last_until(now_ms) or 0)

    def is_ahead(self, settled_ms: int, now_ms: int) -> bool:
        """Whether it has come further than the clock by more than the next time, which then comes again: the clock was
        set back, and what it says now counts."""
        next_ms = self.cron.next_after(now_ms)
        return next_ms is not None and next_ms < settled_ms


def read_schedules(tables: Sequence[ScheduleSettings], kinds: Mapping[str, JobKind]) -> list[Schedule]:
    """Raises `Permanent(invalid)` that names the key which cannot be used."""
    schedules: dict[str, Schedule] = {}
    for index, settings in enumerate(tables):
        if not _NAME.fullmatch(settings.name):
            why = "a schedule's name is of a-z, 0-9, _ and -, at most 64, and begins with a letter or digit"
            raise invalid(f"schedule[{index}].name: {why}")
        if settings.name in schedules:
            raise invalid(f"schedule[{settings.name}].name: another schedule has this name already; choose another one")
        schedules[settings.name] = _read(settings, kinds)
    return list(schedules.values())


class Schedules:
    """Run it beside the rest of the daemon. The jobs are made within the bounds of `limits`: while the queue is full,
    what is due waits."""

    def __init__(
        self, schedules: Sequence[Schedule], store: Store, limits: Limits, now_ms: Callable[[], int] = wall_clock_ms
    ) -> None:
        self._schedules = schedules
        self._store = store
        self._limits = limits
        self._now_ms = now_ms
        # By name: why a run waits, so that it is logged once.
        self._refusals: dict[str, str] = {}

    async def run(self) -> None:
        """Enqueue what comes due, until cancelled."""
        await self._begin()
        while True:
            await self._surely(self.enqueue_due)
            await asyncio.sleep(POLL_S)

    async def status(self) -> list[ScheduleStatus]:
        """How all of them stand, in the order of the configuration."""
        records = await self._store.schedules.all()
        return [await self._status(schedule, records.get(schedule.name)) for schedule in self._schedules]

    async def enqueue_due(self) -> None:
        """Enqueue, or skip, what has come due by now."""
        records = await self._store.schedules.all() if self._schedules else {}
        for schedule in self._schedules:
            try:
                await self._enqueue_due(schedule, records[schedule.name].settled_ms)
            except Temporary as fault:
                if self._refusals.get(schedule.name) != fault.code:
                    log.warning("a scheduled run waits", schedule=schedule.name, error=fault.message)
                self._refusals[schedule.name] = fault.code
            else:
                self._refusals.pop(schedule.name, None)

    async def _begin(self) -> None:
        rules = {one.name: f"{one.settings.cron} {one.settings.timezone}" for one in self._schedules}
        await self._surely(partial(self._store.schedules.begin, rules))

    async def _surely(self, act: Callable[[], Awaitable[None]]) -> None:
        """`act`, as soon as the store does not refuse it for the moment."""
        while True:
            try:
                return await act()
            except Temporary as fault:
                log.error("schedules wait for the store", error=fault.message)
                await asyncio.sleep(STORE_RETRY_S)

    async def _enqueue_due(self, schedule: Schedule, settled_ms: int) -> None:
        now_ms = self._now_ms()
        if settled_ms > now_ms and schedule.is_ahead(settled_ms, now_ms):
            await self._store.schedules.settle(schedule.name, now_ms)
            log.warning("the clock was set back: a schedule goes on from now", schedule=schedule.name)
            return
        due_ms = schedule.due_ms(settled_ms, now_ms)
        if due_ms is None:
            return
        job = msgspec.structs.replace(schedule.job, uuid=uuid7())
        enqueued = await self._store.schedules.run(
            schedule.name,
            due_ms,
            job,
            queue_max=self._limits.queue_max,
            tenant_queue_max=self._limits.per_tenant.queue_max,
        )
        due = utc(due_ms)
        if enqueued is None:
            log.warning("a scheduled run is skipped: the one before has not ended", schedule=schedule.name, due=due)
        else:
            log.info("job accepted", job=job.uuid, kind=job.kind, due=due, **log_fields(job), **log_image(job))

    async def _status(self, schedule: Schedule, record: ScheduleRecord | None) -> ScheduleStatus:
        """Before it has begun there is no record."""
        now_ms, settings = self._now_ms(), schedule.settings
        record = record or ScheduleRecord(now_ms)
        job = await self._store.get(record.job, tenant=None) if record.job else None
        is_ahead = record.settled_ms > now_ms and schedule.is_ahead(record.settled_ms, now_ms)
        return ScheduleStatus(
            name=settings.name,
            cron=settings.cron,
            timezone=settings.timezone,
            kind=settings.kind,
            next_ms=schedule.cron.next_after(now_ms if is_ahead else record.settled_ms),
            last_ms=record.last_ms,
            skipped_ms=record.skipped_ms,
            job=record.job,
            state=job.state if job else None,
        )


def _read(settings: ScheduleSettings, kinds: Mapping[str, JobKind]) -> Schedule:
    key = f"schedule[{settings.name}]"
    cron = Cron.parse(settings.cron, settings.timezone, cron_name=f"{key}.cron", timezone_name=f"{key}.timezone")
    kind = kinds.get(settings.kind)
    if kind is None:
        raise invalid(f"{key}.kind: it is one of {', '.join(kinds)}")
    if LABEL in settings.labels:
        raise invalid(f"{key}.labels: {LABEL!r} is set by the daemon, to the schedule's name; choose another label")
    labels = settings.labels | {LABEL: settings.name}
    try:
        check_labels(labels)
    except Permanent as fault:
        raise fault.with_message(f"{key}.labels: {fault.message}") from None
    accepted = _accept(kind, settings.spec, f"{key}.spec")
    job = NewJob(
        kind=kind.name,
        spec=accepted.spec,
        submitter={"name": f"schedule:{settings.name}"},
        labels=labels,
        priority=settings.priority,
    )
    images = tuple(islice(kind.images(job), IMAGES_MAX))
    return Schedule(settings, cron, msgspec.structs.replace(job, images=images))


def _accept(kind: JobKind, values: Mapping[str, Any], key: str) -> Accepted:
    """What the kind makes of a spec in TOML, which knows dates and has no null."""
    spec: Json = msgspec.json.decode(msgspec.json.encode(values))
    try:
        accepted = kind.parse(spec)
    except Permanent as fault:
        # The kinds write `spec.field …`, and of a Dockerfile its line.
        names_field = fault.message.startswith(("spec.", "spec:"))
        words = fault.message.removeprefix("spec") if names_field else f": {fault.message}"
        raise fault.with_message(f"{key}{words}") from None
    if accepted.secrets:
        raise invalid(
            f"{key}: it has a password or token, or a URL with a user or a query, which do not belong into the "
            'configuration; leave it out, and give the registry a table [registry."…"] with username and password_file'
        )
    return accepted
