"""imagejobd(1), which is made from the help."""

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from harness.daemon import clean_environment
from harness.services import require
from imagejobd.cli import COMMANDS, main

GENERATOR = Path(__file__).parents[2] / "packages" / "manpage.py"
TIMEOUT_S = 60


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("manual") / "imagejobd.1"
    argv = [sys.executable, str(GENERATOR), "2030-01-31"]
    done = subprocess.run(argv, env=clean_environment(), stdout=subprocess.PIPE, timeout=TIMEOUT_S, check=True)
    made.write_bytes(done.stdout)
    return made


def test_it_has_every_command_with_every_option(page: Path) -> None:
    """What a command takes is in its own section."""
    sections = {section.split()[1].replace("\\", ""): section for section in page.read_text().split('.SS "')[1:]}
    context = click.Context(main)
    for name in (name for commands in COMMANDS.values() for name in commands):
        command = main.get_command(context, name)
        assert command is not None
        options = [option for one in command.params if isinstance(one, click.Option) for option in one.opts]
        assert [option for option in options if option.replace("-", r"\-") not in sections[name]] == []


def test_man_reads_it(page: Path) -> None:
    """man shows it without a warning."""
    require("man")
    argv = ["man", "--warnings", "-E", "UTF-8", "-Tutf8", "-l", str(page)]
    environment = os.environ | {"LC_ALL": "C.UTF-8", "MANWIDTH": "100"}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    assert done.stderr == ""
    assert "imagejobd build" in done.stdout
