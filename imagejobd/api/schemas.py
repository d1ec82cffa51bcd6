"""What the native API takes and answers, as types: the schemas of its OpenAPI document are made of them.

Requests are decoded as these types, or as others with the same fields where a kind reads its spec in its own way.
Answers have at least these keys.
"""

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from imagejobd.api.queue import REASON_MAX_CHARS
from imagejobd.api.retry import JOBS_MAX
from imagejobd.api.webhook import WebhookRequest
from imagejobd.jobs.build import BuildInput
from imagejobd.jobs.distribute.auth import Auth
from imagejobd.jobs.distribute.spec import DistributeSpec, Source, Target
from imagejobd.jobs.run import RunSpec
from imagejobd.model.errors import ErrorCode
from imagejobd.model.job import (
    LABEL_MAX_CHARS,
    LABELS_MAX,
    PRIORITY_MAX,
    PRIORITY_MIN,
    JobError,
    State,
)

Kind = Literal["build", "run", "dispatch", "distribute"]
Labels = Annotated[
    dict[Annotated[str, Meta(min_length=1, max_length=LABEL_MAX_CHARS, pattern="^[^=]+$")], str],
    Meta(max_length=LABELS_MAX, description="Of the caller's own choice; lists can be filtered by them."),
]
Uuid = Annotated[str, Meta(extra_json_schema={"format": "uuid"})]
Time = Annotated[datetime, Meta(tz=True)]
Percent = Annotated[float, Meta(ge=0, le=100)]


class Problem(Struct, frozen=True):
    """What went wrong (RFC 9457). `code` is stable and for programs, `detail` for people."""

    title: str
    status: int
    code: ErrorCode
    detail: str


class DispatchInput(Struct, frozen=True, forbid_unknown_fields=True):
    """A payload takes no fields: it comes as the job's `context`."""


class SourceInput(Source, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where an image is read; with exactly one of `image` and `ref`, `image` and `tags`, or `images`."""

    auth: Auth | None = None


class TargetInput(Target, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where it is copied to; `image` and `ref`, or `tags`, rename there."""

    auth: Auth | None = None


class DistributeInput(DistributeSpec, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Images to copy from one registry to others."""

    source: SourceInput
    targets: tuple[TargetInput, ...]


class _Submission(Struct, frozen=True, kw_only=True, tag_field="kind"):
    context: Annotated[str, Meta(extra_json_schema={"contentEncoding": "base64"})] | None = None
    priority: Annotated[int, Meta(ge=PRIORITY_MIN, le=PRIORITY_MAX)] = 0
    not_before: Time | None = None
    labels: Labels = {}
    webhook: WebhookRequest | None = None


class BuildSubmission(_Submission, frozen=True, kw_only=True, tag="build", forbid_unknown_fields=True):
    """Build an image and push it. `context` is a tar, plain or compressed."""

    spec: BuildInput


class RunSubmission(_Submission, frozen=True, kw_only=True, tag="run", forbid_unknown_fields=True):
    """Build a Dockerfile, run it in a sandbox, and keep what it has measured."""

    spec: RunSpec


class DispatchSubmission(_Submission, frozen=True, kw_only=True, tag="dispatch", forbid_unknown_fields=True):
    """Take a payload and do with it what its bytes ask for; `context` is the payload."""

    spec: DispatchInput


class DistributeSubmission(_Submission, frozen=True, kw_only=True, tag="distribute", forbid_unknown_fields=True):
    """Copy images between registries."""

    spec: DistributeInput


Submission = BuildSubmission | RunSubmission | DispatchSubmission | DistributeSubmission


class Progress(Struct, frozen=True):
    """How far a running job is; more keys follow by kind and phase, such as `targets` with the bytes at each."""

    percent: Percent | None = None
    step: int | None = None
    steps: int | None = None
    step_name: str | None = None


class PhaseAnswer(Struct, frozen=True):
    name: str
    attempt: int
    started_at: Time
    finished_at: Time | None


class JobAnswer(Struct, frozen=True, kw_only=True):
    """A job. Its spec has neither passwords nor the query of a URL."""

    id: Uuid
    number: int
    kind: Kind
    state: State
    phase: str | None
    tenant: str
    client: str
    submitter: dict[str, Any]
    spec: dict[str, Any]
    progress: Progress
    result: dict[str, Any] | None
    error: JobError | None
    attempt: int
    crashes: int
    faults: int
    retry_of: Uuid | None
    secret_names: list[str]
    priority: int
    labels: dict[str, str]
    idempotency_key: str | None
    log_bytes: int
    not_before: Time | None
    cancel_requested_at: Time | None
    created_at: Time
    started_at: Time | None
    finished_at: Time | None
    waiting_for: Annotated[str | None, Meta(description="What keeps a queued job from being next.")]
    phases: list[PhaseAnswer] | msgspec.UnsetType = msgspec.UNSET
    position: Annotated[int | None, Meta(description="How many jobs go before it while it is queued.")] = None
    eta_seconds: Annotated[float | None, Meta(description="When it probably starts, null where unknown.")] = None


class JobList(Struct, frozen=True):
    """`next` is the `cursor` of the following page, null at the end."""

    jobs: list[JobAnswer]
    next: int | None


class CancelAnswer(Struct, frozen=True):
    id: Uuid
    state: State


class RetryFilter(Struct, frozen=True, forbid_unknown_fields=True):
    """Which jobs to try again: those that ended so, with an error of this `code`, `since` then."""

    state: State | list[State] = State.FAILED
    kind: Kind | list[Kind] | None = None
    code: ErrorCode | None = None
    since: Time | None = None
    label: Annotated[str, Meta(pattern="=")] | None = None
    tenant: str | None = None
    limit: Annotated[int, Meta(ge=1, le=JOBS_MAX)] = JOBS_MAX
    cursor: str | None = None


class Retried(Struct, frozen=True):
    id: Uuid
    retry_of: Uuid


class RefusedRetry(Struct, frozen=True):
    id: Uuid
    code: ErrorCode
    detail: str


class RetryAnswer(Struct, frozen=True):
    """The new jobs, and the old ones that cannot be tried again, each with the reason. With a `next` there are more."""

    retried: list[Retried]
    refused: list[RefusedRetry]
    next: str | None


class EventAnswer(Struct, frozen=True):
    id: int
    at: Time
    type: str
    data: dict[str, Any]


class PauseAnswer(Struct, frozen=True):
    reason: str
    since: Time
    by: str


class KindQueue(Struct, frozen=True):
    """The queue of one kind. `slots` is how many of its jobs may run at once, null where nothing bounds them."""

    queued: int
    running: int
    slots: int | None
    oldest_queued_at: Time | None
    waiting_for: str | None
    paused: PauseAnswer | None


class QueueAnswer(Struct, frozen=True):
    kinds: dict[str, KindQueue]
    queue_max: int


class PauseInput(Struct, frozen=True, forbid_unknown_fields=True):
    """A null `kind` is all of them. `reason` is shown to everybody whose job waits."""

    kind: Kind | None = None
    reason: Annotated[str, Meta(max_length=REASON_MAX_CHARS)] = ""


class ResumeInput(Struct, frozen=True, forbid_unknown_fields=True):
    """A null `kind` is all of them."""

    kind: Kind | None = None


class ScheduleAnswer(Struct, frozen=True):
    """`job` and `state` are those of the last run. `last_skipped` is when a run was due while that had not ended."""

    name: str
    cron: str
    timezone: str
    kind: str
    next_run: Time | None
    last_run: Time | None
    last_skipped: Time | None
    job: Uuid | None
    state: State | None


class SchedulesAnswer(Struct, frozen=True):
    schedules: list[ScheduleAnswer]


class VersionAnswer(Struct, frozen=True):
    version: str
    api: str
