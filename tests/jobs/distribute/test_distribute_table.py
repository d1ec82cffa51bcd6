"""What is done, under way and failed, and what became of each endpoint of a job as it is stored."""

from typing import Any

import msgspec
import pytest

from imagejobd.jobs.distribute.spec import DistributeSpec, Image, parse
from imagejobd.jobs.distribute.table import (
    OUTCOMES,
    CopyTable,
    Endpoints,
    Record,
    Wait,
    endpoints,
    images_of,
    record_key,
    records_of,
)
from imagejobd.model.errors import ErrorCode, Fault, Permanent, Temporary
from imagejobd.model.job import Job, JobError, State
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


def job_of(spec: dict[str, Any], state: State, outcomes: dict[str, Any], **fields: Any) -> Job:
    checkpoint = {"outcomes": outcomes, **fields.pop("checkpoint", {})}
    empty: dict[str, Any] = dict.fromkeys(Job.__struct_fields__)
    known = {"spec": parse(spec).spec, "state": state, "checkpoint": checkpoint}
    return Job(**(empty | known | {"finished_ms": 1 if state.is_final else None} | fields))


@pytest.mark.parametrize(
    ("state", "outcomes", "expected"),
    [
        (State.QUEUED, {}, Endpoints([], [], [])),
        (State.RUNNING, {"0.0": COPIED}, Endpoints(["b/v2/"], [], [])),
        (State.RUNNING, {"0.0": SKIPPED, "0.1": BROKEN}, Endpoints([], ["b/v2/"], [("c", "it broke")])),
        (State.SUCCEEDED, {"0.0": COPIED, "0.1": SAME}, Endpoints(["b/v2/", "c"], [], [])),
        (State.FAILED, {"0.0": COPIED, "0.1": BROKEN}, Endpoints(["b/v2/"], [], [("c", "it broke")])),
        (State.FAILED, {}, Endpoints([], [], [("b/v2/", "no luck"), ("c", "no luck")])),
        (State.CANCELLED, {"0.1": COPIED}, Endpoints(["c"], [], [("b/v2/", "cancelled")])),
    ],
)
def test_endpoints(state: State, outcomes: dict[str, Any], expected: Endpoints) -> None:
    """Endpoints come back as they were sent; those without an outcome share the job's own error."""
    error = JobError(ErrorCode.TIMEOUT, "no luck") if state is State.FAILED else None
    assert endpoints(job_of(ONE, state, outcomes, error=error)) == expected


def test_an_endpoint_is_finished_when_all_its_images_are() -> None:
    """With several images an endpoint is done with the last of them, skipped with one of them, failed with one too."""
    found = {"checkpoint": {"tags": ["1", "2"]}}
    outcomes = {"0.0": COPIED, "0.1": COPIED, "1.1": SKIPPED}
    assert endpoints(job_of(FILTER, State.RUNNING, outcomes, **found)) == Endpoints([], ["c"], [])
    outcomes |= {"1.0": COPIED, "1.1": BROKEN}
    assert endpoints(job_of(FILTER, State.RUNNING, outcomes, **found)) == Endpoints(["b/v2/"], [], [("c", "it broke")])


def test_nothing_is_finished_before_the_listing() -> None:
    """While a filter has found nothing yet, no endpoint is done."""
    assert endpoints(job_of(FILTER, State.RUNNING, {})) == Endpoints([], [], [])


def spec_of(spec: dict[str, Any]) -> DistributeSpec:
    return msgspec.json.decode(msgspec.json.encode(parse(spec).spec), type=DistributeSpec)


def test_records_survive_the_checkpoint() -> None:
    """What is kept of an outcome comes back the same, its figures and its kind of fault included."""
    tally = Tally(total_bytes=6, sent_bytes=3, mounted_bytes=2, skipped_bytes=1)
    fault = Permanent(ErrorCode.DENIED, "secret")
    outcome = Outcome(tags={"1": TagState.WANTED}, digest="d", tally=tally, seconds=1.23456, fault=fault)
    record = Record.of(outcome, "shown")
    assert (record.error, record.is_final, record.is_done, record.seconds) == ("shown", True, False, 1.235)
    assert (record.total_bytes, record.sent_bytes, record.mounted_bytes, record.skipped_bytes) == (6, 3, 2, 1)
    assert msgspec.json.decode(msgspec.json.encode(record), type=Record) == record


def table_of(count: int, faults: dict[int, Any], targets: int = 8, **clock: Any) -> CopyTable:
    """A table of `count` images where each copy to the targets in `faults` failed so."""
    spec = spec_of({**ONE, "targets": [{"endpoint": f"t{n}"} for n in range(targets)]})
    table = CopyTable(spec, [Image("app", str(n)) for n in range(count)], {}, **clock)
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
    wait = Wait.of(busy(60), 10_000_000)
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
    records: dict[str, Record] = {}
    for tried in ([0, 1], [2], [3, 0]):
        table = CopyTable(spec, images, records)
        assert table.order()[: len(tried)] == tried
        for image in range(4):
            if image in tried:
                table.start(image, [1])
                table.end(image, 1, outcome_of({"1": TagState.WANTED}, fault=down), "down")
            else:
                table.postpone(image, 1, "x" * 9999, Wait())
            table.end(image, 0, outcome_of({"1": TagState.COPIED}), None)
        records = records_of(msgspec.json.decode(msgspec.json.encode({OUTCOMES: table.checkpoint})))
        assert all(table.remaining(image) == [1] for image in range(4))
    assert [records[f"{image}.1"].tries for image in range(4)] == [2, 1, 1, 1]
    assert len(records["1.1"].error or "") == 400


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
    table = CopyTable(spec_of(ONE), [Image("app", "1")], {})
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
    assert record_key(1, 0) == "1.0"
