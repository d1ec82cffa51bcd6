"""Bounds on a payload and on what is made of it."""

import msgspec

from imagejobd.archive import ContextBounds
from imagejobd.model.bounds import GIB, Bytes, Count, Seconds


class DispatchSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[kinds.dispatch]`. `repository` is `registry/prefix`; images that were built are pushed as
    `<repository>/<tenant>:<uuid of the job>`.

    `payload_max_bytes` counts decoded bytes, `image_max_bytes` those of an image that is exported or of
    an archive when it is unpacked. Exporting and pushing may take `export_timeout_s` and `push_timeout_s` without
    progress, the other phases as long in all, without the time in which the engine is away.
    """

    repository: str | None = None
    payload_max_bytes: Bytes = 2 * GIB
    context_max_bytes: Bytes = 4 * GIB
    context_max_entries: Count = 200_000
    image_max_bytes: Bytes = 16 * GIB
    check_timeout_s: Seconds = 1800.0
    build_timeout_s: Seconds = 2 * 3600.0
    export_timeout_s: Seconds = 1800.0
    push_timeout_s: Seconds = 3600.0
    purge_timeout_s: Seconds = 300.0

    @property
    def bounds(self) -> ContextBounds:
        return ContextBounds(max_bytes=self.context_max_bytes, max_entries=self.context_max_entries)
