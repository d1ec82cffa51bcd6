"""`imagejobd` as a user runs it: piped, or in a pseudo-terminal."""

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from harness.daemon import SOURCE_ROOT, clean_environment
from harness.waiting import until

COMMAND_TIMEOUT_S = 120.0
POLL_S = 0.05
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[78=>]|\r")


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def environment(url: str, **env: str) -> dict[str, str]:
    return clean_environment() | {"IMAGEJOBD_URL": url, "TERM": "xterm-256color", "COLUMNS": "160"} | env


def run(url: str, *args: str, input: bytes | None = None, cwd: Path | None = None, **env: str) -> Done:  # noqa: A002
    """A command whose streams are pipes."""
    done = subprocess.run(
        command(args),
        input=b"" if input is None else input,
        capture_output=True,
        check=False,
        cwd=cwd,
        timeout=COMMAND_TIMEOUT_S,
        env=environment(url, **env),
    )
    return Done(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))


def command(args: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "imagejobd", *args]


class Terminal:
    """A command in a pseudo-terminal: what it shows, and what is typed."""

    def __init__(self, args: Sequence[str], env: Mapping[str, str], cwd: Path = SOURCE_ROOT) -> None:
        self._pid, self._fd = pty.fork()
        if self._pid == 0:
            os.chdir(cwd)
            os.execve(sys.executable, command(args), dict(env))
        self.raw = b""

    @property
    def text(self) -> str:
        """What was shown so far, without the control of the terminal."""
        self._read(0)
        return _CONTROL.sub("", self.raw.decode(errors="replace"))

    def shows(self, words: str) -> None:
        """Wait until `words` are shown."""
        until(lambda: words in self.text, what=f"the terminal to show {words!r}")

    def type(self, keys: bytes) -> None:
        os.write(self._fd, keys)

    def interrupt(self) -> None:
        """Ctrl-C, as the terminal makes a signal of it."""
        self.type(b"\x03")

    def wait(self) -> int:
        """The exit code."""
        deadline = time.monotonic() + COMMAND_TIMEOUT_S
        while time.monotonic() < deadline:
            self._read(POLL_S)
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self._read(0)
                self._pid = 0
                return os.waitstatus_to_exitcode(status)
        raise TimeoutError(f"the command goes on; it shows:\n{self.text[-2000:]}")

    def close(self) -> None:
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        self._read(0)
        os.close(self._fd)
        self._fd = -1

    def _read(self, wait_s: float) -> None:
        while self._fd >= 0 and select.select([self._fd], [], [], wait_s)[0]:
            try:
                block = os.read(self._fd, 65536)
            except OSError:  # it has ended
                return
            if not block:
                return
            self.raw += block


@contextlib.contextmanager
def terminal(url: str, *args: str, cwd: Path = SOURCE_ROOT, **env: str) -> Iterator[Terminal]:
    """A command in a pseudo-terminal while the block lasts."""
    shown = Terminal(args, environment(url, **env), cwd)
    try:
        yield shown
    finally:
        shown.close()
