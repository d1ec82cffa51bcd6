"""A scheduled run that is due when the daemon starts comes once, wherever a crash cuts that start."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest
from click.testing import CliRunner

from harness.box import Box
from harness.client import Fields
from harness.waiting import until
from imagejobd.cli import main

YEARLY = """
[[schedule]]
name = "yearly"
cron = "0 0 1 1 *"
timezone = "Europe/Berlin"
kind = "build"
labels = { team = "web" }
[schedule.spec]
image = "registry.example/a"
dockerfile = "FROM scratch"
"""
TWO_YEARS_MS = 2 * 366 * 24 * 3600 * 1000


@pytest.fixture
def box() -> Iterator[Box]:
    """A daemon that has stopped two years ago, so that it has missed a run or two; its engine is away."""
    box = Box()
    configuration = box.daemon.config_file.read_text()
    box.daemon.config_file.write_text(configuration + YEARLY)
    with box:
        until(lambda: box.daemon.sqlite("select name from schedule"), what="the schedule to begin")
        box.daemon.kill()
        with closing(sqlite3.connect(box.daemon.database_file)) as db, db:
            db.execute("update schedule set settled_ms = settled_ms - ?", (TWO_YEARS_MS,))
        yield box


def runs(box: Box) -> list[Fields]:
    """The schedule's jobs."""
    found: list[Fields] = box.call("GET", "/api/v2/jobs?label=schedule=yearly").json["jobs"]
    return found


def shown(box: Box) -> Fields:
    """The schedule, as the API shows it."""
    [schedule] = box.call("GET", "/api/v2/schedules").json["schedules"]
    return dict(schedule)


def test_a_missed_run_comes_once(box: Box) -> None:
    """After the start, and no more after further ones; API and client show it, and what became of it."""
    box.daemon.start()
    until(lambda: runs(box), what="the missed run")
    box.restart()
    until(lambda: shown(box)["next_run"], what="the schedule to be there again")
    [job] = runs(box)
    assert (job["tenant"], job["submitter"]) == ("local", {"name": "schedule:yearly"})
    assert job["labels"] == {"schedule": "yearly", "team": "web"}
    assert box.cancel(job["id"]) in (200, 202)
    box.ended(job["id"])
    schedule = shown(box)
    assert schedule["last_run"].endswith("-12-31T23:00:00.000+00:00")
    assert (schedule["job"], schedule["state"], schedule["last_skipped"]) == (job["id"], "cancelled", None)
    table = CliRunner().invoke(main, ["schedules"], env={"IMAGEJOBD_URL": box.daemon.url})
    assert [cell for cell in table.stdout.rstrip("\n").split("\t") if cell][:3] == ["yearly", "build", "cancelled"]
    as_json = CliRunner().invoke(main, ["schedules", "--json"], env={"IMAGEJOBD_URL": box.daemon.url})
    assert json.loads(as_json.stdout) == {"schedules": [schedule]}
    box.check_healthy()


@pytest.mark.parametrize("place", ["before_commit", "after_commit"])
@pytest.mark.parametrize("number", range(2, 7))
def test_a_crash_in_any_commit_of_the_start(box: Box, place: str, number: int) -> None:
    """The run is neither lost nor doubled."""
    box.daemon.spawn(failpoints=f"{place}:{number}")
    count = "select count(*) from job"
    until(lambda: not box.daemon.is_running or box.daemon.sqlite(count) == [(1,)], what="the run, or the crash")
    box.daemon.kill()
    box.daemon.start()
    until(lambda: box.daemon.sqlite(count) == [(1,)], what="the run")
    box.restart()
    until(lambda: shown(box)["job"], what="the schedule to be there again")
    assert [job["id"] for job in runs(box)] == [shown(box)["job"]]
    box.check_healthy()
