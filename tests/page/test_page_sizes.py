"""Ten thousand jobs and two hundred thousand lines: nothing freezes, and the document stays small."""

from collections.abc import Iterator

import pytest
from browsing import WATCH_TASKS, Open, check_light
from playwright.sync_api import expect
from rows import rows_in

from bench.finished_jobs import make_history
from harness.daemon import Daemon
from imagejobd.model.clock import now_ms
from imagejobd.model.job import LOCAL_TENANT

JOBS, LINES = 10_000, 200_000


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    daemon = Daemon()
    make_history(daemon.database_file, JOBS, now_ms(), tenant=LOCAL_TENANT)
    with daemon:
        yield daemon


def test_ten_thousand_jobs(daemon: Daemon, open_page: Open) -> None:
    """The newest are there at once, the oldest when scrolled to or looked for; the document holds what is in view."""
    page = open_page(daemon.url, script=WATCH_TASKS)
    expect(page.locator(".row").first).to_contain_text(f"app:{JOBS}")
    while page.locator(".tail .end").count() == 0:
        page.mouse.wheel(0, 100_000)
        page.wait_for_timeout(20)
    expect(page.locator(".tail .end")).to_have_text("10,000 jobs")
    page.keyboard.press("End")
    expect(page.locator(".row", has_text="app:1").last).to_be_visible()
    check_light(page)
    page.get_by_label("Text").fill("team/app:17")
    expect(page.locator(".row", has_text="app:17").last).to_be_visible()
    expect(page.locator(".tail .end")).to_have_text("111 jobs")
    check_light(page)


def test_a_text_is_looked_for_in_jobs_that_are_not_there_yet(daemon: Daemon, open_page: Open) -> None:
    """The page fetches older jobs until it has found enough."""
    page = open_page(f"{daemon.url}/#/?text=app:4242", script=WATCH_TASKS)
    expect(page.locator(".row")).to_have_count(1)
    expect(page.locator(".row .title")).to_have_text("registry.example:5000/team/app:4242")
    check_light(page)


def test_two_hundred_thousand_lines(daemon: Daemon, open_page: Open) -> None:
    """A long log is whole, can be scrolled and searched, and no task of the page keeps its user waiting."""
    lines = [f"#{number % 7} \x1b[32mline\x1b[0m {number} of a log that goes on and on" for number in range(LINES - 1)]
    with rows_in(daemon.database_file) as rows:
        job = rows.job(log=[*lines, "the needle at the end"])
    page = open_page(f"{daemon.url}/#/jobs/{job}", script=WATCH_TASKS)
    expect(page.locator(".log-part .note").first).to_have_text("200,000 lines")
    expect(page.locator(".log")).to_contain_text("line 0 of a log")
    page.get_by_label("Find").fill("NEEDLE")
    expect(page.locator(".found")).to_have_text("1 of 1")
    expect(page.locator("mark")).to_be_in_viewport()
    page.get_by_label("Find").fill("LINE 1")
    expect(page.locator(".found")).to_have_text("1 of 111,110")
    page.locator(".log").evaluate("log => { log.scrollTop = log.scrollHeight / 2; }")
    expect(page.locator(".log")).to_contain_text("line 100000 of a log")
    check_light(page)
