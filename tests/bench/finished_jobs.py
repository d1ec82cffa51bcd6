"""A long history, made quickly: jobs that were accepted, claimed and ended by the schema's own triggers.

So counters, events, labels and every index are what years of work would have left. Only durability is left out: a
database that a crash spoils here is made anew.
"""

from pathlib import Path

from imagejobd.store.sqlite.database import close_database, open_database

TENANTS = 10
DAYS = 365
# One job in ten fails, one in fifty is cancelled, one in ten carries a label: pages are full in a short history too.
ENQUEUE = """
with recursive number (n) as (select 1 union all select n + 1 from number where n < :jobs)
insert into job (uuid, kind, tenant, client, moved_ms, priority, created_ms, labels, spec)
select
    printf('00000000-0000-7000-8000-%012x', n),
    'build',
    coalesce(:tenant, 'tenant-' || (n % :tenants)),
    '',
    :first_ms + n * :step_ms,
    0,
    :first_ms + n * :step_ms,
    iif(n % 10 = 3, '{"release":"yes"}', '{}'),
    json_object('image', printf('registry.example:5000/team/app:%d', n), 'dockerfile', 'FROM debian:12' || char(10))
from number
"""
# All are of one repository, and of seven people.
TERMS = """
insert into job_term (term, job_id, tenant)
select 'image=registry.example:5000/team/app', id, tenant from job
union all select 'image=registry.example:5000/team/app:' || id, id, tenant from job
union all select 'submitter=person-' || (id % 7), id, tenant from job
"""
CLAIM = """
update job set state = 'running', move = 'claim', moved_ms = created_ms, attempt = 1, started_ms = created_ms,
    claim_token = uuid, worker = 'w'
where state = 'queued'
"""
END = """
update job set
    state = case when id % 10 = 0 then 'failed' when id % 50 = 1 then 'cancelled' else 'succeeded' end,
    move = case when id % 10 = 0 then 'fail' when id % 50 = 1 then 'cancel' else 'succeed' end,
    moved_ms = created_ms, claim_token = null, finished_ms = created_ms,
    error_code = iif(id % 10 = 0, 'build_failed', null), error_message = iif(id % 10 = 0, 'exit code: 1', null),
    result = iif(id % 10 = 0, null, json_object('digest', uuid))
where state = 'running'
"""


def make_history(path: Path, jobs: int, now_ms: int, *, tenant: str | None = None) -> None:
    """A new database at `path` with `jobs` finished jobs, spread over the year before `now_ms`; of several tenants
    unless all are to be of one."""
    span_ms = DAYS * 86_400_000
    first = {
        "jobs": jobs,
        "tenant": tenant,
        "tenants": TENANTS,
        "first_ms": now_ms - span_ms,
        "step_ms": span_ms // jobs,
    }
    db = open_database(path)
    try:
        db.execute("pragma synchronous = off")
        for statement, values in ((ENQUEUE, first), (CLAIM, {}), (END, {}), (TERMS, {})):
            db.execute("begin immediate")
            db.execute(statement, values)
            db.execute("commit")
    finally:
        close_database(db)
