"""Bounds on what copies may take at once, and how long they may last."""

import msgspec

from imagejobd.model.bounds import GIB, MIB, Bytes, Count, Seconds


class DistributeSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[kinds.distribute]`. `streams_max` large blobs are read at once from one source host, thrice as many in all;
    `window_bytes` of each are in memory. Listing and copying may take `listing_timeout_s` and `copy_timeout_s` without
    progress.
    """

    streams_max: Count = 4
    window_bytes: Bytes = 4 * MIB
    spool_max_bytes: Bytes = 20 * GIB
    copies_max: Count = 2_000
    listing_timeout_s: Seconds = 600.0
    copy_timeout_s: Seconds = 3600.0
