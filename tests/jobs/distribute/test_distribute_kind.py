"""A distribution from claim to ending, on a real store: what is copied, stored, reported, and tried again."""

import asyncio
from typing import Any

import msgspec
import pytest
from distribution_bench import DIGEST, GONE, SOURCE_DIGEST, DistributionBench, Say, ScriptedCopy

from imagejobd.jobs.distribute import copies as copies_module
from imagejobd.jobs.distribute import kind as kind_module
from imagejobd.jobs.distribute.kind import DistributeKind
from imagejobd.jobs.distribute.table import Endpoints
from imagejobd.model.errors import ErrorCode, Fault, Permanent, Temporary
from imagejobd.model.job import Job, Json, State
from imagejobd.model.secrets import Credentials, Secret
from imagejobd.registry.copy.image import Options
from imagejobd.registry.copy.target import TagState, Tally
from imagejobd.runner.context import AttemptContext
from imagejobd.store.protocol import Capacity
from runner.runner_bench import QUICK

SPEC: Json = {
    "source": {"endpoint": "https://a.example/v2/", "image": "team/app", "ref": "1.0"},
    "targets": [{"endpoint": "b.example"}, {"endpoint": "http://c.example/", "image": "x/y", "tags": ["1", "latest"]}],
}
IMAGES: Json = {
    "source": {"endpoint": "a.example", "images": [f"app:{n}" for n in range(20)]},
    "targets": [{"endpoint": "b.example"}, {"endpoint": "c.example"}],
}
DOWN = Temporary(ErrorCode.REGISTRY_UNAVAILABLE, "registry c.example: it is down")
DENIED = Permanent(ErrorCode.DENIED, "registry c.example: no")
AUTH = {"url": "https://auth.example/t?k=qu3ry", "header": {"X-Key": "h3ader-word"}, "json": {"p": "b0dy-word"}}


async def test_success(bench: DistributionBench) -> None:
    """Each image goes to each target under its names; the result says what became of every tag, byte and second."""
    job = await bench.run(bench.kind(ScriptedCopy()), SPEC)
    assert (job.state, job.error, job.attempt) == (State.SUCCEEDED, None, 1)
    assert bench.copy.asked == [
        ("a.example/team/app", "1.0", ["b.example/team/app:1.0", "c.example/x/y:1,latest"], Options())
    ]
    figures = {"digest": DIGEST, "sent_bytes": 100, "mounted_bytes": 0, "skipped_bytes": 0, "seconds": 0.5}
    first = {"endpoint": "b.example", "image": "team/app", "tags": {"1.0": "copied"}, **figures}
    second = {"endpoint": "http://c.example/", "image": "x/y", "tags": {"1": "copied", "latest": "copied"}, **figures}
    assert job.result == {
        "source": "https://a.example/v2/",
        "images": [{"source": "team/app:1.0", "digest": DIGEST, "targets": [first, second]}],
    }
    assert await bench.endpoints(job) == Endpoints(["b.example", "http://c.example/"], [], [])
    assert [phase.name for phase in await bench.store.phases(job.id)] == ["copying"]


async def test_progress_history_and_log(bench: DistributionBench) -> None:
    """A job that has ended shows its bytes per target, a row for each copy, and a log for people."""
    job = await bench.run(bench.kind(ScriptedCopy()), SPEC)
    figures = {"sent_bytes": 100, "mounted_bytes": 0, "skipped_bytes": 0, "total_bytes": 100, "done": 1, "failed": 0}
    assert job.progress == {
        "percent": 100,
        "images": 1,
        "images_done": 1,
        "targets": [{"endpoint": "b.example", **figures}, {"endpoint": "http://c.example/", "image": "x/y", **figures}],
    }
    first, second = await bench.store.pushes(job.id)
    assert (first.registry, first.repository, second.registry, second.repository) == (
        *("b.example", "team/app"),
        *("c.example:80", "x/y"),
    )
    assert (first.source, first.tags, first.digest) == ("team/app:1.0", {"1.0": "copied"}, DIGEST)
    assert (first.sent_bytes, first.seconds, first.tries) == (100, 0.5, 1)
    log = await bench.log_of(job.uuid)
    assert f"team/app:1.0 to b.example team/app: 1.0 copied; {DIGEST}; 100 bytes sent" in log


async def test_only_what_failed_is_tried_again(bench: DistributionBench) -> None:
    """A target that fails for now does not hold up the others, and the next attempt goes straight to it."""
    job = await bench.run(bench.kind(ScriptedCopy(**{"c.example": [DOWN]})), SPEC)
    assert (job.state, job.attempt) == (State.SUCCEEDED, 2)
    assert [asked.targets for asked in bench.copy.asked] == [
        ["b.example/team/app:1.0", "c.example/x/y:1,latest"],
        ["c.example/x/y:1,latest"],
    ]
    assert "failed for now" in await bench.log_of(job.uuid)


@pytest.mark.parametrize("platforms", [[], ["linux/amd64"]])
async def test_a_later_attempt_copies_the_same_image(bench: DistributionBench, platforms: list[str]) -> None:
    """The tag may have moved meanwhile; all targets get what the first attempt found, as the source has it: an index
    that was rewritten for some platforms is nowhere to be read."""
    copy = ScriptedCopy(**{"c.example": [DOWN, DOWN]})
    copy.source_digest = SOURCE_DIGEST
    job = await bench.run(bench.kind(copy), {**SPEC, "platforms": platforms})
    assert [asked.name for asked in bench.copy.asked] == ["1.0", SOURCE_DIGEST, SOURCE_DIGEST]
    assert job.state is State.SUCCEEDED
    assert job.result is not None
    assert job.result.get("platforms", []) == platforms


@pytest.mark.parametrize("state", [TagState.SKIPPED, TagState.WANTED])
async def test_what_no_target_has_pins_nothing(bench: DistributionBench, state: TagState) -> None:
    """A digest that was found, and is at no target, may be gone from the source by the next attempt."""
    copy = ScriptedCopy(**{"c.example": [DOWN]})
    copy.state = state
    await bench.run(bench.kind(copy), SPEC)
    assert [asked.name for asked in copy.asked] == ["1.0", "1.0"]


async def test_a_pinned_image_is_gone(bench: DistributionBench) -> None:
    """The tag may be there, with another image; the targets that are left do not get that one, and are told why."""
    copy = ScriptedCopy(**{"c.example": [DOWN, GONE]})
    job = await bench.run(bench.kind(copy), SPEC)
    assert (job.state, job.attempt) == (State.FAILED, 2)
    by_outcome = await bench.endpoints(job)
    assert by_outcome.finished == ["b.example"]
    ((endpoint, error),) = by_outcome.failed
    assert endpoint == "http://c.example/"
    assert f"team/app:1.0 was {DIGEST} when other targets got it, and the source no longer has that" in error


async def test_what_was_never_found_is_not_called_gone(bench: DistributionBench) -> None:
    """A tag that the source does not have is told as the source tells it."""
    job = await bench.run(bench.kind(ScriptedCopy(**{"b.example": [GONE], "c.example": [GONE]})), SPEC)
    assert (await bench.endpoints(job)).failed == [("b.example", GONE.message), ("http://c.example/", GONE.message)]


async def test_a_target_that_is_down_costs_two_images(
    bench: DistributionBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others of this attempt are not tried there, and go to the other targets; the next attempt tries them."""
    monkeypatch.setattr(copies_module, "IMAGES_AT_ONCE", 1)
    copy = ScriptedCopy(**{"c.example": [DOWN] * 4})
    job = await bench.run(bench.kind(copy), IMAGES)
    names = [str(n) for n in range(20)]
    assert (job.state, job.attempt) == (State.SUCCEEDED, 3)
    assert copy.asked_of("b.example") == names
    # Those that were not tried yet go first.
    assert copy.asked_of("c.example") == ["0", "1", "2", "3", *names[4:], *names[:4]]
    log = await bench.log_of(job.uuid)
    assert log.count("c.example: the other images wait for the next attempt: registry c.example: it is down") == 1
    # What the second attempt would have repeated is not said again.
    assert log.count("failed for now") == 2
    pushes = await bench.store.pushes(job.id)
    assert [push.tries for push in pushes if push.registry == "c.example"] == [2] * 4 + [1] * 16


async def test_images_under_way_are_not_given_up(bench: DistributionBench) -> None:
    """What was begun before the target was found to be down is told as it ends; nothing more is begun."""
    copy = ScriptedCopy(**{"c.example": [DOWN] * 20})
    limits = msgspec.structs.replace(QUICK, retry_for_s=0.0)

    async def pause(say: Say, tally: Tally) -> None:
        await asyncio.sleep(0)

    copy.before_end = pause
    job = await bench.run(bench.kind(copy), IMAGES, limits=limits)
    assert 2 <= sum(len(asked.targets) == 2 for asked in copy.asked) <= 16
    by_outcome = await bench.endpoints(job)
    assert (by_outcome.finished, by_outcome.failed) == (["b.example"], [("c.example", DOWN.message)])
    _, down = job.progress["targets"]
    assert (down["done"], down["failed"], down["error"]) == (0, 20, DOWN.message)
    assert job.progress["images_done"] == 20


@pytest.mark.parametrize("between", [None, DENIED, Temporary(ErrorCode.COPY_FAILED, "cut")])
async def test_only_failures_in_a_row_count(
    bench: DistributionBench, monkeypatch: pytest.MonkeyPatch, between: Fault | None
) -> None:
    """A target that answers in between is not down, whatever it says."""
    monkeypatch.setattr(copies_module, "IMAGES_AT_ONCE", 1)
    copy = ScriptedCopy(**{"c.example": [DOWN, between] * 9})
    await bench.run(bench.kind(copy), IMAGES, limits=msgspec.structs.replace(QUICK, retry_for_s=0.0))
    assert len(copy.asked_of("c.example")) == 20


async def test_a_second_cancel_loses_nothing(bench: DistributionBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancel while the last outcomes are on their way to the store waits for them, like the first."""
    copy = ScriptedCopy()
    copy.is_stuck = {"c.example"}
    kind = bench.kind(copy)
    made = await bench.submit(kind, SPEC)
    saving, may_save = asyncio.Event(), asyncio.Event()
    record_pushes = bench.store.record_pushes

    async def slow_record(*arguments: Any) -> None:
        saving.set()
        await may_save.wait()
        await record_pushes(*arguments)

    monkeypatch.setattr(bench.store, "record_pushes", slow_record)
    (claim,) = await bench.store.claim("w1", Capacity({kind.name: 1}, 1))
    ctx = AttemptContext(bench.store, claim, log_max_bytes=1_000_000)
    running = asyncio.create_task(kind.run(ctx))
    await saving.wait()
    for _ in range(3):
        running.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
    assert not running.done()
    may_save.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (await bench.endpoints(await bench.job(made.uuid))).finished == ["b.example"]


async def test_what_failed_for_good_is_not_tried_again(bench: DistributionBench) -> None:
    """With one target denied and one down, only the second is tried until the time is over."""
    copy = ScriptedCopy(**{"b.example": [DENIED], "c.example": [DOWN] * 1000})
    job = await bench.run(bench.kind(copy), SPEC, limits=msgspec.structs.replace(QUICK, retry_for_s=0.1))
    # How many attempts there is time for is the machine's; the first fault alone never ends the job.
    assert job.state is State.FAILED
    assert job.attempt >= 2
    assert [len(asked.targets) for asked in copy.asked] == [2] + [1] * (job.attempt - 1)
    assert job.error is not None
    assert job.error.code is ErrorCode.COPY_FAILED
    assert "2 of 2 targets failed: b.example: registry c.example: no; http://c.example/: " in job.error.message
    assert (await bench.endpoints(job)).failed == [("b.example", DENIED.message), ("http://c.example/", DOWN.message)]
    assert job.result is None
    standings = [(row["done"], row["failed"], row["error"]) for row in job.progress["targets"]]
    assert standings == [(0, 1, DENIED.message), (0, 1, DOWN.message)]


async def test_only_permanent_faults_end_at_once(bench: DistributionBench) -> None:
    """Nothing is left that another attempt could do; what was done stays done and is shown."""
    job = await bench.run(bench.kind(ScriptedCopy(**{"c.example": [DENIED]})), SPEC)
    assert (job.state, job.attempt, job.result) == (State.FAILED, 1, None)
    assert job.error is not None
    assert (job.error.code, job.error.message.partition(":")[0]) == (ErrorCode.COPY_FAILED, "1 of 2 targets failed")
    by_outcome = await bench.endpoints(job)
    assert (by_outcome.finished, by_outcome.failed) == (["b.example"], [("http://c.example/", DENIED.message)])
    done, failed = job.progress["targets"]
    assert (done["done"], done["failed"], failed["done"], failed["failed"]) == (1, 0, 0, 1)
    assert failed["error"] == DENIED.message


async def test_skipped_targets_are_no_failure(bench: DistributionBench) -> None:
    """A tag that is there already leaves the job succeeded and its endpoint skipped."""
    copy = ScriptedCopy()
    copy.state = TagState.SKIPPED
    job = await bench.run(bench.kind(copy), SPEC)
    assert job.state is State.SUCCEEDED
    assert (await bench.endpoints(job)).skipped == ["b.example", "http://c.example/"]


async def test_many_images_at_once_and_bounded(bench: DistributionBench) -> None:
    """Images are copied several at a time, never more than the bound, and all of them."""
    running, most = 0, 0

    async def count(say: Say, tally: Tally) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    copy = ScriptedCopy()
    copy.before_end = count
    job = await bench.run(bench.kind(copy), IMAGES)
    assert job.result is not None
    assert [image["source"] for image in job.result["images"]] == IMAGES["source"]["images"]
    assert sorted(asked.name for asked in copy.asked) == sorted(str(n) for n in range(20))
    assert most == 8
    assert len(bench.registries.connections) == 3


async def test_a_dry_run_says_so(bench: DistributionBench) -> None:
    """The options reach the copy, and the result says that nothing was written."""
    copy = ScriptedCopy()
    copy.state = TagState.WANTED
    job = await bench.run(bench.kind(copy), {**SPEC, "dry_run": True, "referrers": True})
    assert copy.asked[0].options == Options(dry_run=True, referrers=True)
    assert job.result is not None
    assert job.result["dry_run"] is True
    assert job.result["images"][0]["targets"][0]["tags"] == {"1.0": "wanted"}
    assert "team/app:1.0 to b.example team/app: dry run: 1.0 would be copied; " in await bench.log_of(job.uuid)


async def test_a_cancelled_job_keeps_what_was_done(bench: DistributionBench) -> None:
    """Copies stop at once; what had ended is kept, and the rest is told as cancelled."""
    copy = ScriptedCopy()
    copy.is_stuck = {"c.example"}
    kind = bench.kind(copy)
    made = await bench.submit(kind, SPEC)
    async with bench.running(kind):  # type: ignore[arg-type]
        await bench.when(made.uuid, lambda job: bool(job.progress.get("targets", [{}])[0].get("done")))
        await bench.store.request_cancel(made.uuid, tenant=None)
        job = await bench.ended(made.uuid)
    assert job.state is State.CANCELLED
    by_outcome = await bench.endpoints(job)
    assert (by_outcome.finished, by_outcome.failed) == (["b.example"], [("http://c.example/", "cancelled")])


async def test_a_copy_that_stalls_is_tried_again(bench: DistributionBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copying that brings nothing for the limit is stopped and tried again by itself; what was done is done."""
    copy = ScriptedCopy()
    copy.is_stuck = {"c.example"}
    limits = msgspec.structs.replace(QUICK, retry_for_s=0.0)
    monkeypatch.setattr(kind_module, "STALL_TIMEOUT_S", 1.0)
    job = await bench.run(bench.kind(copy), SPEC, limits=limits)
    assert job.error is not None
    assert (job.state, job.error.code) == (State.FAILED, ErrorCode.TIMEOUT)
    assert (
        "waited for https://a.example/v2/, b.example, http://c.example/ for 1 s without progress" in job.error.message
    )
    assert "gave up after 1 attempts" in job.error.message
    by_outcome = await bench.endpoints(job)
    assert (by_outcome.finished, by_outcome.failed) == (["b.example"], [("http://c.example/", job.error.message)])


async def test_a_copy_may_take_as_long_as_it_makes_progress(bench: DistributionBench) -> None:
    """The time limit of jobs does not end a distribution."""
    copy = ScriptedCopy()

    async def take_long(_say: Say, tally: Tally) -> None:
        await asyncio.sleep(0.1)

    copy.before_end = take_long
    job = await bench.run(bench.kind(copy), SPEC, limits=msgspec.structs.replace(QUICK, job_timeout_s=0.01))
    assert (job.state, job.attempt) == (State.SUCCEEDED, 1)


async def test_a_target_that_is_known_to_be_down_is_left_out(bench: DistributionBench) -> None:
    """Nobody knocks there, the others get everything, and what is left waits for that very host."""
    kind = bench.kind(ScriptedCopy())
    bench.registries.circuits.failed("c.example", "registry c.example: nobody is there")
    fault, job = await one_attempt(bench, kind, IMAGES)
    assert isinstance(fault, Temporary)
    assert (fault.peer, fault.retry_after_s) == ("c.example", None)
    assert (len(bench.copy.asked_of("b.example")), bench.copy.asked_of("c.example")) == (20, [])
    assert (await bench.endpoints(job)).finished == ["b.example"]
    bench.registries.circuits.answered("c.example")
    assert (await one_attempt(bench, kind, IMAGES, job))[0] is None
    assert (len(bench.copy.asked_of("b.example")), len(bench.copy.asked_of("c.example"))) == (20, 20)


async def test_a_retry_after_is_its_targets_own(bench: DistributionBench) -> None:
    """A target that asks for an hour gets it, for all images; one that fails for a moment is tried meanwhile."""
    busy = Temporary(ErrorCode.REGISTRY_UNAVAILABLE, "registry b.example: busy", retry_after_s=3600.0)
    kind = bench.kind(ScriptedCopy(**{"b.example": [busy] * 8, "c.example": [DOWN]}))
    fault, job = await one_attempt(bench, kind, IMAGES)
    assert isinstance(fault, Temporary)
    assert fault.retry_after_s == 0.0
    assert len(bench.copy.asked_of("b.example")) <= 8
    bench.copy.asked.clear()
    fault, job = await one_attempt(bench, kind, IMAGES, job)
    assert isinstance(fault, Temporary)
    assert 3500 < (fault.retry_after_s or 0) <= 3600
    assert (bench.copy.asked_of("b.example"), len(bench.copy.asked_of("c.example"))) == ([], 1)
    assert (await bench.endpoints(job)).finished == ["c.example"]


async def one_attempt(
    bench: DistributionBench, kind: DistributeKind, spec: Json, job: Job | None = None
) -> tuple[Fault | None, Job]:
    """What one attempt at a new job, or at `job`, ends with."""
    if job is None:
        made = await bench.submit(kind, spec)
        (claim,) = await bench.store.claim("w1", Capacity({kind.name: 1}, 1))
    else:
        made, claim = job, msgspec.structs.replace(bench.claim, job=job)
    bench.claim = claim
    fault = None
    try:
        await kind.run(AttemptContext(bench.store, claim, log_max_bytes=1_000_000))
    except Fault as raised:
        fault = raised
    return fault, await bench.job(made.uuid)


async def test_what_a_crash_interrupts_goes_on(bench: DistributionBench) -> None:
    """After a crash the outcomes that were saved are not copied again."""
    copy = ScriptedCopy()
    copy.is_stuck = {"c.example"}
    kind = bench.kind(copy)
    made = await bench.submit(kind, SPEC)
    async with bench.running(kind, worker="w1"):  # type: ignore[arg-type]
        await bench.pushes(made, 1)
        halfway = await bench.job(made.uuid)
    assert (await bench.endpoints(halfway)).finished == ["b.example"]
    assert (await bench.endpoints(halfway)).failed == []
    await bench.store.rescue("w2", crashes_max=3)
    copy.is_stuck = set()
    async with bench.running(kind, worker="w2"):  # type: ignore[arg-type]
        job = await bench.ended(made.uuid)
    assert job.state is State.SUCCEEDED
    assert copy.asked[-1].targets == ["c.example/x/y:1,latest"]


async def test_no_secret_is_shown_anywhere(bench: DistributionBench) -> None:
    """What a peer echoes of a login, sent or configured, is masked in log, history, progress, result and error."""
    words = ("qu3ry", "h3ader-word", "b0dy-word", "p4ssword", "conf1gured")
    echo = "you sent " + " ".join(words)

    async def gossip(say: Say, tally: Tally) -> None:
        await say(echo)
        bench.registries.connections[0].warn(echo)

    copy = ScriptedCopy(**{"c.example": [Permanent(ErrorCode.DENIED, echo)]})
    copy.before_end = gossip
    source = {**SPEC["source"], "auth": AUTH}
    basic = {"basicauth": {"user": "me", "password": "p4ssword"}}
    targets = [{**SPEC["targets"][0], "auth": basic}, SPEC["targets"][1]]
    kind = bench.kind(copy, Credentials("op", Secret("conf1gured")))
    job = await bench.run(kind, {"source": source, "targets": targets})
    events = await bench.store.changes_since(0, job_id=job.id, limit=100)
    log = await bench.log_of(job.uuid)
    shown = repr(job) + log + repr(events)
    assert "you sent ********" in log
    assert "warning: you sent" in log
    for word in words:
        assert word not in shown
    logins = [connection.site.login for connection in bench.registries.connections]
    assert isinstance(logins[1], Credentials)
    assert logins[1].password.reveal() == "p4ssword"


async def test_a_log_stays_readable(bench: DistributionBench) -> None:
    """What a login only asks for is no secret: the names of services are in every other line."""
    words = "the registry of team/app wants pull"
    copy = ScriptedCopy()

    async def gossip(say: Say, tally: Tally) -> None:
        await say(words)

    copy.before_end = gossip
    auth = {"url": "https://auth.example", "json": {"service": "registry", "scope": "team/app", "do": "pull"}}
    job = await bench.run(bench.kind(copy), {**SPEC, "source": {**SPEC["source"], "auth": auth}})
    assert words in await bench.log_of(job.uuid)


async def test_logins_of_mirrors_are_secret(bench: DistributionBench) -> None:
    """The source is read from its mirrors too, which have logins of their own."""
    copy = ScriptedCopy(**{"b.example": [Permanent(ErrorCode.DENIED, "you sent m1rror-word")]})
    kind = bench.kind(copy, Credentials("op", Secret("m1rror-word")), "mirror.example")
    spec = {**SPEC, "source": {**SPEC["source"], "endpoint": "mirrored.example"}}
    job = await bench.run(kind, spec)
    assert "m1rror-word" not in repr(job) + await bench.log_of(job.uuid)


async def test_faults_of_the_store_are_not_outcomes(bench: DistributionBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk stops the attempt, and no target is blamed for it."""
    full = Temporary(ErrorCode.STORAGE_FULL, "the disk is full")

    async def record_pushes(*arguments: Any) -> None:
        raise full

    monkeypatch.setattr(bench.store, "record_pushes", record_pushes)
    copy = ScriptedCopy()
    copy.is_stuck = {"c.example"}
    limits = msgspec.structs.replace(QUICK, retry_for_s=0.0)
    job = await bench.run(bench.kind(copy), SPEC, limits=limits)
    assert job.error is not None
    assert job.error.code is ErrorCode.STORAGE_FULL
    why = job.error.message
    assert (await bench.endpoints(job)).failed == [("b.example", why), ("http://c.example/", why)]


async def test_uploads_are_refused(bench: DistributionBench) -> None:
    """A distribution takes no file."""
    kind = bench.kind(ScriptedCopy())

    async def body() -> Any:
        yield b""

    with pytest.raises(Permanent, match="takes no file"):
        await kind.receive(body(), {})
    assert await kind.leftovers() == set()
