"""How each copy of a distribution ended, as the job's checkpoint keeps it: one record for each image and target.

From these a later attempt knows what it need not do again, and an API what became of each endpoint.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from imagejobd.kinds.distribute.spec import DistributeSpec, Image
from imagejobd.model.errors import Fault, Permanent, Temporary
from imagejobd.model.job import Job
from imagejobd.model.state import State
from imagejobd.registry.copy.outcome import Outcome, TagState

# Keys of the checkpoint: the records by `record_key`, and the tags that a filter found.
OUTCOMES = "outcomes"
TAGS = "tags"

CANCELLED = "cancelled"
NOT_REACHED = "the job ended before this copy was made"


class Wait(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a copy that failed for now waits for: that `peer` answers, or the wall time `not_before_ms`, which was
    `wish_ms` away when a registry asked for it."""

    peer: str | None = None
    not_before_ms: int = 0
    wish_ms: int = 0

    @classmethod
    def of(cls, fault: Fault | None, now_ms: int) -> "Wait":
        if not isinstance(fault, Temporary) or (fault.peer is None and not fault.retry_after_s):
            return NO_WAIT
        wish_ms = int((fault.retry_after_s or 0.0) * 1000)
        return cls(fault.peer, now_ms + wish_ms if wish_ms else 0, wish_ms)

    def rest_s(self, now_ms: int) -> float:
        """The seconds left of the wish: none where there is more to wait than was asked for, because the clock has been
        set back."""
        rest_ms = self.not_before_ms - now_ms
        return rest_ms / 1000 if 0 < rest_ms <= self.wish_ms else 0.0


# One object, by which a record is known that has nothing to say of it.
NO_WAIT = Wait()


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the copy of one image to one target ended. With an `error` it is not done; `is_final` says that trying again
    cannot help. `tries` counts the attempts that tried it: 0 where the target was found to be down before.

    `source_digest` is what the source's name pointed at; with platforms another one than `digest`, the target's.
    """

    tags: dict[str, TagState] = {}
    digest: str | None = None
    source_digest: str | None = None
    total_bytes: int = 0
    sent_bytes: int = 0
    mounted_bytes: int = 0
    skipped_bytes: int = 0
    seconds: float = 0.0
    error: str | None = None
    is_final: bool = False
    tries: int = 1
    wait: Wait = NO_WAIT

    @classmethod
    def of(cls, outcome: Outcome, error: str | None, *, tries: int = 1, now_ms: int = 0) -> "Record":
        """`error` is the message of the outcome's fault, fit to be shown."""
        return cls(
            tags=outcome.tags,
            digest=outcome.digest,
            source_digest=outcome.source_digest,
            total_bytes=outcome.tally.total_bytes,
            sent_bytes=outcome.tally.sent_bytes,
            mounted_bytes=outcome.tally.mounted_bytes,
            skipped_bytes=outcome.tally.skipped_bytes,
            seconds=round(outcome.seconds, 3),
            error=error,
            is_final=isinstance(outcome.fault, Permanent),
            tries=tries,
            wait=Wait.of(outcome.fault, now_ms),
        )

    @property
    def is_done(self) -> bool:
        return self.error is None

    @property
    def has_image(self) -> bool:
        """Whether the target has the image under one name at least, also when another name failed."""
        return TagState.COPIED in self.tags.values() or TagState.IDENTICAL in self.tags.values()

    @property
    def is_skipped(self) -> bool:
        """Whether a tag that is there already, and may not be overwritten, was left as it is."""
        return self.is_done and TagState.SKIPPED in self.tags.values()


class Endpoints(msgspec.Struct, frozen=True):
    """Target endpoints, as they were sent, by what became of them; one that is under way is in none.

    `skipped` are those where at least one tag was left as it is and nothing failed. `failed` come with the first error,
    also those that will be tried again.
    """

    finished: list[str]
    skipped: list[str]
    failed: list[tuple[str, str]]


def endpoints(job: Job) -> Endpoints:
    """What became of the endpoints of a distribution so far. `job` is whole, with its checkpoint."""
    spec = msgspec.convert(job.spec, DistributeSpec)
    records = records_of(job.checkpoint)
    images = image_count(spec, job.checkpoint)
    told = Endpoints([], [], [])
    for index, target in enumerate(spec.targets):
        own = [record for image in range(images) if (record := records.get(record_key(image, index)))]
        error = next((record.error for record in own if record.error is not None), None)
        is_whole = 0 < images == len(own)
        if error is None and not is_whole and job.finished_ms is not None:
            error = _why(job)
        if error is not None:
            told.failed.append((target.endpoint, error))
        elif is_whole:
            ended = told.skipped if any(record.is_skipped for record in own) else told.finished
            ended.append(target.endpoint)
    return told


def record_key(image: int, target: int) -> str:
    """The key of a record: the places of image and target in their lists."""
    return f"{image}.{target}"


def records_of(checkpoint: Mapping[str, Any]) -> dict[str, Record]:
    return msgspec.convert(checkpoint.get(OUTCOMES, {}), dict[str, Record])


def image_count(spec: DistributeSpec, checkpoint: Mapping[str, Any]) -> int:
    """How many images are copied; 0 while a filter has not found them yet."""
    if spec.source.tags is not None:
        return len(checkpoint.get(TAGS, ()))
    return len(spec.source.images) or 1


def found_images(spec: DistributeSpec, checkpoint: Mapping[str, Any]) -> tuple[Image, ...]:
    """All images to copy, in a stable order; empty while a filter has not found them yet."""
    if spec.source.tags is None:
        return spec.source.listed
    path = spec.source.repository or ""
    return tuple(Image(path, tag) for tag in checkpoint.get(TAGS, ()))


def _why(job: Job) -> str:
    """Why a target of a job that has ended has no outcome."""
    if job.error is not None:
        return job.error.message
    return CANCELLED if job.state is State.CANCELLED else NOT_REACHED
