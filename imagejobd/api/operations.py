"""The native API's operations, as data: what each takes, what it answers, and the errors that are its own.

One entry for each route of `/api/v2`, and for `/version`: a test compares them. `openapi.py` makes the document of it.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from imagejobd.api import schemas
from imagejobd.api.events import EVENTS_MAX
from imagejobd.api.native import PAGE_MAX, WAIT_MAX_S
from imagejobd.api.retry import RetryRequest
from imagejobd.model.errors import ErrorCode
from imagejobd.model.job import IDEMPOTENCY_KEY_MAX_CHARS, State

JSON = "application/json"
TEXT = "text/plain"
EVENT_STREAM = "text/event-stream"
MULTIPART = "multipart/form-data"

Position = Annotated[int, Meta(ge=0, lt=10**18)]
# Lists in a query are written with commas between.
KindList = Annotated[list[schemas.Kind], Meta(min_length=1)]
StateList = Annotated[list[State], Meta(min_length=1)]


class Parameter(msgspec.Struct, frozen=True):
    name: str
    place: Literal["query", "path", "header"]
    type: Any
    description: str


class Answer(msgspec.Struct, frozen=True):
    """`content` is the type of the body by media type, None for text that has no schema."""

    description: str
    content: Mapping[str, Any]
    headers: Mapping[str, str] = {}


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """`body` is the type of a JSON body; with `upload` the same may come as a multipart part, and a file behind it.

    `errors` are those that not every operation has.
    """

    method: Literal["get", "post"]
    path: str
    id: str
    summary: str
    description: str = ""
    parameters: tuple[Parameter, ...] = ()
    body: Any = None
    is_body_required: bool = True
    upload: bool = False
    answers: Mapping[HTTPStatus, Answer]
    errors: tuple[ErrorCode, ...] = ()


def _query(name: str, kind: Any, description: str) -> Parameter:
    return Parameter(name, "query", kind, description)


def _json(description: str, kind: Any) -> Answer:
    return Answer(description, {JSON: kind})


# What any request may meet: a bad request, no or a bad token, a page of another site, a defect, a full disk.
COMMON_ERRORS = (
    ErrorCode.INVALID,
    ErrorCode.UNAUTHENTICATED,
    ErrorCode.DENIED,
    ErrorCode.INTERNAL,
    ErrorCode.STORAGE_FULL,
    ErrorCode.QUEUE_FULL,
)
# What a request with a body may meet.
BODY_ERRORS = (ErrorCode.TOO_LARGE, ErrorCode.TIMEOUT)
ADMISSION_ERRORS = (
    *BODY_ERRORS,
    ErrorCode.POLICY,
    ErrorCode.EGRESS,
    ErrorCode.NOT_FOUND,
    ErrorCode.CONFLICT,
)

ID = Parameter("id", "path", str, "The job's UUID, or its number. Of another tenant's job nothing is known.")
CREATED_HEADERS = {"Location": "The path of the job."}
LAST_EVENT_ID = Parameter(
    "Last-Event-ID",
    "header",
    str,
    "Of a stream that broke off: the `id` of the last event that came; it goes on there.",
)
FILTERS = (
    _query("state", StateList, "Jobs in one of these states."),
    _query("kind", KindList, "Jobs of one of these kinds."),
    _query("tenant", str, "For who may see all tenants: the jobs of one."),
    _query("label", Annotated[str, Meta(pattern="=")], "Jobs with this label, written `name=value`."),
    _query("submitter", str, "Jobs of this person: any of the claims `sub`, `email`, `azp`, `name` of the token."),
    _query("image", str, "Jobs about this image, target or source, with or without its tag."),
    _query("created_after", schemas.Time, "Jobs that were submitted then or later; with a time zone."),
    _query("created_before", schemas.Time, "Jobs that were submitted before; with a time zone."),
)

OPERATIONS = (
    Operation(
        method="post",
        path="/api/v2/jobs",
        id="submitJob",
        summary="Submit a job",
        description="The answer is sent once the job is on disk. A file, such as a build context, comes as base64 in "
        "`context`, or as a multipart part of that name behind one named `job`.",
        parameters=(
            Parameter(
                "Idempotency-Key",
                "header",
                Annotated[str, Meta(min_length=1, max_length=IDEMPOTENCY_KEY_MAX_CHARS, pattern="^[ -~]+$")],
                "A request that is repeated with the same key makes no second job.",
            ),
        ),
        body=schemas.Submission,
        upload=True,
        answers={
            HTTPStatus.CREATED: Answer("The job.", {JSON: schemas.JobAnswer}, CREATED_HEADERS),
            HTTPStatus.OK: Answer("The job that the key had made before.", {JSON: schemas.JobAnswer}, CREATED_HEADERS),
        },
        errors=ADMISSION_ERRORS,
    ),
    Operation(
        method="get",
        path="/api/v2/jobs",
        id="listJobs",
        summary="List jobs, from new to old",
        parameters=(
            *FILTERS,
            _query("limit", Position, f"Jobs on a page, {PAGE_MAX} at most."),
            _query("cursor", Position, "The `next` of the page before."),
        ),
        answers={HTTPStatus.OK: _json("One page.", schemas.JobList)},
    ),
    Operation(
        method="get",
        path="/api/v2/jobs/{id}",
        id="showJob",
        summary="Show a job with its phases",
        parameters=(
            ID,
            _query(
                "wait",
                Annotated[int, Meta(ge=0, le=WAIT_MAX_S)],
                "Answer when the job has ended, after so many seconds at most.",
            ),
        ),
        answers={HTTPStatus.OK: _json("The job.", schemas.JobAnswer)},
        errors=(ErrorCode.NOT_FOUND,),
    ),
    Operation(
        method="get",
        path="/api/v2/jobs/{id}/log",
        id="readLog",
        summary="Read or follow a job's log",
        description="As server-sent events: each `log` event has whole lines and as its `id` the byte offset behind "
        "them; an `end` event says in which state the job ended.",
        parameters=(
            ID,
            _query("tail", Position, "Only the last so many lines."),
            _query("offset", Position, "From this byte on."),
            _query("follow", Literal["0", "1"], "1 goes on until the job has ended."),
            Parameter("Range", "header", str, "A range of bytes."),
            LAST_EVENT_ID,
        ),
        answers={
            HTTPStatus.OK: Answer("The log.", {TEXT: None, EVENT_STREAM: None}),
            HTTPStatus.PARTIAL_CONTENT: Answer(
                "The range of the log.", {TEXT: None}, {"Content-Range": "Which bytes, of how many."}
            ),
            HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE: Answer(
                "The log has no such bytes yet.", {}, {"Content-Range": "How many bytes there are."}
            ),
        },
        errors=(ErrorCode.NOT_FOUND,),
    ),
    Operation(
        method="get",
        path="/api/v2/jobs/{id}/events",
        id="readEvents",
        summary="Read or follow a job's history",
        description=f"{EVENTS_MAX} events at most; the last `id` is the next request's `after`. As server-sent events "
        "they go on until the job has ended.",
        parameters=(ID, _query("after", Position, "Events with a higher `id`."), LAST_EVENT_ID),
        answers={
            HTTPStatus.OK: Answer("Events from old to new.", {JSON: list[schemas.EventAnswer], EVENT_STREAM: None})
        },
        errors=(ErrorCode.NOT_FOUND,),
    ),
    Operation(
        method="get",
        path="/api/v2/events",
        id="followEvents",
        summary="Follow the history of all jobs",
        description="Server-sent events of all jobs that the caller may see, without end: from now on, or behind "
        "`after`.",
        parameters=(
            _query("kind", KindList, "Jobs of one of these kinds."),
            _query("after", Position, "Events with a higher `id`."),
            LAST_EVENT_ID,
        ),
        answers={HTTPStatus.OK: Answer("Events from old to new.", {EVENT_STREAM: None})},
    ),
    Operation(
        method="post",
        path="/api/v2/jobs/{id}/cancel",
        id="cancelJob",
        summary="Cancel a job",
        parameters=(ID,),
        answers={
            HTTPStatus.OK: _json("It is cancelled.", schemas.CancelAnswer),
            HTTPStatus.ACCEPTED: _json("What runs of it is being stopped.", schemas.CancelAnswer),
        },
        errors=(ErrorCode.NOT_FOUND, ErrorCode.CONFLICT),
    ),
    Operation(
        method="post",
        path="/api/v2/jobs/{id}/retry",
        id="retryJob",
        summary="Do again what a failed or cancelled job should have done",
        parameters=(ID,),
        body=RetryRequest,
        is_body_required=False,
        answers={HTTPStatus.CREATED: Answer("The new job.", {JSON: schemas.JobAnswer}, CREATED_HEADERS)},
        errors=ADMISSION_ERRORS,
    ),
    Operation(
        method="post",
        path="/api/v2/jobs/retry",
        id="retryJobs",
        summary="Try many jobs again",
        body=schemas.RetryFilter,
        is_body_required=False,
        answers={HTTPStatus.OK: _json("What became of each.", schemas.RetryAnswer)},
        errors=BODY_ERRORS,
    ),
    Operation(
        method="get",
        path="/api/v2/queue",
        id="showQueue",
        summary="Show the queue of each kind",
        answers={HTTPStatus.OK: _json("The queue.", schemas.QueueAnswer)},
    ),
    Operation(
        method="post",
        path="/api/v2/queue/pause",
        id="pauseQueue",
        summary="Start no more jobs of a kind, or of any",
        description="Jobs are accepted and wait, those that run go on; it lasts over restarts. For admins, and for "
        "anybody where no token is required.",
        body=schemas.PauseInput,
        is_body_required=False,
        answers={HTTPStatus.OK: _json("The queue.", schemas.QueueAnswer)},
        errors=BODY_ERRORS,
    ),
    Operation(
        method="post",
        path="/api/v2/queue/resume",
        id="resumeQueue",
        summary="Start jobs of a kind again, or of all",
        body=schemas.ResumeInput,
        is_body_required=False,
        answers={HTTPStatus.OK: _json("The queue.", schemas.QueueAnswer)},
        errors=BODY_ERRORS,
    ),
    Operation(
        method="get",
        path="/api/v2/schedules",
        id="listSchedules",
        summary="Show the schedules of the configuration",
        description="For admins, and for anybody where no token is required. Their jobs have the label `schedule`.",
        answers={HTTPStatus.OK: _json("All of them.", schemas.SchedulesAnswer)},
    ),
    Operation(
        method="get",
        path="/version",
        id="showVersion",
        summary="Show the daemon's version",
        answers={HTTPStatus.OK: _json("The version.", schemas.VersionAnswer)},
    ),
    Operation(
        method="get",
        path="/api/v2/openapi.json",
        id="showDocument",
        summary="Show this document",
        answers={HTTPStatus.OK: _json("An OpenAPI 3.1 document.", dict[str, Any])},
    ),
)
