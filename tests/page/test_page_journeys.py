"""A user's ways through the page, on a daemon that really builds."""

import re
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest
from browsing import WATCH_TASKS, Open, check_light
from playwright.sync_api import Page, expect

from harness.base_image import BUSYBOX
from harness.build_box import BuildBox
from harness.client import Client
from harness.daemon import Daemon
from harness.engine import PrivateEngine
from harness.registry import PASSWORD, USERNAME, Registry

SECRET = "a shared secret of more than thirty-two bytes"
CLAIMS = {"tid": 1, "oid": 7, "aud": "com.company.jobservice"}
JOB_URL = re.compile("#/jobs/[0-9a-f-]{36}$")


@pytest.fixture(scope="module")
def box(engine: PrivateEngine) -> Iterator[BuildBox]:
    with BuildBox(engine) as box:
        yield box


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that answers nobody without a token."""
    with Daemon({"auth": {"jwt_secret_file": _secret_file(tmp_path), "required": True}}) as daemon:
        yield daemon


def test_watch_a_build_from_submission_to_success(box: BuildBox, registry: Registry, open_page: Open) -> None:
    """A job comes into the open list by itself, and its page shows log and phases as they come, to the end."""
    page = open_page(box.daemon.url)
    name = f"{registry.host}/page/watched:1"
    expect(page.locator(".tail, .row").first).to_be_attached()
    box.submit_build(name, f"FROM {BUSYBOX}\nRUN for i in 1 2 3; do echo line $i of the build; sleep 0.4; done\n")
    row = page.locator(".row", has_text=name)
    row.click()
    expect(page.get_by_role("heading", level=1)).to_have_text(name)
    expect(page.locator(".log")).to_contain_text("line 1 of the build")
    expect(page.locator(".job-head .state")).to_have_text("succeeded")
    expect(page.locator(".log")).to_contain_text("line 3 of the build")
    expect(page.locator(".phases .name")).to_have_text(["queued", "building", "pushing", "purging"])
    expect(page.locator(".part .facts")).to_contain_text("sha256:")
    page.keyboard.press("Escape")
    expect(row.locator(".state")).to_have_text("succeeded")


def test_the_list_stays_live(box: BuildBox, registry: Registry, open_page: Open) -> None:
    """Whoever only looks sees jobs come and end, the second as the first."""
    page = open_page(box.daemon.url)
    expect(page.locator(".tail, .row").first).to_be_attached()
    for number in range(2):
        name = f"{registry.host}/page/live:{number}"
        box.submit_build(name, f"FROM {BUSYBOX}\nRUN sleep 1; echo {number}\n")
        expect(page.locator(".row", has_text=name).locator(".state")).to_have_text("succeeded")


def test_a_log_that_grows_fast(box: BuildBox, registry: Registry, open_page: Open) -> None:
    """Who follows sees the last line, however fast they come, until it scrolls away."""
    page = open_page(box.daemon.url, script=WATCH_TASKS)
    job = box.submit_build(f"{registry.host}/page/fast:1", f"FROM {BUSYBOX}\nRUN seq 30000; echo the end; sleep 4\n")
    page.goto(f"{box.daemon.url}/#/jobs/{job}")
    expect(page.locator(".log")).to_contain_text("the end")
    follow = page.get_by_role("button", name="Follow")
    expect(follow).to_have_attribute("aria-pressed", "true")
    page.locator(".log").evaluate("log => { log.scrollTop = 0; }")
    expect(follow).to_have_attribute("aria-pressed", "false")
    expect(page.locator(".log .t").first).to_contain_text("#1 ")
    check_light(page)


def test_a_log_goes_on_after_a_crash(engine: PrivateEngine, registry: Registry, open_page: Open) -> None:
    """The daemon is killed in the middle of a build: the page has every line once in the end."""
    with BuildBox(engine) as box:
        text = f"FROM {BUSYBOX}\nRUN for i in 1 2 3 4 5 6 7 8; do echo number $i; sleep 0.4; done\n"
        job = box.submit_build(f"{registry.host}/page/crash:1", text, nocache=True)
        page = open_page(f"{box.daemon.url}/#/jobs/{job}")
        expect(page.locator(".log")).to_contain_text("number 3")
        box.restart()
        expect(page.locator(".job-head .state")).to_have_text("succeeded")
        expect(page.get_by_role("button", name="Follow")).to_be_hidden()
        assert page.locator(".log .t").all_inner_texts() == box.log(job).splitlines()


def test_a_kind_is_paused_and_resumed(box: BuildBox, open_page: Open) -> None:
    """With a reason, which everybody sees."""
    page = open_page(box.daemon.url)
    page.get_by_role("button", name="Pause dispatch").click()
    page.get_by_label("Reason").fill("the disk is exchanged")
    page.get_by_role("dialog").get_by_role("button", name="Pause").click()
    expect(page.locator(".kind.paused")).to_contain_text("the disk is exchanged")
    page.get_by_role("button", name="Resume dispatch").click()
    page.get_by_role("dialog").get_by_role("button", name="Resume").click()
    expect(page.locator(".kind.paused")).to_have_count(0)


def test_cancel_a_running_build(box: BuildBox, registry: Registry, open_page: Open) -> None:
    """Cancelling asks first; agreed to, the job ends and the page says so."""
    job = box.submit_build(f"{registry.host}/page/cancelled:1", f"FROM {BUSYBOX}\nRUN echo begun; sleep 60\n")
    page = open_page(f"{box.daemon.url}/#/jobs/{job}")
    expect(page.locator(".log")).to_contain_text("begun")
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Not now").click()
    assert box.job(job)["cancel_requested_at"] is None
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Cancel the job").click()
    expect(page.locator(".job-head .state")).to_have_text("cancelled")
    assert box.ended(job)["state"] == "cancelled"


def test_retry_a_failed_build(box: BuildBox, registry: Registry, open_page: Open) -> None:
    """A failure is shown with what to do, and a retry leads to the new job, which names the old one."""
    job = box.submit_build(f"{registry.host}/page/failed:1", f"FROM {BUSYBOX}\nRUN echo this is why; exit 7\n")
    page = open_page(f"{box.daemon.url}/#/jobs/{job}")
    callout = page.locator(".callout.failed")
    expect(callout).to_contain_text("build_failed")
    expect(callout).to_contain_text("The end of the log shows the step that failed")
    expect(page.locator(".log")).to_contain_text("this is why")
    page.keyboard.press("r")
    page.get_by_role("dialog").get_by_role("button", name="Retry").click()
    expect(page.get_by_role("link", name=job)).to_be_visible()
    expect(page).to_have_url(JOB_URL)
    assert box.job(page.url.rpartition("/")[2])["retry_of"] == job


def test_retry_with_a_password_that_was_deleted(box: BuildBox, private_registry: Registry, open_page: Open) -> None:
    """The page asks for the secrets that went when the job ended."""
    name = f"{private_registry.host}/page/login:1"
    job = box.submit_build(name, "FROM scratch\nLABEL a=b\n", username=USERNAME, password="wrong")
    box.failed(job)
    page = open_page(f"{box.daemon.url}/#/jobs/{job}")
    page.get_by_role("button", name="Retry").click()
    page.get_by_role("dialog").get_by_role("button", name="Retry").click()
    page.get_by_role("dialog").get_by_label("password").fill(PASSWORD)
    page.get_by_role("dialog").get_by_role("button", name="Retry").click()
    expect(page.get_by_role("link", name=job)).to_be_visible()
    expect(page.locator(".job-head .state")).to_have_text("succeeded")


def test_a_token_shows_what_is_not_everybodys(tmp_path: Path, open_page: Open) -> None:
    """Where none is required the page takes one too: a tenant's jobs are seen with its token only."""
    token = jwt.encode(CLAIMS, SECRET)
    with Daemon({"auth": {"jwt_secret_file": _secret_file(tmp_path)}}) as daemon:
        Client(daemon, token=token).submit(
            "build", {"image": "registry.example/theirs:1", "dockerfile": "FROM scratch\n"}
        )
        page = open_page(daemon.url)
        expect(page.locator(".tail")).to_contain_text("No jobs yet")
        page.get_by_role("button", name="Token").click()
        _give(page, token)
        expect(page.locator(".row")).to_contain_text("theirs:1")


def test_a_token_is_asked_for_and_forgotten(guarded: Daemon, open_page: Open) -> None:
    """A bad token is asked for again with the reason; a good one works, is stored nowhere, and is gone on reload."""
    page = open_page(guarded.url)
    _give(page, "not a token")
    expect(page.get_by_role("dialog")).to_contain_text("malformed")
    _give(page, "Bearer " + jwt.encode(CLAIMS, SECRET))
    expect(page.locator(".tail")).to_contain_text("No jobs yet")
    assert page.evaluate("[document.cookie, localStorage.length, sessionStorage.length, location.href]") == [
        "",
        0,
        0,
        f"{guarded.url}/",
    ]
    page.reload()
    expect(page.get_by_role("dialog")).to_contain_text("A token is required")


def _secret_file(folder: Path) -> str:
    file = folder / "jwt.secret"
    file.write_text(SECRET)
    file.chmod(0o600)
    return str(file)


def _give(page: Page, token: str) -> None:
    page.get_by_role("dialog").get_by_label("Token").fill(token)
    page.get_by_role("button", name="Continue").click()
