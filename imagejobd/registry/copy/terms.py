"""What all blobs in flight have in common."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgspec

from imagejobd.registry.copy.spool import SpoolRoom


class Terms(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """Made once. `open_source(repository, blob)` reads; `spawn` starts a task that outlives its caller; see `Flights`
    for the bounds."""

    open_source: Callable[..., AsyncGenerator[bytes, None]]
    spool_file: Callable[[], AbstractContextManager[Path]]
    spool_room: SpoolRoom
    window_bytes: int
    spill_grace_s: float
    slot_grace_s: float
    clock: Callable[[], float]
    spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
