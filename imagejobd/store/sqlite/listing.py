"""Pages of jobs by filters, and the jobs that a retry of many concerns.

A page reads a bounded number of rows, however long the history is. Tenant, kind and state have ordered ranges of their
own, which are merged; times become row ids. Of a label, an image or a submitter the jobs are walked from new to old,
and those are kept that fit the rest of the filter: past `SCAN_MAX` of them the page ends where it is, short or empty,
and its cursor goes on from there. So a filter that next to nothing passes takes several requests, and never one long
one.
"""

from itertools import product
from typing import Any

import msgspec

from imagejobd.model.job import FINAL, State
from imagejobd.store.filters import Failures, Filter, Page, Place, Retryable
from imagejobd.store.sqlite.database import load
from imagejobd.store.sqlite.readers import Readers
from imagejobd.store.sqlite.rows import job

SCAN_MAX = 2_000
# Rows around a moment that are looked at for the first and the last id of a time: where a clock was set back, jobs that
# came in meanwhile have later ids than others of the same time.
CLOCK_STEP_ROWS = 1_000
# Tenants whose jobs of one image or submitter are merged in one statement; SQLite takes 500 parts.
TENANTS_MERGED_MAX = 100
# Row ids are below it: where a listing without a cursor starts.
END = 2**63 - 1

_SQL = load("listing")
_encode = msgspec.json.Encoder().encode

Values = dict[str, Any]


async def list_jobs(readers: Readers, which: Filter, *, cursor: int | None, limit: int) -> Page:
    """See `Store.list_jobs`."""
    from_id, below = await _span(readers, which, END if cursor is None else cursor)
    values = _values(which) | {"from_id": from_id, "below": below, "limit": limit + 1, "scanned": SCAN_MAX - 1}
    source, filtered = await _source(readers, which, values)
    if not source:
        return Page([], None)
    scan_end = None
    if filtered != source:
        # Asked first: what comes in meanwhile is above it.
        scan_end = await readers.first(_SQL["scan_end"].format(source=source), values)
        values["from_id"] = scan_end["id"] if scan_end else from_id
    rows = list(await readers.all(_SQL["page"].format(listed=_SQL["listed"], source=filtered), values))
    jobs = [job(row) for row in rows[:limit]]
    if len(rows) > limit:
        return Page(jobs, jobs[-1].id)
    return Page(jobs, scan_end["id"] if scan_end else None)


async def retryable(readers: Readers, which: Failures, *, after: Place | None, limit: int) -> Retryable:
    """See `Store.retryable`."""
    conditions = _all_of(
        has_kind=which.kinds,
        has_state=which.states,
        has_label=which.label,
        has_code=which.code,
    )
    after = after or Place(-1, 0)
    values = _common_values(which) | {
        "code": which.code,
        "from_ms": max(which.since_ms or 0, after.finished_ms),
        "after_ms": after.finished_ms,
        "after_id": after.id,
        "scanned": SCAN_MAX - 1,
        "limit": limit + 1,
    }
    order = unsuccessful(which.tenant)
    scan_end = await readers.first(_SQL["unsuccessful_end"].format(**order), values)
    values["until_ms"], values["until_id"] = (scan_end["finished_ms"], scan_end["id"]) if scan_end else (END, END)
    rows = list(await readers.all(_SQL["to_retry"].format(conditions=conditions, **order), values))
    uuids = [row["uuid"] for row in rows[:limit]]
    if len(rows) > limit:
        return Retryable(uuids, Place(rows[limit - 1]["finished_ms"], rows[limit - 1]["id"]))
    return Retryable(uuids, Place(scan_end["finished_ms"], scan_end["id"]) if scan_end else None)


def unsuccessful(tenant: str | None) -> dict[str, str]:
    """The index of a tenant's jobs that did not succeed, or of everybody's, and what it asks of a statement."""
    if tenant is None:
        return {"index": "job_unsuccessful", "tenant": ""}
    return {"index": "job_unsuccessful_of_tenant", "tenant": f"{_SQL['has_tenant'].strip()} and"}


def _common_values(which: Filter | Failures) -> Values:
    key, value = which.label or (None, None)
    return {
        "tenant": which.tenant,
        "kinds": _encode(sorted(which.kinds)).decode() if which.kinds else None,
        "states": _encode(sorted(which.states)).decode() if which.states else None,
        "key": key,
        "value": value,
    }


def _values(which: Filter) -> Values:
    return _common_values(which) | {
        "image": f"image={which.image}",
        "submitter": f"submitter={which.submitter}",
        "created_from_ms": which.created_from_ms,
        "created_before_ms": which.created_before_ms,
    }


async def _span(readers: Readers, which: Filter, below: int) -> tuple[int, int]:
    """The row ids, from one to below another, between which jobs may fit."""
    from_id = 0
    if which.created_from_ms is not None:
        values = {"at_ms": which.created_from_ms, "rows": CLOCK_STEP_ROWS}
        first = await readers.first(_SQL["created_from"], values)
        from_id = END if first is None or first["id"] is None else first["id"]
    if which.created_before_ms is not None:
        values = {"at_ms": which.created_before_ms, "rows": CLOCK_STEP_ROWS}
        last = await readers.first(_SQL["created_before"], values)
        below = min(below, 0 if last is None or last["id"] is None else last["id"] + 1)
    return from_id, below


async def _source(readers: Readers, which: Filter, values: Values) -> tuple[str, str]:
    """Ids from new to old: the statement that reads them, and the same with what else the filter says."""
    times = {"is_created_from": which.created_from_ms, "is_created_before": which.created_before_ms}
    others = {"has_kind": which.kinds, "has_state": which.states} | times
    if which.image is not None:
        # First, because an image is likely to have the fewest jobs.
        values["walked"] = values["image"]
        conditions = _all_of(has_submitter=which.submitter, has_label=which.label, **others)
        return await _of_term(readers, which, values, conditions)
    if which.submitter is not None:
        values["walked"] = values["submitter"]
        return await _of_term(readers, which, values, _all_of(has_label=which.label, **others))
    if which.label is not None:
        return label_walk(which.tenant, _all_of(**others))
    is_any = not (which.tenant or which.kinds or which.states)
    source = _SQL["newest"] if is_any else await _ranges(readers, which, values)
    return source.format(conditions=""), source.format(conditions=_all_of(**times))


async def _of_term(readers: Readers, which: Filter, values: Values, conditions: str) -> tuple[str, str]:
    """The jobs of the term `walked`, as `_source` has it: one ordered range for each tenant that has some. Where more
    than `TENANTS_MERGED_MAX` share it, of all jobs those are kept that are found by it."""
    if which.tenant is not None:
        tenants = [which.tenant]
    else:
        bound = {"walked": values["walked"], "tenants_max": TENANTS_MERGED_MAX}
        tenants = [row["tenant"] for row in await readers.all(_SQL["tenants_of_term"], bound)]
    if len(tenants) > TENANTS_MERGED_MAX:
        has_term = _SQL["has_submitter"].replace(":submitter", ":walked")
        return _SQL["newest"].format(conditions=""), _SQL["newest"].format(conditions=f"and {has_term} {conditions}")
    values |= {f"tenant{number}": tenant for number, tenant in enumerate(tenants)}
    source = term_walk(len(tenants), "")
    return source, term_walk(len(tenants), conditions) if conditions else source


def term_walk(tenants: int, conditions: str) -> str:
    """The jobs of a term: those of the tenants `tenant0` and so on, and the newest."""
    suffix = "_filtered" if conditions else ""
    ranges = [
        _SQL[f"term_range{suffix}"].format(tenant=f":tenant{number}", conditions=conditions)
        for number in range(tenants)
    ]
    return "union all\n".join([*ranges, _SQL[f"new_of_term{suffix}"].format(conditions=conditions)])


def label_walk(tenant: str | None, conditions: str) -> tuple[str, str]:
    """The jobs of a label, as `_source` has it. A tenant's are walked in an index of its own: how long a page gets must
    not tell how many others have."""
    own = {"indexed": "", "own": ""}
    if tenant is not None:
        own = {"indexed": "indexed by job_label_of_tenant", "own": "job_label.tenant = :tenant and"}
    source = _SQL["label_walk"].format(**own)
    return source, _SQL["label_walk_filtered"].format(conditions=conditions, **own) if conditions else source


def _all_of(**conditions: object) -> str:
    """SQL for those conditions that have a value to be compared with."""
    return "".join(f" and {_SQL[name]}" for name, value in conditions.items() if value or value == 0)


async def _ranges(readers: Readers, which: Filter, values: Values) -> str:
    """One ordered range for each kind and final state that the filter leaves open, and what has not ended; empty where
    nothing can fit."""
    states = which.states or frozenset(State)
    kinds = which.kinds or await _kinds(readers, which.tenant)
    one_range = _SQL["ended_of_all" if which.tenant is None else "ended_of_tenant"]
    ranges = []
    for number, (kind, state) in enumerate(product(sorted(kinds), sorted(FINAL & states))):
        ranges.append(one_range.format(kind=f":kind{number}", state=f":state{number}", conditions="{conditions}"))
        values |= {f"kind{number}": kind, f"state{number}": state}
    if not states <= FINAL:
        ranges.append(_SQL["not_ended"])
    return "union all\n".join(ranges)


async def _kinds(readers: Readers, tenant: str | None) -> frozenset[str]:
    statement = _SQL["all_kinds" if tenant is None else "kinds_of_tenant"]
    return frozenset(row["kind"] for row in await readers.all(statement, () if tenant is None else (tenant,)))
