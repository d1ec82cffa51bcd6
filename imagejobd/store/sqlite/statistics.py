"""What monitoring asks of the store: how the queue stands, and what has happened since it last asked.

What happened is read out of the history, where every change of every job is, whoever made it. Repeats of a failing
attempt, which the history keeps only the newest of, are seen by who asks more often than they come.
"""

from collections.abc import Mapping, Sequence

import msgspec

from imagejobd.model.clock import now_ms
from imagejobd.store.sqlite.database import load
from imagejobd.store.sqlite.readers import Readers
from imagejobd.store.statistics import Activity, KindStats

# Events that one statement reads: some tens of milliseconds of a reader.
EVENTS_AT_ONCE = 10_000

_SQL = load("statistics")


class Statistics:
    """The verbs of `SqliteStore` that count."""

    _readers: Readers

    async def kind_stats(self, *, crashes_max: int) -> Mapping[str, KindStats]:
        values = {"now_ms": now_ms(), "crashes_max": crashes_max}
        lanes = {row["kind"]: row for row in await self._readers.all(_SQL["lanes_by_kind"])}
        due_ms = {row["kind"]: row["due_ms"] for row in await self._readers.all(_SQL["oldest_due"], values)}
        suspects = {row["kind"]: row["suspects"] for row in await self._readers.all(_SQL["suspects_by_kind"], values)}
        paused = {row["kind"] for row in await self._readers.all(_SQL["paused_kinds"])}
        return {
            kind: KindStats(
                **{state: lanes[kind][state] if kind in lanes else 0 for state in ("ready", "delayed", "running")},
                suspects=suspects.get(kind, 0),
                oldest_due_ms=due_ms.get(kind),
                is_paused=kind in paused,
            )
            for kind in {*lanes, *paused}
        }

    async def last_event(self) -> int:
        row = await self._readers.first(_SQL["last_event"])
        return row["id"] if row else 0

    async def activity(self, after: int) -> tuple[Sequence[Activity], int]:
        upto = min(await self.last_event(), after + EVENTS_AT_ONCE)
        if upto <= after:
            return [], after
        rows = await self._readers.all(_SQL["activity"], {"after": after, "upto": upto})
        return [msgspec.convert(dict(row), Activity, strict=False) for row in rows], upto
