"""Windows of the browser that tests look through."""

from collections.abc import Callable

from playwright.sync_api import Page, expect

# What a test waits for at most: only a failure takes that long.
TIMEOUT_MS = 30_000
DESK, PHONE = (1280, 860), (390, 844)
# Notes how long the page's own tasks keep its user waiting.
WATCH_TASKS = """
window.tasks = [];
new PerformanceObserver((list) => window.tasks.push(...list.getEntries().map((task) => task.duration)))
    .observe({ type: 'longtask', buffered: true });
"""
# Far more than any takes; a page that draws or searches all it has at once is beyond it on every machine.
TASK_MAX_MS = 1_500
# Elements of the document, whatever there is to show.
ELEMENTS_MAX = 1_500

Open = Callable[..., Page]

expect.set_options(timeout=TIMEOUT_MS)


def check_light(page: Page) -> None:
    """The document of a page that was opened with `WATCH_TASKS` is small, and none of its tasks was long."""
    assert page.locator("*").count() < ELEMENTS_MAX
    assert max(page.evaluate("window.tasks"), default=0) < TASK_MAX_MS
