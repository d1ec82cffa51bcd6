"""What the store remembers of the engine, through restarts."""

from pathlib import Path

from simulated_clock import SimulatedClock

from imagejobd.store.sqlite.store import SqliteStore
from imagejobd.store.vault import Vault


async def test_the_installation_is_the_databases(tmp_path: Path, vault: Vault) -> None:
    """The same after each start, and another one in another database."""
    ids = []
    for name in ("one.db", "one.db", "two.db"):
        async with SqliteStore.open(tmp_path / name, vault=vault) as store:
            ids.append(await store.engine.installation())
    assert ids[0] == ids[1] != ids[2]


async def test_bases_by_their_last_use(store: SqliteStore, clock: SimulatedClock) -> None:
    """The last used comes first; of names that were not pulled no use is noted."""
    records = store.engine
    for name in ("a:1", "b:1"):
        await records.pulled(name, f"id of {name}")
        clock.advance(1000)
    await records.used("a:1")
    await records.used("somebody-elses:1")
    assert [(base.name, base.image_id) for base in await records.bases()] == [
        ("a:1", "id of a:1"),
        ("b:1", "id of b:1"),
    ]


async def test_a_base_that_was_pulled_anew_is_not_forgotten(store: SqliteStore) -> None:
    """Only what was looked at is forgotten, not what its name has become meanwhile."""
    records = store.engine
    await records.pulled("a:1", "old")
    [old] = await records.bases()
    await records.pulled("a:1", "new")
    await records.forget(old)
    [new] = await records.bases()
    assert new.image_id == "new"
    await records.forget(new)
    assert await records.bases() == []


async def test_only_jobs_of_this_store_are_known(store: SqliteStore) -> None:
    """Others' UUIDs are not."""
    assert await store.engine.known({"0190a0b0-0000-7000-8000-000000000001"}) == set()
