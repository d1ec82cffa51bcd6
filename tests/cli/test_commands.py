"""What holds of every command: an example, completion, and a page that names it."""

import os
import re
import shutil
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner
from terminals import run

from harness.daemon import SOURCE_ROOT
from imagejobd.cli import COMMANDS, main

NAMES = [name for group in COMMANDS.values() for name in group]
PAGE = (SOURCE_ROOT / "docs" / "cli.md").read_text()


def command(name: str) -> click.Command:
    found = main.get_command(click.Context(main), name)  # type: ignore[attr-defined]
    assert isinstance(found, click.Command)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_help(name: str) -> None:
    """It has an example that begins with the command itself, and every option has a help of its own."""
    text = CliRunner().invoke(main, [name, "--help"]).output
    assert re.search(rf"Example:\n +(export \w+=\$\()?imagejobd {name}", text), text
    assert [
        option.name for option in command(name).params if isinstance(option, click.Option) and not option.help
    ] == []


@pytest.mark.parametrize("name", NAMES)
def test_page(name: str) -> None:
    """docs/cli.md has the command, and every option of it."""
    assert f"`imagejobd {name}" in PAGE
    for option in command(name).params:
        if isinstance(option, click.Option):
            assert f"`{option.opts[-1]}" in PAGE, option.opts


def test_page_has_all_exit_codes() -> None:
    """The page lists the exit codes that the help lists."""
    text = CliRunner().invoke(main, ["--help"]).output
    for code in re.findall(r"\b(\d+) ", text.partition("Exit codes:")[2]):
        assert f"| {code} |" in PAGE


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    """Each shell gets a script; where the shell is there, it reads it without complaint."""
    done = run("", "completion", shell)
    assert done.code == 0
    assert "_IMAGEJOBD_COMPLETE" in done.out
    if (program := shutil.which(shell)) is not None:
        subprocess.run([program, "-c", done.out], check=True, capture_output=True)


def test_completion_of_words() -> None:
    """Commands and options are completed, without anything of the daemon being imported."""
    env = os.environ | {"_IMAGEJOBD_COMPLETE": "bash_complete", "COMP_WORDS": "imagejobd re", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "imagejobd"], env=env, capture_output=True, check=True, text=True
    )
    assert done.stdout.split() == ["plain,retry", "plain,resume"]
    assert "imagejobd.cli.jobs" not in done.stderr
