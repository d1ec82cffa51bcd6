"""A folder for all that a soak makes: short, because sockets below it have names of 108 bytes at most."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.engine import DEFAULT_ROOT


@pytest.fixture
def soak_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="soak-", dir=DEFAULT_ROOT) as folder:
        yield Path(folder)
