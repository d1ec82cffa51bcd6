"""What of one distribution is done, under way and failed: a record for each image and target.

The records are the job's checkpoint: from them a later attempt knows what it need not do again, and an API what became
of each endpoint. Nothing here does I/O.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import to_builtins
from msgspec.structs import replace

from imagejobd.jobs.distribute.spec import DistributeSpec, Image, Place
from imagejobd.model.clock import now_ms as wall_clock_ms
from imagejobd.model.errors import ErrorCode, Fault, Permanent, Temporary
from imagejobd.model.job import Job, Json, State
from imagejobd.registry.copy.target import Outcome, TagState, Tally

# Keys of the checkpoint: the records by `record_key`, and the tags that match the filter.
OUTCOMES = "outcomes"
TAGS = "tags"

CANCELLED = "cancelled"
NOT_REACHED = "the job ended before this copy was made"

# Targets that an error names, and characters of what each says.
FAILURES_NAMED_MAX = 5
ERROR_MAX_CHARS = 400

_BYTES = ("sent_bytes", "mounted_bytes", "skipped_bytes", "total_bytes")


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


# One object: `omit_defaults` knows a default by its identity.
NO_WAIT = Wait()


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the copy of one image to one target ended. With an `error` it is not done; `is_final` says that trying again
    cannot help. `tries` counts the attempts that tried it: 0 where the target was known to be down before.

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
        """`error` is the message of the outcome's fault without secrets."""
        return cls(
            **{name: getattr(outcome.tally, name) for name in _BYTES},
            tags=outcome.tags,
            digest=outcome.digest,
            source_digest=outcome.source_digest,
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

    def is_skipped(self, *, overwrite: bool) -> bool:
        """Whether a tag that was there already, and may not be overwritten, was left as it is. The same image under it
        is a skip too, as in the original, but after an earlier attempt: that may have put it there."""
        states = self.tags.values()
        is_same = TagState.IDENTICAL in states and not overwrite and self.tries == 1
        return self.is_done and (is_same or TagState.SKIPPED in states)


class Endpoints(msgspec.Struct, frozen=True):
    """Target endpoints, as they were sent, by what became of them; one that is under way is in none.

    `skipped` are those where at least one tag was left as it is and nothing failed. `failed` come with the first error,
    also those that will be tried again.
    """

    finished: list[str]
    skipped: list[str]
    failed: list[tuple[str, str]]


class CopyTable:
    """All copies of one attempt, image by image and target by target. `records` are those of earlier attempts; `now_ms`
    is the wall clock."""

    def __init__(
        self,
        spec: DistributeSpec,
        images: Sequence[Image],
        records: Mapping[str, Record],
        *,
        now_ms: Callable[[], int] = wall_clock_ms,
    ) -> None:
        self.now_ms = now_ms
        self.spec = spec
        self.images = images
        self._places = [target.places(images) for target in spec.targets]
        self._checkpoint: dict[str, Json] = {}
        self._live: list[dict[int, Tally]] = [{} for _ in spec.targets]
        self._records: list[dict[int, Record]] = [{} for _ in spec.targets]
        self._tries: dict[tuple[int, int], int] = {}
        for image in range(len(images)):
            for target in range(len(spec.targets)):
                if record := records.get(record_key(image, target)):
                    self._put(image, target, record)

    @property
    def checkpoint(self) -> dict[str, Json]:
        """How everything has ended so far, as the checkpoint holds it."""
        return dict(self._checkpoint)

    def place(self, image: int, target: int) -> Place:
        """Where an image goes at a target."""
        return self._places[target][image]

    def remaining(self, image: int) -> list[int]:
        """The targets that this image still has to go to: neither there, nor known to be beyond help."""
        return [
            target
            for target, records in enumerate(self._records)
            if (record := records.get(image)) is None or not (record.is_done or record.is_final)
        ]

    def wait(self, image: int, target: int) -> Wait:
        """What a remaining copy waits for since it failed."""
        record = self._records[target].get(image)
        return record.wait if record is not None else NO_WAIT

    def order(self) -> list[int]:
        """The images, first those that were tried least: of those that failed before some may fail again, and look like
        a target that is down."""

        def tries(image: int) -> int:
            records = (self._records[target].get(image) for target in self.remaining(image))
            return min((record.tries if record else 0 for record in records), default=0)

        return sorted(range(len(self.images)), key=tries)

    def pinned_digest(self, image: int) -> str | None:
        """The source's digest of what a target has of this image already, so that all targets get the same even when
        the tag has moved since. A digest that no target got pins nothing: the source may have lost it meanwhile."""
        records = (records[image] for records in self._records if image in records)
        return next((record.source_digest for record in records if record.has_image), None)

    def postpone(self, image: int, target: int, error: str, wait: Wait) -> None:
        """Leave a copy to the next attempt, which tries it first; `error` is why."""
        record = self._records[target].get(image, Record(tries=0))
        self._put(image, target, replace(record, error=error[:ERROR_MAX_CHARS], wait=wait))

    def start(self, image: int, targets: Sequence[int]) -> list[Tally]:
        """Fresh tallies for copies that begin; they are watched until their copies end."""
        tallies = [Tally() for _ in targets]
        for target, tally in zip(targets, tallies, strict=True):
            record = self._records[target].pop(image, None)
            self._tries[image, target] = 1 + (record.tries if record else 0)
            self._live[target][image] = tally
        return tallies

    def end(self, image: int, target: int, outcome: Outcome, error: str | None) -> Record:
        """`error` is the fault's message without secrets."""
        error = None if error is None else error[:ERROR_MAX_CHARS]
        record = Record.of(outcome, error, tries=self._tries.get((image, target), 1), now_ms=self.now_ms())
        self._live[target].pop(image, None)
        self._put(image, target, record)
        return record

    def progress(self) -> Json:
        """What a job shows while it runs, and after it failed."""
        images = range(len(self.images))
        return {
            "images": len(self.images),
            "images_done": sum(all(image in records for records in self._records) for image in images),
            "targets": [self._progress_of(target) for target in range(len(self.spec.targets))],
        }

    def result(self) -> Json:
        """What a job that succeeded leaves: every image with what became of it at each target."""
        images = []
        for number, image in enumerate(self.images):
            records = [by_image[number] for by_image in self._records]
            targets = [
                {
                    "endpoint": self.spec.targets[target].endpoint,
                    "image": self.place(number, target).path,
                    "tags": dict(record.tags),
                    "digest": record.digest,
                    "sent_bytes": record.sent_bytes,
                    "mounted_bytes": record.mounted_bytes,
                    "skipped_bytes": record.skipped_bytes,
                    "seconds": record.seconds,
                }
                for target, record in enumerate(records)
            ]
            digest = next((record.digest for record in records if record.digest), None)
            images.append({"source": str(image), "digest": digest, "targets": targets})
        options: Json = {"dry_run": True} if self.spec.dry_run else {}
        if self.spec.platforms:
            options["platforms"] = list(self.spec.platforms)
        return {"source": self.spec.source.endpoint, **options, "images": images}

    def fault(self, is_down: Callable[[str], bool]) -> Fault | None:
        """What the attempt ends with: nothing where all is done; worth another attempt where any copy is, as soon as
        the first of them may be tried. Where every copy waits for the same host to answer, that is its peer."""
        failures = [record for records in self._records for record in records.values() if not record.is_done]
        if not failures:
            return None
        message = self._message()
        if all(record.is_final for record in failures):
            return Permanent(ErrorCode.COPY_FAILED, message)
        waits = [record.wait for record in failures if not record.is_final]
        rests_s = [wait.rest_s(self.now_ms()) for wait in waits if wait.peer is None or not is_down(wait.peer)]
        if rests_s:
            return Temporary(ErrorCode.COPY_FAILED, message, retry_after_s=min(rests_s))
        peers = {wait.peer for wait in waits}
        return Temporary(ErrorCode.COPY_FAILED, message, peer=peers.pop() if len(peers) == 1 else None)

    def _put(self, image: int, target: int, record: Record) -> None:
        self._records[target][image] = record
        # Made once and not with every checkpoint: of thousands it would hold up the loop.
        self._checkpoint[record_key(image, target)] = to_builtins(record)

    def _progress_of(self, target: int) -> Json:
        records, live = self._records[target], self._live[target]
        progress: Json = {"endpoint": self.spec.targets[target].endpoint}
        if self.spec.targets[target].image is not None:
            progress["image"] = self.spec.targets[target].image
        for name in _BYTES:
            progress[name] = sum(getattr(copy, name) for copies in (records, live) for copy in copies.values())
        errors = [record.error for record in records.values() if record.error is not None]
        progress["done"] = len(records) - len(errors)
        progress["failed"] = len(errors)
        if errors:
            progress["error"] = errors[0]
        return progress

    def _message(self) -> str:
        """`2 of 4 targets failed: <endpoint>: <first error>; …`"""
        targets = [self._progress_of(target) for target in range(len(self.spec.targets))]
        failures = [target for target in targets if target["failed"]]
        lines = [
            f"{target['endpoint']}: {target['error']}"
            + (f" (and {more} more image{'s' if more > 1 else ''})" if (more := target["failed"] - 1) else "")
            for target in failures[:FAILURES_NAMED_MAX]
        ]
        if len(failures) > FAILURES_NAMED_MAX:
            lines.append(f"and {len(failures) - FAILURES_NAMED_MAX} more")
        noun = "target" if len(targets) == 1 else "targets"
        return f"{len(failures)} of {len(targets)} {noun} failed: {'; '.join(lines)}"


def endpoints(job: Job) -> Endpoints:
    """What became of the endpoints of a distribution so far. `job` is whole, with its checkpoint."""
    spec = msgspec.convert(job.spec, DistributeSpec)
    records = records_of(job.checkpoint)
    image_count = len(job.checkpoint.get(TAGS, ())) if spec.source.tags is not None else len(spec.source.images) or 1
    by_outcome = Endpoints([], [], [])
    for index, target in enumerate(spec.targets):
        copies = [record for image in range(image_count) if (record := records.get(record_key(image, index)))]
        error = next((record.error for record in copies if record.error is not None), None)
        is_whole = 0 < image_count == len(copies)
        if error is None and not is_whole and job.finished_ms is not None:
            error = _job_error(job)
        if error is not None:
            by_outcome.failed.append((target.endpoint, error))
        elif is_whole and any(record.is_skipped(overwrite=target.overwrite) for record in copies):
            by_outcome.skipped.append(target.endpoint)
        elif is_whole:
            by_outcome.finished.append(target.endpoint)
    return by_outcome


def record_key(image: int, target: int) -> str:
    """The key of a record: the places of image and target in their lists."""
    return f"{image}.{target}"


def records_of(checkpoint: Mapping[str, Any]) -> dict[str, Record]:
    return msgspec.convert(checkpoint.get(OUTCOMES, {}), dict[str, Record])


def images_of(spec: DistributeSpec, checkpoint: Mapping[str, Any]) -> tuple[Image, ...]:
    """All images to copy, in a stable order; empty while the tags that match a filter have not been listed yet."""
    if spec.source.tags is None:
        return spec.source.listed
    path = spec.source.repository or ""
    return tuple(Image(path, tag) for tag in checkpoint.get(TAGS, ()))


def _job_error(job: Job) -> str:
    """Why a target of a job that has ended has no outcome."""
    if job.error is not None:
        return job.error.message
    return CANCELLED if job.state is State.CANCELLED else NOT_REACHED
