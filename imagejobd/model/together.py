"""Doing several things at once, as one step that succeeds or fails; and one thing to its end."""

import asyncio
import contextlib
from collections.abc import Callable, Collection, Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


async def together(steps: Iterable[Coroutine[Any, Any, object]]) -> None:
    """Run all steps; the first that fails cancels the others, and its own exception is raised, not a group."""
    try:
        async with asyncio.TaskGroup() as tasks:
            for step in steps:
                tasks.create_task(step)
    except BaseExceptionGroup as group:
        raise _first(group) from None


async def for_each(items: Collection[T], act: Callable[[T], Coroutine[Any, Any, object]], *, at_once: int) -> None:
    """`act` on every item in order, at most `at_once` at a time; fails as `together` does."""
    left = iter(items)

    async def work() -> None:
        for item in left:
            await act(item)

    await together(work() for _ in range(min(at_once, len(items))))


async def to_its_end(step: Coroutine[Any, Any, None], *, patience_s: float | None) -> None:
    """Do what is due on the way out, though the caller is cancelled again; after `patience_s` it is given up."""

    async def within_patience() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await step

    await asyncio.shield(within_patience())


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error
