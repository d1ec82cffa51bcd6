"""Rows as values: the one place that knows which column of a job is which field."""

from sqlite3 import Row

import msgspec

from imagejobd.model.errors import ErrorCode
from imagejobd.model.job import Job, JobError, JobId, Json, State

_json = msgspec.json.Decoder(Json)
_labels = msgspec.json.Decoder(dict[str, str])
_names = msgspec.json.Decoder(tuple[str, ...])


def job(row: Row) -> Job:
    """A job from a row with all columns of its table."""
    return Job(
        id=JobId(row["id"]),
        uuid=row["uuid"],
        kind=row["kind"],
        tenant=row["tenant"],
        client=row["client"],
        submitter=_json.decode(row["submitter"]),
        spec=_json.decode(row["spec"]),
        state=State(row["state"]),
        phase=row["phase"],
        progress=_json.decode(row["progress"]),
        checkpoint=_json.decode(row["checkpoint"]),
        result=None if row["result"] is None else _json.decode(row["result"]),
        error=None if row["error_code"] is None else JobError(ErrorCode(row["error_code"]), row["error_message"]),
        attempt=row["attempt"],
        crashes=row["crashes"],
        crashes_in_phase=row["crashes_in_phase"],
        faults=row["faults"],
        faults_since_ms=row["faults_since_ms"],
        fault_phase=row["fault_phase"],
        waits_for=row["waits_for"],
        has_secret=bool(row["has_secret"]),
        secret_names=_names.decode(row["secret_names"]),
        retry_of=row["retry_of"],
        priority=row["priority"],
        not_before_ms=row["not_before_ms"],
        labels=_labels.decode(row["labels"]),
        idempotency_key=row["idempotency_key"],
        log_bytes=row["log_bytes"],
        cancel_requested_ms=row["cancel_requested_ms"],
        worker=row["worker"],
        created_ms=row["created_ms"],
        started_ms=row["started_ms"],
        finished_ms=row["finished_ms"],
    )
