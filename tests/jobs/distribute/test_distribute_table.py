"""What is done, under way and failed, and what became of each endpoint of a job as it is stored."""

from typing import Any

import msgspec
import pytest

from imagejobd.jobs.distribute.spec import DistributeSpec, Image, parse
from imagejobd.jobs.distribute.table import CopyTable, Endpoints, endpoints, images_of, wait_of
from imagejobd.model.errors import ErrorCode, Fault, Permanent, Temporary
from imagejobd.model.job import Job, JobError, Push, State, Wait
from imagejobd.registry.copy.target import Outcome, TagState, Tally

ONE = {"source": {"endpoint": "a", "image": "app", "ref": "1"}, "targets": [{"endpoint": "b/v2/"}, {"endpoint": "c"}]}
FILTER = {**ONE, "source": {"endpoint": "a", "image": "app", "tags": {"newest": 2}}}
COPIED: dict[str, Any] = {"tags": {"1": "copied"}}
SAME: dict[str, Any] = {"tags": {"1": "identical"}}
SKIPPED: dict[str, Any] = {"tags": {"1": "skipped"}}
BROKEN: dict[str, Any] = {"tags": {"1": "wanted"}, "error": "it broke"}


def busy(wish_s: float) -> Temporary:
    return Temporary(ErrorCode.REGISTRY_UNAVAILABLE, "busy", retry_after_s=wish_s)


def down(peer: str | None) -> Temporary:
    return Temporary(ErrorCode.REGISTRY_UNAVAILABLE, "down", peer=peer)


def is_up(host: str) -> bool:
    return False


def job_of(spec: dict[str, Any], state: State, **fields: Any) -> Job:
    empty: dict[str, Any] = dict.fromkeys(Job.__struct_fields__)
    known = {"spec": parse(spec).spec, "state": state, "checkpoint": {}}
    return Job(**(empty | known | {"finished_ms": 1 if state.is_final else None} | fields))


def pushes_of(outcomes: dict[tuple[int, int], dict[str, Any]]) -> list[Push]:
    """Rows by image and target."""
    place = {"registry": "r.example", "repository": "app"}
    return [Push(image=image, target=target, **place, **fields) for (image, target), fields in outcomes.items()]


@pytest.mark.parametrize(
    ("state", "outcomes", "expected"),
    [
        (State.QUEUED, {}, Endpoints([], [], [])),
        (State.RUNNING, {(0, 0): COPIED}, Endpoints(["b/v2/"], [], [])),
        (State.RUNNING, {(0, 0): SKIPPED, (0, 1): BROKEN}, Endpoints([], ["b/v2/"], [("c", "it broke")])),
        (State.SUCCEEDED, {(0, 0): COPIED, (0, 1): SAME}, Endpoints(["b/v2/"], ["c"], [])),
        (State.FAILED, {(0, 0): COPIED, (0, 1): BROKEN}, Endpoints(["b/v2/"], [], [("c", "it broke")])),
        (State.FAILED, {}, Endpoints([], [], [("b/v2/", "no luck"), ("c", "no luck")])),
        (State.CANCELLED, {(0, 1): COPIED}, Endpoints(["c"], [], [("b/v2/", "cancelled")])),
    ],
)
def test_endpoints(state: State, outcomes: dict[tuple[int, int], Any], expected: Endpoints) -> None:
    """Endpoints come back as they were sent; those without an outcome share the job's own error."""
    error = JobError(ErrorCode.TIMEOUT, "no luck") if state is State.FAILED else None
    assert endpoints(job_of(ONE, state, error=error), pushes_of(outcomes)) == expected


@pytest.mark.parametrize(
    ("record", "overwrite", "is_skipped"),
    [
        (SAME, False, True),
        (SAME, True, False),
        (SAME | {"tries": 2}, False, False),
        (SKIPPED | {"tries": 2}, False, True),
        ({"tags": {"1": "copied", "2": "identical"}}, False, True),
        (COPIED, False, False),
    ],
)
def test_what_is_there_already(record: dict[str, Any], overwrite: bool, is_skipped: bool) -> None:
    """The same tag is a skip where it may not be overwritten, unless an earlier attempt may have put it there."""
    spec = {**ONE, "targets": [{"endpoint": "b", "overwrite": overwrite}]}
    expected = Endpoints([], ["b"], []) if is_skipped else Endpoints(["b"], [], [])
    assert endpoints(job_of(spec, State.SUCCEEDED), pushes_of({(0, 0): record})) == expected


def test_an_endpoint_is_finished_when_all_its_images_are() -> None:
    """With several images an endpoint is done with the last of them, skipped with one of them, failed with one too."""
    job = job_of(FILTER, State.RUNNING, checkpoint={"tags": ["1", "2"]})
    outcomes = {(0, 0): COPIED, (0, 1): COPIED, (1, 1): SKIPPED}
    assert endpoints(job, pushes_of(outcomes)) == Endpoints([], ["c"], [])
    outcomes |= {(1, 0): COPIED, (1, 1): BROKEN}
    assert endpoints(job, pushes_of(outcomes)) == Endpoints(["b/v2/"], [], [("c", "it broke")])


def test_nothing_is_finished_before_the_listing() -> None:
    """While a filter has found nothing yet, no endpoint is done."""
    assert endpoints(job_of(FILTER, State.RUNNING), []) == Endpoints([], [], [])


def spec_of(spec: dict[str, Any]) -> DistributeSpec:
    return msgspec.json.decode(msgspec.json.encode(parse(spec).spec), type=DistributeSpec)


@pytest.mark.parametrize(("after_crash", "is_skipped"), [(False, True), (True, False)])
def test_what_a_crash_took_is_not_taken_for_a_skip(after_crash: bool, is_skipped: bool) -> None:
    """A tag that is the same already may be what this job had copied when the daemon died."""
    table = CopyTable(spec_of(ONE), [Image("app", "1")], after_crash=after_crash)
    outcome = Outcome(tags={"1": TagState.IDENTICAL}, digest="d", tally=Tally(), seconds=1.0)
    pushes = [table.end(0, target, outcome, None) for target in (0, 1)]
    assert bool(endpoints(job_of(ONE, State.SUCCEEDED), pushes).skipped) == is_skipped


def test_how_a_copy_ended() -> None:
    """A push has the figures and the kind of fault of its outcome, and is handed out once for the store."""
    table = CopyTable(spec_of(ONE), [Image("app", "1")])
    tally = Tally(total_bytes=6, sent_bytes=3, mounted_bytes=2, skipped_bytes=1)
    fault = Permanent(ErrorCode.DENIED, "secret")
    outcome = Outcome(tags={"1": TagState.WANTED}, digest="d", tally=tally, seconds=1.23456, fault=fault)
    push = table.end(0, 1, outcome, "sho\0wn \x1b[31m\n\udc80")
    assert (push.error, push.is_final, push.is_done, push.seconds) == ("sho wn [31m", True, False, 1.235)
    assert (push.total_bytes, push.sent_bytes, push.mounted_bytes, push.skipped_bytes) == (6, 3, 2, 1)
    assert (push.source, push.repository, push.tags, push.tries) == ("app:1", "app", {"1": "wanted"}, 1)
    assert table.take_changes() == [push]
    assert table.take_changes() == []


@pytest.mark.parametrize(
    ("endpoint", "registry"),
    [
        ("127.0.0.1:5001", "127.0.0.1:5001"),
        ("http://127.0.0.1:5001", "127.0.0.1:5001"),
        ("http://127.0.0.1:5001/v2/", "127.0.0.1:5001"),
        ("https://R.example:443/v2", "r.example"),
        ("r.example", "r.example"),
        ("http://r.example", "r.example:80"),
        ("https://index.docker.io", "docker.io"),
    ],
)
def test_a_registry_has_one_name(endpoint: str, registry: str) -> None:
    """However a target's endpoint is written, the history has its registry under one name."""
    table = CopyTable(spec_of({**ONE, "targets": [{"endpoint": endpoint}]}), [Image("app", "1")])
    table.postpone(0, 0, "down", Wait())
    assert [push.registry for push in table.take_changes()] == [registry]


def table_of(count: int, faults: dict[int, Any], targets: int = 8, **clock: Any) -> CopyTable:
    """A table of `count` images where each copy to the targets in `faults` failed so."""
    spec = spec_of({**ONE, "targets": [{"endpoint": f"t{n}"} for n in range(targets)]})
    table = CopyTable(spec, [Image("app", str(n)) for n in range(count)], **clock)
    for image in range(count):
        table.start(image, range(targets))
        for target in range(targets):
            fault = faults.get(target)
            outcome = Outcome(tags={}, digest=None, tally=Tally(), seconds=0.0, fault=fault)
            table.end(image, target, outcome, fault and fault.message)
    return table


@pytest.mark.parametrize(
    ("faults", "rest_s", "peer"),
    [
        ([busy(500), busy(3600), busy(700)], 500.0, None),
        ([busy(500), down("d.example"), busy(700)], 500.0, None),
        ([busy(500), down(None)], 0.0, None),
        ([down("d.example"), down("e.example")], None, None),
        ([down("d.example"), down("up.example")], 0.0, None),
        ([down("d.example"), Permanent(ErrorCode.DENIED, "no")], None, "d.example"),
    ],
    ids=["wishes", "wish-and-down", "no-wish", "all-down", "up-again", "final"],
)
def test_when_to_try_again(faults: list[Fault], rest_s: float | None, peer: str | None) -> None:
    """The next attempt comes when the first copy may be tried, whatever others ask for; where all that is left waits
    for hosts that do not answer, it waits for one of these."""
    table = table_of(1, dict(enumerate(faults)), now_ms=lambda: 1_000)
    fault = table.fault(lambda host: host != "up.example")
    assert isinstance(fault, Temporary)
    assert (fault.code, fault.retry_after_s, fault.peer) == (ErrorCode.COPY_FAILED, rest_s, peer)


@pytest.mark.parametrize(
    ("passed_s", "rest_s"), [(0, 60.0), (59, 1.0), (60, 0.0), (-3600, 0.0)], ids=["now", "soon", "over", "set-back"]
)
def test_a_wish_is_no_longer_than_it_was(passed_s: int, rest_s: float) -> None:
    """A clock that is set back delays nothing beyond what a registry asked for."""
    wait = wait_of(busy(60), 10_000_000)
    assert wait.rest_s(10_000_000 + passed_s * 1000) == rest_s


def test_the_summary_is_bounded() -> None:
    """An error names a few targets and counts the rest, however many failed and however much they have to say."""
    fault = table_of(3, {n: Permanent(ErrorCode.DENIED, "x" * 9999) for n in range(7)}).fault(is_up)
    assert isinstance(fault, Permanent)
    assert fault.message.startswith("7 of 8 targets failed: t0: xxx")
    assert "(and 2 more images)" in fault.message
    assert fault.message.endswith("; and 2 more")
    assert len(fault.message) < 3000
    fault = table_of(2, {0: Permanent(ErrorCode.DENIED, "no")}).fault(is_up)
    assert isinstance(fault, Permanent)
    assert fault.message.endswith(" failed: t0: no (and 1 more image)")


def test_all_is_well() -> None:
    """Without a failure there is no fault, and nothing is left to do."""
    table = table_of(2, {})
    assert table.fault(is_up) is None
    assert table.remaining(0) == table.remaining(1) == []


def test_those_that_were_tried_least_go_first() -> None:
    """What was postponed is tried before what failed, attempt after attempt, and what is done does not count."""
    spec = spec_of({**ONE, "targets": [{"endpoint": "t"}, {"endpoint": "u"}]})
    images = [Image("app", str(n)) for n in range(4)]
    down = Temporary(ErrorCode.REGISTRY_UNAVAILABLE, "down")
    pushes: dict[tuple[int, int], Push] = {}
    for tried in ([0, 1], [2], [3, 0]):
        table = CopyTable(spec, images, pushes.values())
        assert table.order()[: len(tried)] == tried
        for image in range(4):
            if image in tried:
                table.start(image, [1])
                table.end(image, 1, outcome_of({"1": TagState.WANTED}, fault=down), "down")
            else:
                table.postpone(image, 1, "x" * 9999, Wait())
            table.end(image, 0, outcome_of({"1": TagState.COPIED}), None)
        pushes |= {(push.image, push.target): push for push in table.take_changes()}
        assert all(table.remaining(image) == [1] for image in range(4))
    assert [pushes[image, 1].tries for image in range(4)] == [2, 1, 1, 1]
    assert len(pushes[1, 1].error or "") == 400


@pytest.mark.parametrize(
    ("states", "fault", "pinned"),
    [
        ([TagState.COPIED], None, "s"),
        ([TagState.IDENTICAL], None, "s"),
        ([TagState.COPIED, TagState.WANTED], Permanent(ErrorCode.DENIED, "no"), "s"),
        ([TagState.WANTED], Permanent(ErrorCode.DENIED, "no"), None),
        ([TagState.SKIPPED], None, None),
    ],
)
def test_pinned(states: list[TagState], fault: Any, pinned: str | None) -> None:
    """What one target has under one name, all others get; what no target has is looked up anew."""
    table = CopyTable(spec_of(ONE), [Image("app", "1")])
    table.start(0, [0])
    tags = {str(number): state for number, state in enumerate(states)}
    table.end(0, 0, outcome_of(tags, fault=fault), fault and fault.message)
    assert table.pinned_digest(0) == pinned


def outcome_of(tags: dict[str, TagState], fault: Any = None) -> Outcome:
    return Outcome(tags=tags, digest="d", source_digest="s", tally=Tally(), seconds=0.0, fault=fault)


def test_images_are_those_of_the_checkpoint() -> None:
    """The tags that the first attempt found are the images of all attempts, in that order."""
    images = images_of(spec_of(FILTER), {"tags": ["2", "1"]})
    assert images == (Image("app", "2"), Image("app", "1"))
