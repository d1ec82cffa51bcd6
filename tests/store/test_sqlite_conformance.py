"""The SQLite store keeps every promise of the store protocol."""

from conformance import StoreConformance
from conformance_queue import QueueConformance

from imagejobd.store.protocol import Store
from imagejobd.store.sqlite.store import SqliteStore


class TestSqliteConformance(StoreConformance, QueueConformance):
    async def test_it_is_a_store(self, store: SqliteStore) -> None:
        """The type checker holds SqliteStore against the protocol here."""
        as_protocol: Store = store
        await as_protocol.probe()
