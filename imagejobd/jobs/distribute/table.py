"""How each copy of a distribution ended, as the job's checkpoint keeps it: one record for each image and target.

From these a later attempt knows what it need not do again, and an API what became of each endpoint.

What of one distribution is done, going on and failed: image by image, target by target, in memory.

It answers three questions: what is left to do, how far it is, and how it ended. It writes nowhere.

Everything that a running distribution tells the store: log, history, progress, checkpoint.

The copies themselves never wait for the disk: what they tell is gathered here and written by one loop. What a crash
takes is asked of the targets again.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import to_builtins
from msgspec.structs import replace

from imagejobd.jobs.distribute.spec import DistributeSpec, Image, Place
from imagejobd.model.clock import now_ms as wall_clock_ms
from imagejobd.model.errors import ErrorCode, Fault, Permanent, Temporary
from imagejobd.model.job import Job, Json, State
from imagejobd.registry.copy.outcome import Outcome, TagState, Tally

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


# Targets that an error names, and characters of what each says.
NAMED_MAX = 5
ERROR_MAX_CHARS = 400

_BYTES = ("sent_bytes", "mounted_bytes", "skipped_bytes", "total_bytes")


class CopyTable:
    """`records` are those of earlier attempts; `now_ms` is the wall clock."""

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
        self._records: dict[str, Json] = {}
        self._live: list[dict[int, Tally]] = [{} for _ in spec.targets]
        self._ended: list[dict[int, Record]] = [{} for _ in spec.targets]
        self._tried: dict[tuple[int, int], int] = {}
        for image in range(len(images)):
            for target in range(len(spec.targets)):
                if record := records.get(record_key(image, target)):
                    self._keep(image, target, record)

    @property
    def records(self) -> dict[str, Json]:
        """How everything has ended so far, as the checkpoint keeps it."""
        return dict(self._records)

    def place(self, image: int, target: int) -> Place:
        """Where an image goes at a target."""
        return self._places[target][image]

    def left(self, image: int) -> list[int]:
        """The targets that this image still has to go to: neither there, nor known to be beyond help."""
        return [
            target
            for target, ended in enumerate(self._ended)
            if (record := ended.get(image)) is None or not (record.is_done or record.is_final)
        ]

    def wait(self, image: int, target: int) -> Wait:
        """What a copy that is left waits for since it failed."""
        record = self._ended[target].get(image)
        return record.wait if record is not None else NO_WAIT

    def order(self) -> list[int]:
        """The images, first those that were tried least: of those that failed before some may fail again, and look like
        a target that is down."""
        return sorted(range(len(self.images)), key=self._tries)

    def _tries(self, image: int) -> int:
        """By how many attempts it was tried at the target that tried it least."""
        ended = (self._ended[target].get(image) for target in self.left(image))
        return min((record.tries if record else 0 for record in ended), default=0)

    def pinned(self, image: int) -> str | None:
        """The source's digest of what a target has of this image already, so that all targets get the same even when
        the tag has moved since. A digest that no target got pins nothing: the source may have lost it meanwhile."""
        records = (ended[image] for ended in self._ended if image in ended)
        return next((record.source_digest for record in records if record.has_image), None)

    def postpone(self, image: int, target: int, error: str, wait: Wait) -> None:
        """Leave a copy to the next attempt, which tries it first; `error` is why."""
        known = self._ended[target].get(image, Record(tries=0))
        self._keep(image, target, replace(known, error=error[:ERROR_MAX_CHARS], wait=wait))

    def start(self, image: int, targets: Sequence[int]) -> list[Tally]:
        """Fresh tallies for copies that begin; they are watched until their copies end."""
        tallies = [Tally() for _ in targets]
        for target, tally in zip(targets, tallies, strict=True):
            known = self._ended[target].pop(image, None)
            self._tried[image, target] = 1 + (known.tries if known else 0)
            self._live[target][image] = tally
        return tallies

    def end(self, image: int, target: int, outcome: Outcome, error: str | None) -> Record:
        """`error` is the fault's message without secrets."""
        shown = None if error is None else error[:ERROR_MAX_CHARS]
        record = Record.of(outcome, shown, tries=self._tried.get((image, target), 1), now_ms=self.now_ms())
        self._live[target].pop(image, None)
        self._keep(image, target, record)
        return record

    def _keep(self, image: int, target: int, record: Record) -> None:
        self._ended[target][image] = record
        # Made once and not with every checkpoint: of thousands it would hold up the loop.
        self._records[record_key(image, target)] = to_builtins(record)

    def progress(self) -> Json:
        """What a job shows while it runs, and after it failed."""
        return {
            "images": len(self.images),
            "images_done": sum(all(image in ended for ended in self._ended) for image in range(len(self.images))),
            "targets": [self._standing(target) for target in range(len(self.spec.targets))],
        }

    def result(self) -> Json:
        """What a job that succeeded leaves: every image with what became of it at each target."""
        spec = self.spec
        images = [
            {"source": str(image), "digest": self._digest(number), "targets": list(self._results(number))}
            for number, image in enumerate(self.images)
        ]
        options: Json = {"dry_run": True} if spec.dry_run else {}
        if spec.platforms:
            options["platforms"] = list(spec.platforms)
        return {"source": spec.source.endpoint, **options, "images": images}

    def fault(self, is_down: Callable[[str], bool]) -> Fault | None:
        """What the attempt ends with: nothing where all is done; worth another attempt where any copy is, as soon as
        the first of them may be tried. Where every copy waits for the same host to answer, that is its peer."""
        failed = [record for ended in self._ended for record in ended.values() if not record.is_done]
        if not failed:
            return None
        message = self._failures()
        if all(record.is_final for record in failed):
            return Permanent(ErrorCode.COPY_FAILED, message)
        waits = [record.wait for record in failed if not record.is_final]
        rests_s = [wait.rest_s(self.now_ms()) for wait in waits if wait.peer is None or not is_down(wait.peer)]
        if not rests_s:
            peers = {wait.peer for wait in waits}
            return Temporary(ErrorCode.COPY_FAILED, message, peer=peers.pop() if len(peers) == 1 else None)
        return Temporary(ErrorCode.COPY_FAILED, message, retry_after_s=min(rests_s))

    def _standing(self, target: int) -> Json:
        ended, live = self._ended[target], self._live[target]
        standing: Json = {"endpoint": self.spec.targets[target].endpoint}
        if self.spec.targets[target].image is not None:
            standing["image"] = self.spec.targets[target].image
        for name in _BYTES:
            standing[name] = sum(getattr(copy, name) for copies in (ended, live) for copy in copies.values())
        errors = [record.error for record in ended.values() if record.error is not None]
        standing["done"] = len(ended) - len(errors)
        standing["failed"] = len(errors)
        if errors:
            standing["error"] = errors[0]
        return standing

    def _results(self, image: int) -> Iterator[Json]:
        for target, ended in enumerate(self._ended):
            record = ended[image]
            yield {
                "endpoint": self.spec.targets[target].endpoint,
                "image": self.place(image, target).path,
                "tags": dict(record.tags),
                "digest": record.digest,
                "sent_bytes": record.sent_bytes,
                "mounted_bytes": record.mounted_bytes,
                "skipped_bytes": record.skipped_bytes,
                "seconds": record.seconds,
            }

    def _digest(self, image: int) -> str | None:
        return next((ended[image].digest for ended in self._ended if ended[image].digest), None)

    def _failures(self) -> str:
        """`2 of 4 targets failed: <endpoint>: <first error>; …`"""
        standings = [self._standing(target) for target in range(len(self._ended))]
        failed = [standing for standing in standings if standing["failed"]]
        named = [
            f"{standing['endpoint']}: {standing['error']}"
            + (f" (and {standing['failed'] - 1} more images)" if standing["failed"] > 1 else "")
            for standing in failed[:NAMED_MAX]
        ]
        more = [f"and {len(failed) - NAMED_MAX} more"] if len(failed) > NAMED_MAX else []
        noun = "target" if len(standings) == 1 else "targets"
        return f"{len(failed)} of {len(standings)} {noun} failed: {'; '.join([*named, *more])}"
