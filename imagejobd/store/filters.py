"""Which jobs are asked of the store, and the pages in which they come."""

from collections.abc import Sequence

import msgspec

from imagejobd.model.errors import ErrorCode
from imagejobd.model.job import Job, State


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which jobs to list. None and no kinds or states mean any; `tenant` None is for callers who may see every tenant.

    `label` is a pair of name and value, `submitter` any of the claims on the person, `image` a canonical name with or
    without tag or digest (see `ImageReference.canonical`); times are from, and before, an epoch millisecond.
    """

    tenant: str | None = None
    kinds: frozenset[str] = frozenset()
    states: frozenset[State] = frozenset()
    label: tuple[str, str] | None = None
    submitter: str | None = None
    image: str | None = None
    created_from_ms: int | None = None
    created_before_ms: int | None = None


class Page(msgspec.Struct, frozen=True):
    """Jobs from new to old; `next_cursor` continues the listing, None at its end."""

    jobs: Sequence[Job]
    next_cursor: int | None


class Failures(msgspec.Struct, frozen=True, kw_only=True):
    """Which of the jobs that failed or were cancelled: as in a `Filter`, and with an error of `code`, ended since an
    epoch millisecond."""

    tenant: str | None = None
    kinds: frozenset[str] = frozenset()
    states: frozenset[State] = frozenset()
    label: tuple[str, str] | None = None
    code: ErrorCode | None = None
    since_ms: int | None = None


class Place(msgspec.Struct, frozen=True):
    """A job's place in the order in which jobs ended."""

    finished_ms: int
    id: int


class Retryable(msgspec.Struct, frozen=True):
    """UUIDs of jobs in the order of their ends, and the place to go on from, None where there are no more."""

    uuids: Sequence[str]
    next: Place | None
