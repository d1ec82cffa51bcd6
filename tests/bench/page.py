"""The page, with 10,000 jobs to list: how soon a browser paints it and shows jobs, and how much it is sent."""

from statistics import median

from playwright.sync_api import Browser

from bench.figures import Bound, Figure, say
from bench.finished_jobs import make_history
from harness.browser import chromium
from harness.daemon import Daemon
from imagejobd.model.clock import now_ms
from imagejobd.model.job import LOCAL_TENANT

JOBS = 10_000
ROUNDS = 9
ROW_ADDED = """
new MutationObserver((changes, observer) => {
  if (!document.querySelector('.row')) return;
  observer.disconnect();
  requestAnimationFrame(() => { window.rowsAt = performance.now(); });
}).observe(document, { childList: true, subtree: true });
"""
PAINTED = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
WEIGHT = """
['navigation', 'resource'].flatMap((type) => performance.getEntriesByType(type))
  .filter(({ name }) => !name.includes('/api/')).reduce((sum, { decodedBodySize: size }) => sum + size, 0)
"""

PAINT_BOUND = Bound("≤", 1_000.0, "ms")
WEIGHT_BOUND = Bound("≤", 150.0, "KB")


def measure(*, quick: bool) -> list[Figure]:
    daemon = Daemon()
    make_history(daemon.database_file, JOBS, now_ms(), tenant=LOCAL_TENANT)
    with daemon, chromium() as browser:
        rounds = [_open(browser, daemon.url) for _ in range(3 if quick else ROUNDS)]
    painted_ms, rows_ms, weight_kb = (median(values) for values in zip(*rounds, strict=True))
    say(f"painted after {painted_ms:.0f} ms, jobs after {rows_ms:.0f} ms, {weight_kb:.0f} KB")
    return [
        Figure(f"page, {JOBS:,} jobs: first paint", f"{painted_ms:.0f} ms", "", painted_ms, PAINT_BOUND),
        Figure("the same: the newest jobs on it", f"{rows_ms:.0f} ms", "", rows_ms, PAINT_BOUND),
        Figure("the same: weight, unpacked", f"{weight_kb:.0f} KB", "", weight_kb, WEIGHT_BOUND),
    ]


def _open(browser: Browser, url: str) -> tuple[float, float, float]:
    """Milliseconds to the first paint and to the first jobs, and kilobytes of the page's own files."""
    context = browser.new_context()
    page = context.new_page()
    page.add_init_script(ROW_ADDED)
    page.goto(url)
    page.locator(".row").first.wait_for()
    page.evaluate("new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)))")
    figures = page.evaluate(f"[{PAINTED}, window.rowsAt, ({WEIGHT}) / 1000]")
    context.close()
    return figures[0], figures[1], figures[2]
