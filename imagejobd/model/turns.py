"""Taking turns by name: of two who want the same thing at once, one does it and the other then finds it done."""

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary


class Turns:
    """One holder at a time per name; names nobody holds or waits for are forgotten."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[Hashable, asyncio.Lock] = WeakValueDictionary()

    def is_taken(self, name: Hashable) -> bool:
        """Whether `take` would wait now."""
        lock = self._locks.get(name)
        return lock is not None and lock.locked()

    @asynccontextmanager
    async def take(self, name: Hashable, *, patience_s: float | None = None) -> AsyncIterator[None]:
        """Hold the turn while the block lasts; who has waited `patience_s` goes ahead without it."""
        lock = self._locks.setdefault(name, asyncio.Lock())
        is_held = await _acquired(lock, patience_s)
        try:
            yield
        finally:
            if is_held:
                lock.release()


async def _acquired(lock: asyncio.Lock, patience_s: float | None) -> bool:
    try:
        async with asyncio.timeout(patience_s):
            return await lock.acquire()
    except TimeoutError:
        return False
