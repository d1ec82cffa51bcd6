"""Targets that do not answer, or want to be left alone, cost the others neither time nor a second copy."""

import datetime as dt

from harness.distribute_box import DistributeBox, check_copied, has_tag, registry_of, source, target
from harness.images import put_image
from harness.proxy import Answer, FaultProxy
from harness.registry import Registry
from harness.waiting import until
from imagejobd.jobs.distribute.copies import IMAGES_AT_ONCE
from imagejobd.registry.limits import TRIES_MAX

IMAGES = 24
UNHURRIED = {"retry_first_s": 3.0, "retry_max_s": 3.0}


def test_a_dead_target_is_found_out_once(origin: Registry, mirrors: tuple[Registry, ...], path: str) -> None:
    """Of many images only those under way meet the dead registry, in this job and the next; what the others have is
    not copied again, and the dead one gets everything when it is back."""
    names = [f"{path}:{n}" for n in range(IMAGES)]
    images = [put_image(origin, path, str(n), seed=f"{path}{n}") for n in range(IMAGES)]
    with Registry() as returning, FaultProxy(mirrors[0].host) as counting, DistributeBox(limits=UNHURRIED) as box:
        returning.stop()
        many = registry_of(origin, images=names)
        first = box.distribute(many, [target(returning), target(counting)])
        until(lambda: all(has_tag(mirrors[0], path, str(n)) for n in range(IMAGES)), what="the others")
        until(lambda: "the other images wait for the next attempt" in box.log(first), what="the log")
        assert box.log(first).count("failed for now") <= IMAGES_AT_ONCE
        later = []

        def is_told() -> bool:
            """Whether a job is told so. Who comes when a pause is over is the trial, and finds out by himself."""
            later.append(box.distribute(source(origin, path, "0"), [target(returning)]))
            until(lambda: box.job(later[-1])["error"] is not None, what="a later job to be told")
            return "known from an earlier request" in box.job(later[-1])["error"]["message"]

        until(is_told, what="a job to which the outage is known")
        returning.start()
        for job in (first, *later):
            box.succeeded(job)
        for number, image in enumerate(images):
            check_copied(image, origin, path, returning, ref=str(number))
        assert len(counting.seen("PUT", ".*/manifests/[0-9]+")) == IMAGES


def test_a_long_wish_is_one_targets_own(origin: Registry, mirrors: tuple[Registry, ...], path: str) -> None:
    """A target that fails for a moment is tried again at once, though another one wants an hour for itself and gets
    it."""
    image = put_image(origin, path, "1", seed=path)
    with FaultProxy(mirrors[0].host) as busy, FaultProxy(mirrors[1].host) as hasty, DistributeBox() as box:
        busy.add(".*", ".*", Answer(429, {"Retry-After": "3600"}), times=None)
        hasty.add("HEAD", ".*", Answer(503), times=TRIES_MAX)
        uuid = box.distribute(source(origin, path), [target(busy), target(hasty)])
        until(lambda: has_tag(mirrors[1], path), what="the target that failed for a moment")
        until(lambda: box.job(uuid)["state"] == "queued", what="the attempt to end")
        job = box.job(uuid)
        assert job["attempt"] == 2
        rest = dt.datetime.fromisoformat(job["not_before"]) - dt.datetime.now(dt.UTC)
        assert dt.timedelta(minutes=50) < rest <= dt.timedelta(hours=1)
        assert len({seen.path for seen in busy.requests if seen.method == "HEAD"}) == 1
        check_copied(image, origin, path, mirrors[1])
        assert box.cancel(uuid) in (200, 202)
