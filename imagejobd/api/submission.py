"""What `POST /api/v2/jobs` is given: the frame around a spec. The spec itself is its kind's to check."""

from datetime import datetime

import msgspec

from imagejobd.api.wire import iso, too_large
from imagejobd.model.errors import ErrorCode, Permanent, invalid
from imagejobd.model.job import (
    IDEMPOTENCY_KEY_MAX_CHARS,
    LABEL_MAX_CHARS,
    LABELS_MAX,
    PRIORITY_MAX,
    PRIORITY_MIN,
    Json,
    NewJob,
)

# A job without the tar that may come with it.
JOB_MAX_BYTES = 2 * 1024 * 1024
# Between the values of a spec: small ones take time and memory by their number.
COMMAS_MAX = 100_000
# 3000-01-01. Far beyond any use, and well within what dates can show in every time zone.
NOT_BEFORE_MAX_MS = 32_503_680_000_000


class Submission(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /api/v2/jobs`. `context` is a tar in base64; a multipart part of that name does the same."""

    kind: str
    spec: msgspec.Raw
    context: str | None = None
    priority: int = 0
    not_before: datetime | None = None
    labels: dict[str, str] = {}

    def fields(self) -> Json:
        """`spec`, decoded only within a bound: a document of many small values takes many times its size in memory."""
        if len(self.spec) > JOB_MAX_BYTES:
            raise too_large("spec", JOB_MAX_BYTES, "send files as the context of the request")
        if bytes(self.spec).count(b",") > COMMAS_MAX:
            raise Permanent(ErrorCode.TOO_LARGE, f"spec has more than {COMMAS_MAX} commas; no job needs that")
        try:
            return msgspec.json.decode(self.spec, type=Json)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise invalid(f"spec is not valid: {error}") from None


def parse_submission(body: bytearray) -> Submission:
    """Decode the JSON. Raises `Permanent(invalid)` that names the field."""
    try:
        return msgspec.json.decode(body, type=Submission)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(f"the job is not valid: {error}") from None


def with_options(job: NewJob, submission: Submission, idempotency_key: str | None) -> NewJob:
    """`job` with what the submission says besides its spec."""
    if not PRIORITY_MIN <= submission.priority <= PRIORITY_MAX:
        raise invalid(f"priority must be between {PRIORITY_MIN} and {PRIORITY_MAX}")
    _check_labels(submission.labels)
    _check_key(idempotency_key)
    return msgspec.structs.replace(
        job,
        priority=submission.priority,
        not_before_ms=_epoch_ms(submission.not_before),
        labels=submission.labels,
        idempotency_key=idempotency_key,
    )


def _check_key(key: str | None) -> None:
    if key is not None and not (0 < len(key) <= IDEMPOTENCY_KEY_MAX_CHARS and key.isascii() and key.isprintable()):
        raise invalid(f"Idempotency-Key must be 1 to {IDEMPOTENCY_KEY_MAX_CHARS} printable ASCII characters")


def _check_labels(labels: dict[str, str]) -> None:
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


def _epoch_ms(at: datetime | None) -> int | None:
    if at is None:
        return None
    if at.tzinfo is None:
        raise invalid("not_before must carry a time zone, for example 2030-01-31T06:00:00Z")
    at_ms = int(at.timestamp() * 1000)
    if not 0 <= at_ms <= NOT_BEFORE_MAX_MS:
        raise invalid(f"not_before must lie between {iso(0)} and {iso(NOT_BEFORE_MAX_MS)}")
    return at_ms
