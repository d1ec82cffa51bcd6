"""The verdict of the soak sees each broken promise, and no other."""

import pytest

from soak.load import Ending, Job, Order, Records
from soak.verdict import COUNTED, ENDED_TWICE, FAILED, LOST, MADE_TWICE, QUARANTINED, REFUSED, Findings, Row, judge_jobs

UUID = "01a1ffde-2710-777c-b1c5-29530827aa06"


def row(state: str = "succeeded", *, error: str = "", ends: int = 1) -> Row:
    return Row(UUID, 7, "build", state, {}, error, error and "why", ends)


def job(name: str = UUID, *, errors: tuple[str, ...] = (), seen: str = "", cancelled: bool = False) -> Job:
    order = Order("/api/v2/jobs", {}, Ending(errors=frozenset(errors)))
    return Job(name, order, first_end=seen, was_cancelled=cancelled)


CLEAN = {
    "succeeds": (job(), row()),
    "seen-by-number": (job("7", seen="succeeded"), row()),
    "fails-as-it-had-to": (job(errors=("denied",)), row("failed", error="denied")),
    "cancelled-on-demand": (job(cancelled=True), row("cancelled")),
    "done-before-the-cancel": (job(cancelled=True), row()),
}
BROKEN = {
    "unknown": (job("8"), row(), LOST),
    "still-queued": (job(), row("queued", ends=0), LOST),
    "two-ends": (job(), row(ends=2), ENDED_TWICE),
    "another-end-than-was-seen": (job(seen="failed"), row(), ENDED_TWICE),
    "quarantined": (job(), row("failed", error="quarantined"), QUARANTINED),
    "failed": (job(), row("failed", error="engine_unavailable"), FAILED),
    "a-defect": (job(), row("failed", error="internal"), FAILED),
    "failed-in-another-way": (job(errors=("denied",)), row("failed", error="timeout"), FAILED),
    "succeeded-where-it-must-not": (job(errors=("denied",)), row(), FAILED),
    "cancelled-by-nobody": (job(), row("cancelled"), FAILED),
}


def judged(acknowledged: Job, found: Row) -> dict[str, int]:
    findings = Findings()
    judge_jobs(findings, Records(jobs=[acknowledged]), [found])
    return {title: findings.count(title) for title in COUNTED if findings.count(title)}


@pytest.mark.parametrize(("acknowledged", "found"), CLEAN.values(), ids=CLEAN.keys())
def test_kept_promise(acknowledged: Job, found: Row) -> None:
    """A job that ended as it had to, or as its client wished, is counted nowhere."""
    assert judged(acknowledged, found) == {}


@pytest.mark.parametrize(("acknowledged", "found", "title"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_promise(acknowledged: Job, found: Row, title: str) -> None:
    """A broken promise is counted once, under its own name."""
    assert judged(acknowledged, found) == {title: 1}


def test_what_clients_tell() -> None:
    """Refusals of good requests, and second jobs for one key, are counted."""
    findings = Findings()
    judge_jobs(findings, Records(refused=["/run: 400"], doubled=["a again as b"]), [])
    assert (findings.count(REFUSED), findings.count(MADE_TWICE)) == (1, 1)
    assert not findings.is_clean


def test_unacknowledged_jobs_count_too() -> None:
    """A job whose acknowledgement was lost is held for guilty of nothing either."""
    findings = Findings()
    judge_jobs(findings, Records(), [row("failed", error="quarantined")])
    assert findings.count(QUARANTINED) == 1


def test_findings_show_the_log() -> None:
    """A finding about a job comes with the daemon's last lines about it."""
    findings = Findings()
    findings.add(LOST, f"{UUID} is lost")
    lines = list(findings.lines(f'event="job started" job={UUID}\nevent=other\n'))
    assert lines == [f"lost: {UUID} is lost", f'    event="job started" job={UUID}']
