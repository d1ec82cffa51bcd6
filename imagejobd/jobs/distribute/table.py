"""What of one distribution is done, under way and failed: a push for each image and target.

The store has them as rows: from these a later attempt knows what it need not do again, and an API what became of each
endpoint. Nothing here does I/O.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from imagejobd.jobs.distribute.spec import DistributeSpec, Image, Place
from imagejobd.jobs.shared.progress import percent
from imagejobd.model.clock import now_ms as wall_clock_ms
from imagejobd.model.errors import ErrorCode, Fault, Permanent, Temporary
from imagejobd.model.job import PUSH_ERROR_MAX_CHARS, Job, Json, Push, State, Wait
from imagejobd.model.text import one_line
from imagejobd.registry.copy.target import Outcome, TagState, Tally

# Key of the checkpoint: the tags that match the filter.
TAGS = "tags"

CANCELLED = "cancelled"
NOT_REACHED = "the job ended before this copy was made"

# Targets that an error names.
FAILURES_NAMED_MAX = 5

_BYTES = ("sent_bytes", "mounted_bytes", "skipped_bytes", "total_bytes")


class Endpoints(msgspec.Struct, frozen=True):
    """Target endpoints, as they were sent, by what became of them; one that is under way is in none.

    `skipped` are those where at least one tag was left as it is and nothing failed. `failed` come with the first error,
    also those that will be tried again.
    """

    finished: list[str]
    skipped: list[str]
    failed: list[tuple[str, str]]


class CopyTable:
    """All copies of one attempt, image by image and target by target. `pushes` are those of earlier attempts; where
    one of these ended in a crash (`after_crash`), its last may be missing. `now_ms` is the wall clock."""

    def __init__(
        self,
        spec: DistributeSpec,
        images: Sequence[Image],
        pushes: Iterable[Push] = (),
        *,
        after_crash: bool = False,
        now_ms: Callable[[], int] = wall_clock_ms,
    ) -> None:
        self.now_ms = now_ms
        self._earlier_tries_min = int(after_crash)
        self.spec = spec
        self.images = images
        self._registries = [target.registry.key.removesuffix(":443") for target in spec.targets]
        self._places = [target.places(images) for target in spec.targets]
        # By target, then by image: those under way, and how the others have ended, or ended before.
        self._live: list[dict[int, Tally]] = [{} for _ in spec.targets]
        self._pushes: list[dict[int, Push]] = [{} for _ in spec.targets]
        self._changes: dict[tuple[int, int], Push] = {}
        for push in pushes:
            self._pushes[push.target][push.image] = push

    def take_changes(self) -> list[Push]:
        """What has changed since it was last asked for."""
        changes, self._changes = self._changes, {}
        return list(changes.values())

    def place(self, image: int, target: int) -> Place:
        """Where an image goes at a target."""
        return self._places[target][image]

    def remaining(self, image: int) -> list[int]:
        """The targets that this image still has to go to: neither there, nor known to be beyond help."""
        return [
            target
            for target, pushes in enumerate(self._pushes)
            if (push := pushes.get(image)) is None or not (push.is_done or push.is_final)
        ]

    def wait(self, image: int, target: int) -> Wait:
        """What a remaining copy waits for since it failed."""
        return self._push(image, target).wait

    def order(self) -> list[int]:
        """The images, first those that were tried least: of those that failed before some may fail again, and look like
        a target that is down."""

        def tries(image: int) -> int:
            return min((self._push(image, target).tries for target in self.remaining(image)), default=0)

        return sorted(range(len(self.images)), key=tries)

    def pinned_digest(self, image: int) -> str | None:
        """The source's digest of what a target has of this image already, under one name at least, so that all targets
        get the same even when the tag has moved since. A digest that no target got pins nothing: the source may have
        lost it meanwhile."""
        there = {TagState.COPIED.value, TagState.IDENTICAL.value}
        pushes = (pushes[image] for pushes in self._pushes if image in pushes)
        return next((push.source_digest for push in pushes if not there.isdisjoint(push.tags.values())), None)

    def postpone(self, image: int, target: int, error: str, wait: Wait) -> None:
        """Leave a copy to the next attempt, which tries it first; `error` is why."""
        self._put(replace(self._push(image, target), error=one_line(error, PUSH_ERROR_MAX_CHARS), wait=wait))

    def start(self, image: int, targets: Sequence[int]) -> list[Tally]:
        """Fresh tallies for copies that begin; they are watched until their copies end."""
        tallies = [Tally() for _ in targets]
        for target, tally in zip(targets, tallies, strict=True):
            self._live[target][image] = tally
        return tallies

    def end(self, image: int, target: int, outcome: Outcome, error: str | None) -> Push:
        """`error` is the fault's message without secrets."""
        self._live[target].pop(image, None)
        before = self._push(image, target)
        push = replace(
            before,
            **{name: getattr(outcome.tally, name) for name in _BYTES},
            tags=outcome.tags,
            digest=outcome.digest,
            source_digest=outcome.source_digest,
            seconds=round(outcome.seconds, 3),
            error=None if error is None else one_line(error, PUSH_ERROR_MAX_CHARS),
            is_final=isinstance(outcome.fault, Permanent),
            tries=max(before.tries, self._earlier_tries_min) + 1,
            wait=wait_of(outcome.fault, self.now_ms()),
        )
        self._put(push)
        return push

    def progress(self) -> Json:
        """What a job shows while it runs, and after it failed."""
        images = range(len(self.images))
        endings = [pushes.keys() - live.keys() for pushes, live in zip(self._pushes, self._live, strict=True)]
        live = [_share(tally) for tallies in self._live for tally in tallies.values()]
        return {
            "percent": percent(sum(map(len, endings)) + sum(live), len(images) * len(self._live)),
            "images": len(self.images),
            "images_done": sum(all(image in numbers for numbers in endings) for image in images),
            "targets": [self._progress_of(target) for target in range(len(self.spec.targets))],
        }

    def result(self) -> Json:
        """What a job that succeeded leaves: every image with what became of it at each target."""
        images = []
        for number, image in enumerate(self.images):
            pushes = [by_image[number] for by_image in self._pushes]
            targets = [
                {
                    "endpoint": self.spec.targets[target].endpoint,
                    "image": push.repository,
                    "tags": push.tags,
                    "digest": push.digest,
                    "sent_bytes": push.sent_bytes,
                    "mounted_bytes": push.mounted_bytes,
                    "skipped_bytes": push.skipped_bytes,
                    "seconds": push.seconds,
                }
                for target, push in enumerate(pushes)
            ]
            digest = next((push.digest for push in pushes if push.digest), None)
            images.append({"source": str(image), "digest": digest, "targets": targets})
        options: Json = {"dry_run": True} if self.spec.dry_run else {}
        if self.spec.platforms:
            options["platforms"] = list(self.spec.platforms)
        return {"source": self.spec.source.endpoint, **options, "images": images}

    def fault(self, is_down: Callable[[str], bool]) -> Fault | None:
        """What the attempt ends with: nothing where all is done; worth another attempt where any copy is, as soon as
        the first of them may be tried. Where every copy waits for the same host to answer, that is its peer."""
        failures = [push for pushes in self._pushes for push in pushes.values() if not push.is_done]
        if not failures:
            return None
        message = self._message()
        if all(push.is_final for push in failures):
            return Permanent(ErrorCode.COPY_FAILED, message)
        waits = [push.wait for push in failures if not push.is_final]
        rests_s = [wait.rest_s(self.now_ms()) for wait in waits if wait.peer is None or not is_down(wait.peer)]
        if rests_s:
            return Temporary(ErrorCode.COPY_FAILED, message, retry_after_s=min(rests_s))
        peers = {wait.peer for wait in waits}
        return Temporary(ErrorCode.COPY_FAILED, message, peer=peers.pop() if len(peers) == 1 else None)

    def _push(self, image: int, target: int) -> Push:
        """How a copy stands; where it has not been tried it has neither tags nor tries."""
        if (push := self._pushes[target].get(image)) is not None:
            return push
        repository, source = self.place(image, target).path, str(self.images[image])
        registry = self._registries[target]
        return Push(image=image, target=target, registry=registry, repository=repository, source=source, tries=0)

    def _put(self, push: Push) -> None:
        self._pushes[push.target][push.image] = push
        self._changes[push.image, push.target] = push

    def _progress_of(self, target: int) -> Json:
        live = self._live[target]
        pushes = [push for image, push in self._pushes[target].items() if image not in live]
        progress: Json = {"endpoint": self.spec.targets[target].endpoint}
        if self.spec.targets[target].image is not None:
            progress["image"] = self.spec.targets[target].image
        for name in _BYTES:
            progress[name] = sum(getattr(copy, name) or 0 for copy in (*pushes, *live.values()))
        errors = [push.error for push in pushes if push.error is not None]
        progress["done"] = len(pushes) - len(errors)
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


def endpoints(job: Job, pushes: Iterable[Push]) -> Endpoints:
    """What became of the endpoints of a distribution so far. `job` is whole, with its checkpoint; `pushes` were read
    after it."""
    spec = msgspec.convert(job.spec, DistributeSpec)
    image_count = len(job.checkpoint.get(TAGS, ())) if spec.source.tags is not None else len(spec.source.images) or 1
    by_target: list[list[Push]] = [[] for _ in spec.targets]
    for push in pushes:
        by_target[push.target].append(push)
    by_outcome = Endpoints([], [], [])
    for target, copies in zip(spec.targets, by_target, strict=True):
        error = next((push.error for push in copies if push.error is not None), None)
        is_whole = 0 < image_count == len(copies)
        if error is None and not is_whole and job.finished_ms is not None:
            error = _job_error(job)
        if error is not None:
            by_outcome.failed.append((target.endpoint, error))
        elif is_whole and any(_is_skip(push, overwrite=target.overwrite) for push in copies):
            by_outcome.skipped.append(target.endpoint)
        elif is_whole:
            by_outcome.finished.append(target.endpoint)
    return by_outcome


def _share(tally: Tally) -> float:
    """How much of a copy is done, from 0 to 1; its bytes are known once its manifest is."""
    done_bytes = tally.sent_bytes + tally.mounted_bytes + tally.skipped_bytes
    return min(1.0, done_bytes / tally.total_bytes) if tally.total_bytes else 0.0


def wait_of(fault: Fault | None, now_ms: int) -> Wait:
    """What a copy that ended with `fault` waits for."""
    if not isinstance(fault, Temporary):
        return Wait()
    length_ms = int((fault.retry_after_s or 0.0) * 1000)
    return Wait(fault.peer, now_ms + length_ms if length_ms else 0, length_ms)


def _is_skip(push: Push, *, overwrite: bool) -> bool:
    """Whether a tag that was there already, and may not be overwritten, was left as it is. The same image under it is a
    skip too, as in the original, but after an earlier attempt: that may have put it there."""
    states = push.tags.values()
    return TagState.SKIPPED in states or (TagState.IDENTICAL in states and not overwrite and push.tries == 1)


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
