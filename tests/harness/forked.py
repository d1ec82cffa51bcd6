"""Daemons without their half second of imports: each is forked from a process that has them behind it.

Such a daemon has a process, a session, an environment and files of its own, as one that was executed; it shares with
the others the seed of hashes, and the template's arguments in /proc.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TypedDict

TESTS = Path(__file__).parents[1]
END_TIMEOUT_S = 10.0
MESSAGE_MAX_BYTES = 32
# What only the start of an interpreter obeys.
INTERPRETER_PREFIX = "PYTHON"


class Request(TypedDict):
    """How a daemon is to start; `umask` is -1 for the template's own."""

    args: list[str]
    env: dict[str, str]
    cwd: str
    umask: int


class Template:
    """`harness.template`, started when the first daemon is, with the interpreter's settings in `env`."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = dict(env)
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def suits(self, env: Mapping[str, str]) -> bool:
        """Whether an interpreter that starts in `env` would be as the template is."""
        return _of_interpreter(env) == _of_interpreter(self._env)

    def fork(self, args: Sequence[str], *, env: Mapping[str, str], log: int, umask: int) -> "Forked":
        """`imagejobd` with these arguments and its output in `log`, as `subprocess.Popen` would start it."""
        if self._control is None:
            self._control = self._start()
        request: Request = {"args": [*args], "env": dict(env), "cwd": str(Path.cwd()), "umask": umask}
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            socket.send_fds(self._control, [json.dumps(request).encode()], [log, theirs.fileno()])
        return Forked(ours)

    def close(self) -> None:
        """End the template; daemons that still run go on."""
        if self._process is not None and self._control is not None:
            self._control.close()
            self._process.wait(END_TIMEOUT_S)

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        path = os.pathsep.join([*filter(None, [self._env.get("PYTHONPATH")]), str(TESTS)])
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "harness.template"],
                stdin=theirs,
                env=self._env | {"PYTHONPATH": path},
                start_new_session=True,
            )
        return ours


class Forked:
    """A forked daemon, as far as `subprocess.Popen` shows a process; `line` is what its guardian sends on."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._code: int | None = None
        self.pid = self._receive()

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        with suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, as soon as there is one. Raises `subprocess.TimeoutExpired`."""
        if self._code is None:
            if not select.select([self._line], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"imagejobd (pid {self.pid})", timeout or 0)
            with closing(self._line):
                self._code = self._receive()
        return self._code

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def _receive(self) -> int:
        message = self._line.recv(MESSAGE_MAX_BYTES)
        if not message:
            raise RuntimeError("the template of daemons has ended; its words are in the output of the tests")
        return int(message)

    def _send(self, number: signal.Signals) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(self.pid, number)


def _of_interpreter(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith(INTERPRETER_PREFIX)}
