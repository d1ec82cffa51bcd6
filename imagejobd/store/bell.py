"""Who waits for which commits. Lives on the event loop; the writer rings it after each commit.

A ring says that something happened and never what: the watcher reads the store again.
"""

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class TopicWatch:
    """One watcher's memory of whether its topic rang. Made by `Bell.watch`."""

    def __init__(self) -> None:
        self._rang = asyncio.Event()

    def ring(self) -> None:
        self._rang.set()

    async def changed(self, timeout_s: float) -> bool:
        """Wait for a ring since the watch began or last answered; False when `timeout_s` passed without one."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._rang.wait()
        except TimeoutError:
            return False
        self._rang.clear()
        return True


class Bell:
    """All watches by topic. A topic without watchers costs nothing."""

    def __init__(self) -> None:
        self._watches: dict[str, set[TopicWatch]] = {}

    @contextmanager
    def watch(self, topic: str) -> Iterator[TopicWatch]:
        watch = TopicWatch()
        self._watches.setdefault(topic, set()).add(watch)
        try:
            yield watch
        finally:
            self._watches[topic].discard(watch)
            if not self._watches[topic]:
                del self._watches[topic]

    def ring(self, topics: Iterable[str]) -> None:
        for topic in topics:
            for watch in self._watches.get(topic, ()):
                watch.ring()
