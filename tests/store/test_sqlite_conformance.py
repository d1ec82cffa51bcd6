"""The SQLite store keeps every promise of the store protocol."""

import pytest
from conformance import StoreConformance, claim_one, enqueue
from conformance_queue import QueueConformance
from conformance_schedules import ScheduleConformance

from imagejobd.model.job import State
from imagejobd.model.reference import ImageReference
from imagejobd.store.filters import Failures, Filter
from imagejobd.store.protocol import Ending, Store
from imagejobd.store.sqlite import enqueue as enqueue_module
from imagejobd.store.sqlite import listing
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

    @pytest.mark.parametrize("tenants_merged_max", [1, 2, 100])
    @pytest.mark.parametrize("new_terms_max", [0, 4, 256])
    async def test_jobs_are_found_by_image_wherever_that_is_noted(
        self, store: SqliteStore, monkeypatch: pytest.MonkeyPatch, new_terms_max: int, tenants_merged_max: int
    ) -> None:
        """From new to old, page by page, each once: those that came just now and those from before, of one tenant or
        of all, also of more tenants than are merged."""
        monkeypatch.setattr(enqueue_module, "NEW_TERMS_MAX", new_terms_max)
        monkeypatch.setattr(listing, "TENANTS_MERGED_MAX", tenants_merged_max)
        images = [ImageReference.parse(f"r.example/a/b:{tag}") for tag in (1, 2)]
        made = [
            (await enqueue(store, tenant=tenant, images=[images[number % 2]], submitter={"sub": tenant})).uuid
            for number, tenant in enumerate("abcabcabcab")
        ]
        for fields, expected in (
            ({"image": "r.example/a/b"}, made),
            ({"image": "r.example/a/b:2"}, made[1::2]),
            ({"image": "r.example/a/b", "tenant": "b"}, made[1::3]),
            ({"image": "r.example/a/b:1", "submitter": "b"}, made[4::6]),
            ({"submitter": "c", "kinds": frozenset({"build"})}, made[2::3]),
            ({"image": "r.example/a/b", "kinds": frozenset({"run"})}, []),
        ):
            which, found, cursor = Filter(**fields), list[str](), None
            while True:
                page = await store.list_jobs(which, cursor=cursor, limit=2)
                found += [job.uuid for job in page.jobs]
                if (cursor := page.next_cursor) is None:
                    break
            assert found == expected[::-1], which
