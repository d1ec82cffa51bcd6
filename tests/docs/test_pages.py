"""Every block of commands in README and docs runs as printed, and prints what is printed below it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SESSION = Path(__file__).with_name("session.py")
SOURCE_ROOT = SESSION.parents[2]
SESSIONS = {"readme": ["README.md"], "docs": ["docs/apis.md", "docs/history.md", "docs/cli.md"]}
TIMEOUT_S = 300
# What differs from run to run: UUIDs, times.
MASKED = (
    (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "<uuid>"),
    (r"\d{4}-\d\d-\d\dT[\d:.]+(\+\d\d:\d\d|Z)", "<time>"),
)
README_WORDS_MAX = 1200


@pytest.mark.parametrize("pages", SESSIONS.values(), ids=SESSIONS)
def test_commands(pages: list[str]) -> None:
    """Each block succeeds; output that a page shows is what comes, but for ids and times."""
    unshared = subprocess.run(
        ["unshare", "--net", "--mount", sys.executable, str(SESSION), *pages],
        # This tree's code, wherever the virtual environment has its own from.
        env=os.environ | {"PYTHONPATH": f"{SESSION.parents[1]}{os.pathsep}{SOURCE_ROOT}"},
        stdout=subprocess.PIPE,
        timeout=TIMEOUT_S,
        check=True,
    )
    session = json.loads(unshared.stdout)
    assert session["status"] == 0, session["blocks"][-1]
    for command, language, expected, printed in session["blocks"]:
        if expected:
            assert comparable(printed, language) == comparable(expected, language), command


def comparable(output: str, language: str) -> Any:
    for pattern, mask in MASKED:
        output = re.sub(pattern, mask, output)
    return list(json.loads(output).items()) if language == "json" else output.strip()


def test_every_page_with_commands_is_run() -> None:
    """A new page joins a session above."""
    pages = {str(path.relative_to(SOURCE_ROOT)) for path in [SOURCE_ROOT / "README.md", *SOURCE_ROOT.glob("docs/*.md")]}
    with_commands = {page for page in pages if "```sh" in (SOURCE_ROOT / page).read_text()}
    assert with_commands == {page for session in SESSIONS.values() for page in session}


def test_the_readme_is_short() -> None:
    """What is more than a user's first quarter of an hour stands in docs/."""
    assert len((SOURCE_ROOT / "README.md").read_text().split()) <= README_WORDS_MAX


def test_links_lead_somewhere() -> None:
    """Files exist, and so do headings."""
    for page in [SOURCE_ROOT / "README.md", *SOURCE_ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
            file, _, anchor = target.partition("#")
            path = page.parent / file if file else page
            assert path.is_file(), f"{page.name}: {target}"
            headings = {
                re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-")
                for line in re.findall(r"(?m)^#+ (.*)$", path.read_text() if anchor else "")
            }
            assert not anchor or anchor in headings, f"{page.name}: {target}"
