"""A folder where an fsync reaches a disk: on a file system in memory it costs nothing and the figures would lie."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.engine import DEFAULT_ROOT, ROOT_VARIABLE

IN_MEMORY = frozenset({"tmpfs", "ramfs"})


@contextmanager
def disk_folder() -> Iterator[Path]:
    """A temporary folder below $IMAGEJOBD_TEST_ROOT, else /var/tmp. Raises `RuntimeError` where that is memory."""
    parent = os.environ.get(ROOT_VARIABLE, DEFAULT_ROOT)
    stat = subprocess.run(["stat", "-f", "-c", "%T", parent], capture_output=True, check=True, text=True)
    if stat.stdout.strip() in IN_MEMORY:
        raise RuntimeError(f"{parent} is memory and no disk: set {ROOT_VARIABLE} to a folder on one")
    with tempfile.TemporaryDirectory(prefix="imagejobd-bench-", dir=parent) as folder:
        yield Path(folder)
