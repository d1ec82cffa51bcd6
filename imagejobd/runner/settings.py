"""How much the runner does at once, how often it tries, and how long it keeps things."""

import msgspec

from imagejobd.model.bounds import MIB, Bytes, Count, Days, Seconds


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[limits]`: bounds on the queue and on what runs."""

    queue_max: Count = 10_000
    per_tenant_running: Count = 8
    build: Count = 2
    run: Count = 2
    dispatch: Count = 2
    distribute: Count = 4
    max_attempts: Count = 5
    retry_first_s: Seconds = 5.0
    retry_max_s: Seconds = 300.0
    job_timeout_s: Seconds = 4 * 3600.0
    queue_timeout_s: Seconds = 24 * 3600.0
    log_max_bytes: Bytes = 64 * MIB


class Retention(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[retention]`: how many days finished jobs, their payloads and their logs are kept."""

    history_days: Days = 365.0
    payload_days: Days = 7.0
    log_days: Days = 30.0
