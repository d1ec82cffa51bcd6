"""Writing behind: what changes often reaches the store a little later, and many changes in one write.

It decides when to write and keeps writes in order; what is written, and what has not been yet, its owner knows.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from imagejobd.model.errors import Fault


class WriteBehind:
    """Calls `write` at most once every `delay_s`, never twice at a time. `write` does nothing when nothing is new."""

    def __init__(self, write: Callable[[], Awaitable[None]], *, delay_s: float) -> None:
        self._write = write
        self._delay_s = delay_s
        self._timer: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()

    def soon(self) -> None:
        """Write when the delay has passed; asking again before then changes nothing."""
        if self._timer is None:
            self._timer = asyncio.create_task(self._later())

    async def now(self) -> None:
        """Write at once, after the write that is under way. Raises what `write` raises."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        async with self._turn:
            await self._write()

    async def _later(self) -> None:
        await asyncio.sleep(self._delay_s)
        self._timer = None
        # Nobody waits for this one. Its owner still has what was not written, and `now` meets the same fault.
        with contextlib.suppress(Fault):
            async with self._turn:
                await self._write()
