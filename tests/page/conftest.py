"""A real browser, one for the tests of a module, and what every page in it must keep to."""

from collections.abc import Iterator

import pytest
from browsing import DESK, TIMEOUT_MS, Open
from playwright.sync_api import Browser, Page

from harness.browser import chromium
from harness.services import require


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    require("chromium")
    with chromium() as browser:
        yield browser


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """Opens a URL in a window of its own: `open_page(url, size=PHONE, color_scheme="dark", script="…")`.

    Afterwards no script may have failed, and nothing may have been tried that the page's policy forbids.
    """
    complaints: list[str] = []
    contexts = []

    def open_(url: str, size: tuple[int, int] = DESK, color_scheme: str = "light", script: str = "") -> Page:
        viewport = {"width": size[0], "height": size[1]}
        context = browser.new_context(viewport=viewport, color_scheme=color_scheme, locale="en-GB")
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(TIMEOUT_MS)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if _is_breach(message.text) else None)
        if script:
            page.add_init_script(script)
        page.goto(url)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []


def _is_breach(text: str) -> bool:
    return "Content Security Policy" in text or "TrustedHTML" in text
