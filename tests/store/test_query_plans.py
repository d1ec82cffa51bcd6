"""The statements that must not read the history do not: held by SQLite's own query plans, also after ANALYZE."""

import sqlite3
from collections.abc import Iterator

import pytest

from imagejobd.model.job import FINAL
from imagejobd.store.sqlite.database import load, open_database
from imagejobd.store.sqlite.listing import label_walk, term_walk, unsuccessful

HISTORY_ROWS = 300
CLAIM, TRANSITIONS, MAINTENANCE, QUERIES, ENQUEUE, LISTING = (
    load(topic) for topic in ("claim", "transitions", "maintenance", "queries", "enqueue", "listing")
)


@pytest.fixture(scope="module", params=["fresh", "analyzed"])
def db(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    """A database that no test changes."""
    db = open_database(tmp_path_factory.mktemp("plans") / "plans.db")
    for number in range(HISTORY_ROWS):
        db.execute(
            "insert into job (uuid, kind, tenant, client, spec, moved_ms, priority, created_ms) "
            "values (?, 'build', 'local', '', '{}', 1, 0, 1)",
            (str(number),),
        )
    db.execute("update job set state = 'succeeded', finished_ms = 1, move = 'succeed' where id > 5")
    if request.param == "analyzed":
        db.execute("analyze")
    yield db
    db.close()


TERM_INDEX = "job_term USING PRIMARY KEY (term=? AND tenant=? AND job_id>? AND job_id<?)"
FURTHER = "".join(f" and {LISTING[name]}" for name in ("has_kind", "has_state", "is_created_from"))


def plan(db: sqlite3.Connection, sql: str) -> list[str]:
    """What the statement does with each table, subqueries included."""
    names = set(_parameters(sql))
    rows = db.execute(f"explain query plan {sql}", dict.fromkeys(names, 1) if names else (1,) * sql.count("?"))
    return [row["detail"] for row in rows]


def _parameters(sql: str) -> Iterator[str]:
    for part in sql.split(":")[1:]:
        name = part.split()[0] if part[:1].isalpha() else ""
        if name := "".join(c for c in name.split(",")[0].split(")")[0].split(";")[0] if c.isalnum() or c == "_"):
            yield name


def test_a_claim_reads_the_head_of_a_lane(db: sqlite3.Connection) -> None:
    """The next jobs of a lane come in order from the partial index, without a sort."""
    (detail,) = plan(db, CLAIM["head_of_lane"])
    assert detail == "SEARCH job USING INDEX job_ready (tenant=? AND kind=?)"


def test_a_claim_updates_by_row_id(db: sqlite3.Connection) -> None:
    """Starting jobs looks each up by its id."""
    assert any("SEARCH job USING INTEGER PRIMARY KEY (rowid=?)" in detail for detail in plan(db, CLAIM["start"]))


@pytest.mark.parametrize(
    ("statement", "index"),
    [
        (CLAIM["promote_due"], "job_delayed"),
        (CLAIM["lanes"], "lane_busy"),
        (ENQUEUE["queue_depth"], "lane_busy"),
        (ENQUEUE["known_keys"], "job_idempotency"),
        (TRANSITIONS["orphans"], "job_running"),
        (TRANSITIONS["drain"], "job_running"),
        (TRANSITIONS["answered"], "job_waiting"),
        (TRANSITIONS["try_one"], "job_waiting"),
        (TRANSITIONS["clamp_delays"], "job_delayed"),
        (CLAIM["suspects"], "job_crashed"),
        (CLAIM["is_alone"], "job_running"),
        (MAINTENANCE["oldest"], "job_finished"),
        (MAINTENANCE["prune_events"], "event_by_job"),
        (MAINTENANCE["prune_phases"], "job_phase_by_job"),
        (MAINTENANCE["prune_labels"], "job_label_by_job"),
        (MAINTENANCE["prune_terms"], "job_term_by_job"),
        (MAINTENANCE["prune_pushes"], "SEARCH push USING PRIMARY KEY (job_id=?"),
        (MAINTENANCE["note_pruned_logs"], "log_block"),
        (MAINTENANCE["note_pruned_blobs"], "job_blob"),
        (MAINTENANCE["prune_logs"], "job_with_log"),
        (MAINTENANCE["prune_blobs"], "job_with_blob"),
        (MAINTENANCE["prune_contents"], "job_with_content"),
        (MAINTENANCE["prune_lanes"], "job_ended_by_tenant"),
        (QUERIES["cancel_requests"], "job_running"),
        (QUERIES["position"], "job_ready"),
        (QUERIES["backlog"], "job_ended_by_kind"),
        (QUERIES["depths"], "lane_busy"),
        (QUERIES["oldest_ready"], "job_ready"),
        (LISTING["created_from"], "job_created"),
        (LISTING["created_before"], "job_created"),
        (ENQUEUE["retries_of"], "job_retry_of"),
        (QUERIES["live"], "job_ready"),
        (QUERIES["log_from"], "log_block"),
        (QUERIES["log_breaks"], "log_block"),
        (QUERIES["log_pruned"], "event_by_job"),
        (QUERIES["events"], "SEARCH event USING INTEGER PRIMARY KEY"),
        (QUERIES["events_of_job"], "event_by_job"),
        (QUERIES["phases"], "job_phase_by_job"),
        (QUERIES["pushes"], "SEARCH push USING PRIMARY KEY (job_id=?)"),
    ],
    ids=lambda value: value if value.isidentifier() else "",
)
def test_a_statement_uses_its_index(db: sqlite3.Connection, statement: str, index: str) -> None:
    """No statement of the daemon's daily round scans all jobs."""
    details = plan(db, statement)
    assert any(index in detail for detail in details), details
    assert "SCAN job" not in details


def test_leaving_running_looks_jobs_up(db: sqlite3.Connection) -> None:
    """Ending a run of jobs never scans: it searches by id or among the running."""
    details = [detail for detail in plan(db, TRANSITIONS["apply"]) if " job " in f"{detail} "]
    assert all("SEARCH job USING INTEGER PRIMARY KEY" in d or "job_running" in d for d in details), details


def test_a_listing_merges_ordered_ranges(db: sqlite3.Connection) -> None:
    """A page of ended jobs is merged from index ranges that are in order already."""
    one_range = LISTING["ended_of_all"]
    ranges = [one_range.format(kind=f":kind{n}", state=f":state{n}", conditions="") for n in range(len(FINAL))]
    details = plan(db, page("union all\n".join(ranges)))
    assert sum("job_ended_by_kind (kind=? AND state=? AND rowid>? AND rowid<?)" in one for one in details) == len(FINAL)
    assert not any("SCAN job" in detail for detail in details), details
    assert not any("TEMP B-TREE" in detail for detail in details[:-1]), details


@pytest.mark.parametrize(
    ("source", "filtered", "index"),
    [
        (term_walk(1, ""), term_walk(1, FURTHER), TERM_INDEX),
        (term_walk(3, ""), term_walk(3, FURTHER), TERM_INDEX),
        (*label_walk(None, FURTHER), "job_label USING PRIMARY KEY (key=? AND value=? AND job_id>? AND job_id<?)"),
        (*label_walk("t", FURTHER), "job_label_of_tenant (tenant=? AND key=? AND value=? AND job_id>? AND job_id<?)"),
    ],
    ids=["tenant's term", "everybody's term", "everybody's label", "tenant's label"],
)
def test_a_listing_walks_a_term_in_order(db: sqlite3.Connection, source: str, filtered: str, index: str) -> None:
    """The jobs of an image, a submitter or a label, everybody's or a tenant's, come in order from an index, and each is
    looked up by its id."""
    for details in (plan(db, LISTING["scan_end"].format(source=source)), plan(db, page(filtered))):
        assert any(index in detail for detail in details), details
        assert not any("SCAN job" in detail for detail in details), details
        assert not any("TEMP B-TREE" in detail for detail in details[:-1]), details


@pytest.mark.parametrize("tenant", [None, "t"])
def test_failures_are_read_in_the_order_of_their_ends(db: sqlite3.Connection, tenant: str | None) -> None:
    """Everybody's, or a tenant's own, from a time on and without a sort; whether one was tried again is looked up."""
    order = unsuccessful(tenant)
    index = f"{order['index']} (tenant=? AND finished_ms>?" if tenant else f"{order['index']} (finished_ms>?"
    end = plan(db, LISTING["unsuccessful_end"].format(**order))
    details = plan(db, LISTING["to_retry"].format(conditions=f" and {LISTING['has_code']}", **order))
    assert any("job_retry_of" in detail for detail in details), details
    for some in (end, details):
        assert any(index in detail for detail in some), some
        assert not any("TEMP B-TREE" in detail for detail in some), some


def page(source: str) -> str:
    return LISTING["page"].format(listed=LISTING["listed"], source=source)
