"""What the page shows of jobs that stay as they are: on a phone, in the dark, by the keyboard, and of hostile ones."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from browsing import PHONE, Open
from playwright.sync_api import expect
from rows import rows_in
from showcase import fill

from harness.daemon import Daemon

DARK = 80
MARKUP = "<img src=x onerror='window.owned = 1'>"
HOSTILE_LOG = (
    MARKUP,
    "\x1b[31mred\x1b[0m \x1b]8;;https://evil.example\x07link\x1b]8;;\x07 \x1b[8mhidden\x1b[0m \x1b[2J\x1b[9;9Hmoved",
    "\x1b[38;2;255;0;0mtrue red\x1b[m \x1b[38;5;46mgreen\x1b[38;5;999mbeyond\x1b[38;2mcut \x1b[",
    "\u202eright to left\u202c \x00\x07nul",
    "10%\r50%\r100%",
    "\x1b]0;never ends",
)


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """Its engine is down: what is queued stays so."""
    with Daemon() as daemon:
        yield daemon


@pytest.fixture(scope="module")
def jobs(daemon: Daemon) -> Mapping[str, str]:
    return fill(daemon.database_file)


@pytest.mark.parametrize("what", ["", "failed", "copying", "run", "building", "queued"])
def test_a_phone_shows_all_without_scrolling_sideways(
    daemon: Daemon, jobs: Mapping[str, str], open_page: Open, tmp_path: Path, what: str
) -> None:
    """Neither the list nor any job's page is wider than the phone; both are dark where the phone is."""
    page = open_page(daemon.url + (f"/#/jobs/{jobs[what]}" if what else ""), size=PHONE, color_scheme="dark")
    expect(
        page.locator(".log-part .note", has_text="line")
        if what not in ("", "queued")
        else page.locator("main .state").first
    ).to_be_visible()
    page.screenshot(path=tmp_path / "phone.png")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(int(part) for part in re.findall(r"\d+", background)) < DARK


def test_a_copy_has_a_bar_per_target(daemon: Daemon, jobs: Mapping[str, str], open_page: Open) -> None:
    """Each bar is as long as what is there of all that has to be, and a failure says why."""
    page = open_page(f"{daemon.url}/#/jobs/{jobs['copying']}")
    bars = page.locator(".copies li")
    expect(bars).to_have_count(4)
    expect(bars.nth(0)).to_contain_text("448 MiB of 534 MiB")
    expect(bars.nth(2)).to_contain_text("429 Too Many Requests")
    shares = bars.nth(3).locator(".part").evaluate_all("parts => parts.map((part) => part.style.width)")
    assert shares == ["0%", "100%", "0%"]


def test_perf_is_charted_over_runs(daemon: Daemon, jobs: Mapping[str, str], open_page: Open) -> None:
    """A run's page shows the numbers of all runs with its label, its own marked; a dot leads to its run."""
    page = open_page(f"{daemon.url}/#/jobs/{jobs['run']}")
    expect(page.locator(".chart .dot")).to_have_count(9)
    expect(page.locator(".chart .dot.here")).to_have_count(1)
    page.locator(".chart .dot").first.click()
    expect(page).not_to_have_url(re.compile(jobs["run"]))


def test_the_keyboard_goes_everywhere(daemon: Daemon, jobs: Mapping[str, str], open_page: Open) -> None:
    """j and k choose, enter opens, esc goes back to the list as it was, / finds, ? helps."""
    page = open_page(f"{daemon.url}/#/?state=failed")
    expect(page.locator(".row .state").first).to_have_text("failed")
    for key in "jjjk":
        page.keyboard.press(key)
    expect(page.locator(".row").nth(1)).to_have_class(re.compile("current"))
    page.keyboard.press("Enter")
    expect(page.locator(".callout.failed")).to_be_visible()
    page.keyboard.press("/")
    page.keyboard.type("FAILED tests")
    expect(page.locator(".found")).to_have_text("1 of 1")
    expect(page.locator("mark").first).to_have_text("FAILED")
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    expect(page.locator(".row").nth(1)).to_have_class(re.compile("current"))
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("Keyboard")
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    page.keyboard.type("payments")
    expect(page.locator(".tail")).to_contain_text("No job is like that")


def test_filters_are_kept_in_the_address(daemon: Daemon, jobs: Mapping[str, str], open_page: Open) -> None:
    """By state, kind, label and text; whoever opens that address sees the same."""
    page = open_page(daemon.url)
    page.get_by_role("button", name="succeeded", exact=True).click()
    page.get_by_label("Kind").select_option("run")
    page.get_by_label("Label").fill("model=ranker")
    page.get_by_label("Text").fill("perf 0.8")
    expect(page.locator(".tail .end")).to_be_visible()
    texts = page.locator(".row").all_inner_texts()
    assert 0 < len(texts) < 9
    other = open_page(page.url)
    expect(other.locator(".row")).to_have_count(len(texts))
    expect(other.get_by_label("Kind")).to_have_value("run")


def test_hostile_text_stays_text(daemon: Daemon, open_page: Open) -> None:
    """Markup, escapes and marks that reorder text, wherever a job may hold them, are shown as what they are."""
    with rows_in(daemon.database_file) as rows:
        job = rows.job(
            spec={"image": MARKUP, "tags": [MARKUP]},
            state="failed",
            phases={MARKUP: 1.0},
            log=HOSTILE_LOG,
            error=("build_failed", MARKUP),
            labels={MARKUP: "javascript:alert(1)"},
            submitter={"name": MARKUP},
        )
    page = open_page(f"{daemon.url}/#/?text=onerror")
    expect(page.locator(".row .title").first).to_have_text(MARKUP)
    page.locator(".row").first.click()
    expect(page.get_by_role("heading", level=1)).to_have_text(MARKUP)
    lines = page.locator(".log .t")
    expect(lines).to_have_text(
        [
            MARKUP,
            "red link hidden moved",
            "true red greenbeyondcut ",
            "\ufffdright to left\ufffd \ufffd\ufffdnul",
            "100%",
            "",
        ]
    )
    assert lines.nth(2).locator("span").evaluate_all("spans => spans.map((span) => span.className)") == ["c1", "c2"]
    page.get_by_text("Events").click()
    page.get_by_text("Request").click()
    expect(page.locator(".events")).to_contain_text("enter phase")
    assert page.locator("img").count() == 0
    assert page.evaluate("window.owned") is None
    links = page.locator("a").evaluate_all("links => links.map((link) => new URL(link.href).origin)")
    assert set(links) == {daemon.url}
    assert job in page.url


def test_why_a_webhook_was_not_told(daemon: Daemon, open_page: Open) -> None:
    """The history of a job says it in the words of the event."""
    with rows_in(daemon.database_file) as rows:
        job = rows.job()
        rows.note(job, "webhook", webhook="ci", delivered=False, error="answered 410")
    page = open_page(f"{daemon.url}/#/jobs/{job}")
    page.get_by_text("Events").click()
    expect(page.locator(".events")).to_contain_text("answered 410")


def test_an_unknown_job_says_so(daemon: Daemon, open_page: Open) -> None:
    """With a way back."""
    page = open_page(f"{daemon.url}/#/jobs/0197c0de-0000-7000-8000-000000000000")
    expect(page.locator(".problem")).to_contain_text("there is no job")
    page.get_by_role("link", name="All jobs").click()
    expect(page.locator(".row").first).to_be_visible()


def test_a_daemon_that_is_away_is_told(open_page: Open) -> None:
    """The page says that nobody answers, keeps what it has, and goes on by itself when the daemon is back."""
    with Daemon() as daemon:
        with rows_in(daemon.database_file) as rows:
            rows.job()
        page = open_page(daemon.url)
        expect(page.locator(".row")).to_have_count(1)
        daemon.kill()
        expect(page.locator("#live")).to_contain_text("does not answer")
        expect(page.locator(".row")).to_have_count(1)
        daemon.start()
        expect(page.locator("#live")).to_have_text("")
