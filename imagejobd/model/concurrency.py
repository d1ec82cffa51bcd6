"""Several coroutines as one step that succeeds or fails, one that ends though its caller is cancelled, and a lock by
name."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Hashable, Iterable
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from weakref import WeakValueDictionary

T = TypeVar("T")


async def gather_or_cancel(steps: Iterable[Coroutine[Any, Any, object]]) -> None:
    """Run all steps; the first that fails cancels the others, and its own exception is raised, not a group."""
    try:
        async with asyncio.TaskGroup() as tasks:
            for step in steps:
                tasks.create_task(step)
    except BaseExceptionGroup as group:
        raise _first(group) from None


async def bounded(items: Collection[T], act: Callable[[T], Coroutine[Any, Any, object]], *, at_once: int) -> None:
    """`act` on every item in order, at most `at_once` at a time; fails as `gather_or_cancel` does."""
    remaining = iter(items)

    async def work() -> None:
        for item in remaining:
            await act(item)

    await gather_or_cancel(work() for _ in range(min(at_once, len(items))))


async def uninterrupted(step: Coroutine[Any, Any, None], *, grace_s: float | None) -> None:
    """Finish a clean-up though the caller is cancelled again; after `grace_s` it is given up."""

    async def within_grace() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await step

    await asyncio.shield(within_grace())


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


class KeyedLock:
    """One holder at a time per name: of two who want to do the same thing, the second finds it done. Names that nobody
    holds or waits for are forgotten."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[Hashable, asyncio.Lock] = WeakValueDictionary()

    def is_taken(self, name: Hashable) -> bool:
        """Whether `take` would wait now."""
        lock = self._locks.get(name)
        return lock is not None and lock.locked()

    @asynccontextmanager
    async def take(self, name: Hashable, *, grace_s: float | None = None) -> AsyncIterator[None]:
        """Hold the name's lock while the block lasts; who has waited `grace_s` goes ahead without it."""
        lock = self._locks.setdefault(name, asyncio.Lock())
        is_held = False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                is_held = await lock.acquire()
        try:
            yield
        finally:
            if is_held:
                lock.release()
