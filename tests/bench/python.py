"""Running modules of this package as processes of their own, as the daemon is one: own interpreter, own lock."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from harness.daemon import SOURCE_ROOT
from harness.process import Process

START_TIMEOUT_S = 20.0


def run_module(module: str, *arguments: object, log_file: Path) -> Any:
    """Run `module` to its end; returns the JSON that it prints. What it logs goes to `log_file`."""
    with log_file.open("ab") as log:
        done = subprocess.run(_argv(module, *arguments), env=_env(), stdout=subprocess.PIPE, stderr=log, check=True)
    return msgspec.json.decode(done.stdout)


@contextmanager
def server(
    module: str, *arguments: object, log_file: Path, is_ready: Callable[[], bool] = lambda: True
) -> Iterator[Process]:
    """`module` running for as long as the block lasts."""
    process = Process(_argv(module, *arguments), log_file=log_file, env=_env())
    process.start(is_ready, timeout_s=START_TIMEOUT_S)
    try:
        yield process
    finally:
        process.terminate()


def _argv(module: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", module, *map(str, arguments)]


def _env() -> dict[str, str]:
    paths = [str(SOURCE_ROOT), str(SOURCE_ROOT / "tests")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
