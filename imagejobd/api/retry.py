"""Asking once more for what jobs that failed or were cancelled should have done: one, or many by a filter.

A retry is a new job with the old one's spec, labels, priority and owner. Of one job there is one; what fails again is
tried again as the retry that it is. Secrets that were deleted when the job ended are given with the request.
"""

import asyncio
from datetime import datetime
from typing import Any

import msgspec

from imagejobd.api.intake import Caller, Intake
from imagejobd.api.listing import epoch_ms, read_kind, read_label
from imagejobd.api.wire import NOT_JSON
from imagejobd.model.errors import ErrorCode, Fault, Permanent, StoreFailed, invalid
from imagejobd.model.job import Enqueued, Job, Json, State
from imagejobd.store.filters import Failures, Place

JOBS_MAX = 1_000
# Of the jobs that one request of many could not try again, at about so many it ends.
REFUSED_MAX = 1_000
# Jobs whose specs are in memory at once.
AT_ONCE = 16
# How often one request looks for further jobs: each look reads a bounded number of rows.
LOOKS_MAX = 100
ENDED_BADLY = frozenset({State.FAILED, State.CANCELLED})
# What the jobs behind it would meet too.
FULL = frozenset({ErrorCode.QUEUE_FULL, ErrorCode.STORAGE_FULL})


class RetryRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /api/v2/jobs/{id}/retry`, which may be empty. `secrets` are named as the job's `secret_names`:
    texts, and for a distribution its `auth` blocks."""

    secrets: dict[str, Any] = {}


class RetryManyRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /api/v2/jobs/retry`: the jobs that ended so, `since` then, with an error of this `code`; from
    old to new. `cursor` is the `next` of the request before."""

    state: State | list[State] = State.FAILED
    kind: str | list[str] | None = None
    code: ErrorCode | None = None
    since: datetime | None = None
    label: str | None = None
    tenant: str | None = None
    limit: int = JOBS_MAX
    cursor: str | None = None

    def failures(self, intake: Intake, caller: Caller) -> Failures | None:
        """None where they are another tenant's. Raises `Permanent(invalid)` that names the field."""
        states = frozenset([self.state] if isinstance(self.state, str) else self.state)
        if not states or not states <= ENDED_BADLY:
            raise invalid("state must be failed, cancelled or both: other jobs are not tried again")
        if caller.sees is not None and self.tenant not in (None, caller.sees):
            return None
        kinds = intake.kinds if self.kind is None else [self.kind] if isinstance(self.kind, str) else self.kind
        return Failures(
            tenant=self.tenant or caller.sees,
            kinds=frozenset(read_kind(kind, intake.kinds) for kind in kinds),
            states=states,
            label=read_label(self.label),
            code=self.code,
            since_ms=None if self.since is None else epoch_ms("since", self.since),
        )

    @property
    def place(self) -> Place | None:
        if self.cursor is None:
            return None
        finished, dash, number = self.cursor.partition("-")
        if not (dash and all(part.isascii() and part.isdecimal() and len(part) < 19 for part in (finished, number))):
            raise invalid("cursor must be the next of an earlier answer")
        return Place(int(finished), int(number))


def parse(body: bytearray, kind: type[RetryRequest] | type[RetryManyRequest]) -> Any:
    """The body of a request; an empty one is an empty object. Raises `Permanent(invalid)` that names the field."""
    try:
        return msgspec.json.decode(body if body.strip() else b"{}", type=kind)
    except NOT_JSON as error:
        raise invalid(f"the retry is not valid: {error}") from None


async def retry(intake: Intake, job: Job, secrets: Json) -> Enqueued:
    """Try one job again. Raises `Permanent(conflict)` for one that has not ended or succeeded, that was tried again
    already, and where a secret, which it names, or the payload is gone."""
    if job.state not in ENDED_BADLY:
        raise Permanent(ErrorCode.CONFLICT, f"the job is {job.state}; only a failed or cancelled one is tried again")
    kind = intake.kinds[read_kind(job.kind, intake.kinds)]
    return await intake.submit(await intake.store.repeat(job, kind.read_secrets(job.spec, secrets)))


async def retry_many(intake: Intake, request: RetryManyRequest, caller: Caller) -> Json:
    """Try up to `limit` jobs again, each by itself: what was done stays done, and a request that is repeated does not
    do it again. It ends early after `REFUSED_MAX` refusals, and `next` goes on; and where the queue is full, for the
    same request to do the rest later."""
    if not 1 <= request.limit <= JOBS_MAX:
        raise invalid(f"limit must lie between 1 and {JOBS_MAX}")
    which, place = request.failures(intake, caller), request.place
    retried: list[Json] = []
    refused: list[Json] = []
    if which is None:
        return {"retried": retried, "refused": refused, "next": None}
    for _ in range(LOOKS_MAX):
        most = min(AT_ONCE, request.limit - len(retried))
        page = await intake.store.retryable(which, after=place, limit=most)
        outcomes = await asyncio.gather(*(_retry_or_refuse(intake, uuid) for uuid in page.uuids))
        for uuid, outcome in zip(page.uuids, outcomes, strict=True):
            if isinstance(outcome, Enqueued):
                retried.append({"id": outcome.uuid, "retry_of": uuid})
            else:
                refused.append({"id": uuid, "code": outcome.code, "detail": outcome.message})
        if any(isinstance(outcome, Fault) and outcome.code in FULL for outcome in outcomes):
            place = None  # who went on at once would only hear it again
            break
        place = page.next
        if place is None or len(retried) >= request.limit or len(refused) >= REFUSED_MAX:
            break
    following = None if place is None else f"{place.finished_ms}-{place.id}"
    return {"retried": retried, "refused": refused, "next": following}


async def _retry_or_refuse(intake: Intake, uuid: str) -> Enqueued | Fault:
    """Without preflight: of a thousand jobs nobody waits for what a registry says to each."""
    try:
        job = await intake.store.get(uuid, tenant=None)
        if job is None:
            return Permanent(ErrorCode.NOT_FOUND, f"there is no job {uuid!r} any more")
        return await intake.submit(await intake.store.repeat(job), with_preflight=False)
    except StoreFailed:
        raise
    except Fault as fault:
        return fault
