"""The SQLite store keeps every promise of the store protocol."""

from conformance import StoreConformance, claim_one, enqueue
from conformance_queue import QueueConformance
from conformance_schedules import ScheduleConformance

from imagejobd.model.job import State
from imagejobd.model.reference import ImageReference
from imagejobd.store.filters import Failures, Filter
from imagejobd.store.protocol import Ending, Store
from imagejobd.store.sqlite.store import SqliteStore


class TestSqliteConformance(StoreConformance, QueueConformance, ScheduleConformance):
    async def test_it_is_a_store(self, store: SqliteStore) -> None:
        """The type checker holds SqliteStore against the protocol here."""
        as_protocol: Store = store
        await as_protocol.probe()

    async def test_others_jobs_lengthen_no_page(self, store: SqliteStore) -> None:
        """What other tenants have of an image, a person, a label, or have that failed, shows in no page and no cursor:
        the listing ends at once, whatever else is asked for."""
        image = ImageReference.parse("r.example/a/b:1")
        for tenant in "abbbbb":
            await enqueue(store, tenant=tenant, images=[image], submitter={"sub": "1"}, labels={"n": "1"})
            await store.finish(await claim_one(store), Ending(State.FAILED))
        for field in ({"image": "r.example/a/b"}, {"submitter": "1"}, {"label": ("n", "1")}, {}):
            for state, count in ((State.FAILED, 1), (State.CANCELLED, 0)):
                which = Filter(tenant="a", states=frozenset({state}), **field)
                page = await store.list_jobs(which, cursor=None, limit=9)
                assert (len(page.jobs), page.next_cursor) == (count, None), which
        failures = await store.retryable(Failures(tenant="a"), after=None, limit=9)
        assert (len(failures.uuids), failures.next) == (1, None)
