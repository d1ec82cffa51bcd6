"""The form of the daemon's own log, on a terminal and in the journal."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Everything that is logged goes through these two; stderr is what the test gave.
PROGRAM = """
import logging, structlog
from imagejobd import logs
logs.configure()
log = structlog.get_logger()
try:
    raise ValueError("two\\nlines")
except ValueError:
    log.info("an event", text="a b")
    log.warning("a warning")
    log.exception("a defect")
    logging.getLogger("library").exception("its defect")
log.critical("the end")
"""


def logged(folder: Path, stream: str) -> list[str]:
    """The lines that `PROGRAM` writes to a file, where `$JOURNAL_STREAM` is `stream`."""
    path = folder / "stderr"
    with path.open("wb") as file:
        stat = os.fstat(file.fileno())
        told = stream.format(device=stat.st_dev, inode=stat.st_ino)
        env = os.environ | {"JOURNAL_STREAM": told}
        subprocess.run([sys.executable, "-c", PROGRAM], stderr=file, env=env, check=True, timeout=60)
    return path.read_text().splitlines()


def test_in_the_journal(tmp_path: Path) -> None:
    """Each line begins with its priority, those of a traceback too; the journal has a time of its own."""
    lines = logged(tmp_path, "{device}:{inode}")
    assert lines[:2] == ['<6>level=info event="an event" text="a b"', '<4>level=warning event="a warning"']
    assert lines[2].startswith('<3>level=error event="a defect" exception="Traceback')
    assert lines[3:5] == ["<3>ERROR library: its defect", "<3>Traceback (most recent call last):"]
    assert all(line.startswith("<3>") for line in lines[3:-1])
    assert lines[-2:] == ["<3>lines", '<2>level=critical event="the end"']


@pytest.mark.parametrize("stream", ["", "{device}:1", "x"], ids=["none", "another", "nonsense"])
def test_elsewhere(tmp_path: Path, stream: str) -> None:
    """Without the journal, or when stderr was redirected since, lines have a time and no priority."""
    lines = logged(tmp_path, stream)
    assert lines[0].startswith("timestamp=2")
    assert lines[0].endswith('Z level=info event="an event" text="a b"')
    assert not any(line.startswith("<") for line in lines)
