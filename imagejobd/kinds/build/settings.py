"""Bounds on what a build may take in, and how long its phases may last."""

import msgspec

from imagejobd.archive import ContextBounds
from imagejobd.model.bounds import GIB, Bytes, Count, Seconds


class BuildSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[kinds.build]`. Fetching and pushing may take `fetch_timeout_s` and `push_timeout_s` without progress, the other
    phases as long in all, without the time in which the engine is away."""

    upload_max_bytes: Bytes = 2 * GIB
    context_max_bytes: Bytes = 4 * GIB
    context_max_entries: Count = 200_000
    fetch_timeout_s: Seconds = 1800.0
    fetch_idle_s: Seconds = 30.0
    fetch_redirects_max: Count = 5
    build_timeout_s: Seconds = 2 * 3600.0
    push_timeout_s: Seconds = 3600.0
    purge_timeout_s: Seconds = 300.0

    @property
    def bounds(self) -> ContextBounds:
        return ContextBounds(max_bytes=self.context_max_bytes, max_entries=self.context_max_entries)
