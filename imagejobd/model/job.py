"""A job, what is said about it, and the states that it passes through. All times are epoch milliseconds, UTC.

::

                    ┌────────── retry, interrupt, rescue ──────────┐
                    ▼                                              │
    (enqueue) ─▶ queued ──────────── claim ───────────────────▶ running
                    │                                         │    │    │
       cancel, or fail (waited too long)                 succeed  fail  cancel
                    ▼                                         ▼    ▼    ▼
            cancelled, failed                         succeeded failed cancelled

A job has two names: a row id, short, for people and the dispatcher API, and a UUID.
"""

import os
import time
import uuid
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, NewType, Protocol

import msgspec

from imagejobd.model.errors import ErrorCode, Fault, invalid
from imagejobd.model.reference import ImageReference
from imagejobd.model.secrets import Secret

JobId = NewType("JobId", int)
Json = dict[str, Any]

LOCAL_TENANT = "local"
PRIORITY_MIN, PRIORITY_MAX = -100, 100
LABELS_MAX = 32
LABEL_MAX_CHARS = 256
IDEMPOTENCY_KEY_MAX_CHARS = 255
# By which a job is found; it may be about thousands.
IMAGES_MAX = 32
# Of the error of one push; a job may have thousands.
PUSH_ERROR_MAX_CHARS = 400
# What names the person behind a token best comes first.
PERSON_CLAIMS = ("email", "name", "sub", "azp")


class State(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self in FINAL


class Transition(StrEnum):
    """What takes a job from one state to another; each is an event in its history."""

    CLAIM = "claim"
    SUCCEED = "succeed"
    FAIL = "fail"
    CANCEL = "cancel"
    RETRY = "retry"
    INTERRUPT = "interrupt"
    RESCUE = "rescue"


# The final states, each with the transition that leads there.
ENDINGS = {State.SUCCEEDED: Transition.SUCCEED, State.FAILED: Transition.FAIL, State.CANCELLED: Transition.CANCEL}
FINAL = frozenset(ENDINGS)

TRANSITIONS: dict[tuple[State, Transition], State] = {
    (State.QUEUED, Transition.CLAIM): State.RUNNING,
    (State.QUEUED, Transition.CANCEL): State.CANCELLED,
    (State.QUEUED, Transition.FAIL): State.FAILED,
    (State.RUNNING, Transition.SUCCEED): State.SUCCEEDED,
    (State.RUNNING, Transition.FAIL): State.FAILED,
    (State.RUNNING, Transition.CANCEL): State.CANCELLED,
    (State.RUNNING, Transition.RETRY): State.QUEUED,
    (State.RUNNING, Transition.INTERRUPT): State.QUEUED,
    (State.RUNNING, Transition.RESCUE): State.QUEUED,
}


def next_state(state: State, transition: Transition) -> State | None:
    """The state that `transition` leads to from `state`, or None where it is not allowed."""
    return TRANSITIONS.get((state, transition))


def uuid7(now_ms: int | None = None) -> str:
    """A new UUID of version 7 (RFC 9562 §5.7) in its canonical text form: it sorts by creation and indexes well. Python
    has no uuid7 before 3.14."""
    ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    noise = int.from_bytes(os.urandom(10))
    value = (ms & (1 << 48) - 1) << 80 | 0x7 << 76 | (noise >> 68) << 64 | 0b10 << 62 | noise & (1 << 62) - 1
    return str(uuid.UUID(int=value))


def is_uuid(text: str) -> bool:
    """Whether `text` is a UUID in the canonical hyphenated form."""
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False


def check_labels(labels: Mapping[str, str]) -> None:
    """Raises `Permanent(invalid)` for labels of a caller's that a job cannot have."""
    if len(labels) > LABELS_MAX:
        raise invalid(f"a job may have at most {LABELS_MAX} labels")
    for name, value in labels.items():
        if (
            not 0 < len(name) <= LABEL_MAX_CHARS
            or len(value) > LABEL_MAX_CHARS
            or "=" in name
            or not (name + value).isprintable()
        ):
            limits = f"names (without '=') and values are printable and have at most {LABEL_MAX_CHARS} characters"
            raise invalid(f"label {name[:LABEL_MAX_CHARS]!r}: {limits}")


class Principal(msgspec.Struct, frozen=True):
    """On whose behalf something is done, as far as rights hang on it.

    `subject` is the `sub` of the caller's token, None where there was none.
    """

    tenant: str
    subject: str | None = None
    is_operator: bool = False


# What the configuration itself orders.
OPERATOR = Principal("", is_operator=True)
# Who has no more rights than everybody.
NOBODY = Principal("")


class JobError(msgspec.Struct, frozen=True):
    """Why a job failed: a code of `ErrorCode` and a message for a person."""

    code: ErrorCode
    message: str

    @classmethod
    def of(cls, fault: Fault) -> "JobError":
        return cls(fault.code, fault.message)


class NewJob(msgspec.Struct, frozen=True, kw_only=True):
    """A job that a kind has validated and the store has not seen yet.

    `submitter` is what the caller's token says of the person; empty for an anonymous one. `blobs` are the content-store
    digests that the job needs; `secrets` are kept encrypted and only while it lives. `retry_of` is the UUID of the
    job that this one repeats, `images` what it is found by.
    """

    kind: str
    spec: Json
    tenant: str = LOCAL_TENANT
    client: str = ""
    submitter: Json = {}
    priority: int = 0
    not_before_ms: int | None = None
    labels: Mapping[str, str] = {}
    idempotency_key: str | None = None
    secrets: Mapping[str, Secret] = {}
    blobs: tuple[str, ...] = ()
    retry_of: str | None = None
    images: Sequence[ImageReference] = ()
    uuid: str = msgspec.field(default_factory=uuid7)

    @property
    def principal(self) -> Principal:
        return Principal(self.tenant, self.submitter.get("sub"))


class Enqueued(msgspec.Struct, frozen=True):
    """The acknowledgement. `is_new` is False when the idempotency key had already made this job."""

    id: JobId
    uuid: str
    is_new: bool


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the queue, as it was when it was read.

    `faults` counts the temporary faults since the job last got any further, the first at `faults_since_ms`, the last in
    `fault_phase`; `crashes_in_phase` counts crashes of the daemon likewise, `crashes` all of them. `waits_for` is the
    peer without which a queued job cannot go on. `has_secret` says that it came with secrets, which may be gone by now;
    `secret_names` are their names, unknown of jobs from before they were kept.
    """

    id: JobId
    uuid: str
    kind: str
    tenant: str
    client: str
    submitter: Json
    spec: Json
    state: State
    phase: str | None
    progress: Json
    checkpoint: Json
    result: Json | None
    error: JobError | None
    attempt: int
    crashes: int
    crashes_in_phase: int = 0
    faults: int = 0
    faults_since_ms: int | None = None
    fault_phase: str | None = None
    waits_for: str | None = None
    has_secret: bool = False
    secret_names: tuple[str, ...] = ()
    retry_of: str | None = None
    priority: int
    not_before_ms: int | None
    labels: dict[str, str]
    idempotency_key: str | None
    log_bytes: int
    cancel_requested_ms: int | None
    worker: str | None
    created_ms: int
    started_ms: int | None
    finished_ms: int | None

    @property
    def principal(self) -> Principal:
        """Whether its subject is an admin is for the configuration of the day to say, not for the row: rights that were
        taken away are not kept by jobs that wait."""
        return Principal(self.tenant, self.submitter.get("sub"))


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """The right to work on a job: every change to it carries `token`."""

    job: Job
    token: str
    secrets: Mapping[str, Secret]


class Phase(msgspec.Struct, frozen=True):
    """One step of one attempt; `finished_ms` is None while it goes on or when a crash cut it."""

    name: str
    attempt: int
    started_ms: int
    finished_ms: int | None


class Wait(msgspec.Struct, frozen=True):
    """What must come before something is tried again: that `peer` answers, or the wall time `not_before_ms`, which was
    `length_ms` away when it was asked for."""

    peer: str | None = None
    not_before_ms: int = 0
    length_ms: int = 0

    def rest_s(self, now_ms: int) -> float:
        """The seconds that are left: none where there are more than were asked for, because the clock has been set
        back."""
        rest_ms = self.not_before_ms - now_ms
        return rest_ms / 1000 if 0 < rest_ms <= self.length_ms else 0.0


class Push(msgspec.Struct, frozen=True, kw_only=True):
    """An image of a job and a place that it goes to, with what became of it: a build's push of one tag, a
    distribution's copy of one image to one target. `image` and `target` say which of the job's, from 0.

    `registry` is a host in lower case, with its port unless that is 443. `source` is what was copied, None for what the
    job built; `source_digest` what that name pointed at, with platforms another one than `digest`, the target's.
    `tags` says of each tag, or digest, what became of it. Bytes are those of blobs, None where nobody tells them.

    With an `error`, one line without secrets, it is not done; `is_final` says that trying again cannot help. `tries`
    counts the attempts that tried it, with those that may have before a crash: 0 where the target was known to be down.
    """

    image: int
    target: int
    registry: str
    repository: str
    source: str | None = None
    tags: Mapping[str, str] = {}
    digest: str | None = None
    source_digest: str | None = None
    sent_bytes: int | None = None
    mounted_bytes: int | None = None
    skipped_bytes: int | None = None
    total_bytes: int | None = None
    seconds: float = 0.0
    error: str | None = None
    is_final: bool = False
    tries: int = 1
    wait: Wait = Wait()

    @property
    def is_done(self) -> bool:
        return self.error is None


class Event(msgspec.Struct, frozen=True):
    """One line of a job's history; `id` grows over all jobs and is the cursor of `changes_since`. `uuid`, `tenant` and
    `kind` are the job's."""

    id: int
    job_id: JobId
    at_ms: int
    type: str
    data: Json
    uuid: str
    tenant: str
    kind: str


class Owner(Protocol):
    """Who is behind a request or a job."""

    @property
    def tenant(self) -> str: ...

    @property
    def client(self) -> str: ...

    @property
    def submitter(self) -> Json: ...


def log_fields(owner: Owner) -> dict[str, str]:
    """Who asks or asked, for the daemon's log."""
    person = next((owner.submitter[claim] for claim in PERSON_CLAIMS if claim in owner.submitter), "")
    fields = {"tenant": owner.tenant, "client": owner.client, "submitter": person}
    return {name: value for name, value in fields.items() if value}


def log_image(job: NewJob | Job) -> dict[str, str]:
    """The image that a job is about, where its spec names one, for the daemon's log."""
    source = job.spec.get("source")
    image = job.spec.get("image") or (source.get("image") if isinstance(source, dict) else None)
    return {"image": image} if image else {}
