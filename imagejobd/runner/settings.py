"""How much the runner does at once, how often it tries, and how long it keeps things."""

from typing import Annotated

import msgspec
from msgspec import Meta

from imagejobd.model.bounds import MIB, Bytes, Count, Days, Seconds
from imagejobd.store.protocol import CRASHES_MAX

# How many jobs of a kind run at once that has no key in `[limits]`.
SLOTS_DEFAULT = 2
# The bounds in `[limits.per_tenant]` that are not on the running jobs of one kind.
_OF_ALL_KINDS = frozenset({"queue_max", "stored_max_bytes"})


class PerTenant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[limits.per_tenant]`: bounds on what one tenant may have: waiting jobs, running jobs of each kind, and bytes of
    payloads and contexts that are kept for it. None is no bound beside those of all tenants."""

    queue_max: Count | None = None
    build: Count | None = None
    run: Count | None = None
    dispatch: Count | None = None
    distribute: Count | None = None
    stored_max_bytes: Bytes | None = None

    @property
    def running(self) -> dict[str, int]:
        """The bounds on running jobs that are set, by kind."""
        bounds = msgspec.structs.asdict(self)
        return {name: most for name, most in bounds.items() if name not in _OF_ALL_KINDS and most is not None}


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[limits]`: bounds on the queue and on what runs.

    `retry_for_s`: how long after the first of several temporary faults a job is tried again; 0 is not at all.
    `crashes_max`: after so many crashes of the daemon a job runs alone, and after so many while it was alone it is
        quarantined.
    """

    queue_max: Count = 10_000
    per_tenant_running: Count = 8
    build: Count = 2
    run: Count = 2
    dispatch: Count = 2
    distribute: Count = 4
    per_tenant: PerTenant = PerTenant()
    retry_first_s: Seconds = 5.0
    retry_max_s: Seconds = 300.0
    retry_for_s: Annotated[float, Meta(ge=0)] = 24 * 3600.0
    crashes_max: Count = CRASHES_MAX
    job_timeout_s: Seconds = 24 * 3600.0
    queue_timeout_s: Seconds = 24 * 3600.0
    log_max_bytes: Bytes = 64 * MIB

    def slots(self, kind: str) -> int:
        """How many jobs of a kind run at once."""
        slots: int = getattr(self, kind, SLOTS_DEFAULT)
        return slots


class Retention(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[retention]`: how many days finished jobs, their payloads and their logs are kept."""

    history_days: Days = 365.0
    payload_days: Days = 7.0
    log_days: Days = 30.0
