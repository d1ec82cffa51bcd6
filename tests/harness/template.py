"""The process that daemons are forked from (see `harness.forked`): it has imported imagejobd, and does nothing else.

Its standard input is a unix socket. Each datagram there asks for one start: a `Request` as JSON, with the descriptors
of the log and of a line on which a guardian sends first the daemon's pid and, after its end, its exit code.
"""

import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import time
from pathlib import Path
from typing import NoReturn

import imagejobd.cli
import imagejobd.daemon  # noqa: F401
from harness.forked import Request
from imagejobd.model import failpoint

REQUEST_MAX_BYTES = 128 * 1024


def main() -> None:
    request, log = _next_start(socket.socket(fileno=sys.stdin.fileno()))
    _become(request, log)
    sys.argv[1:] = request["args"]
    runpy.run_module("imagejobd", run_name="__main__", alter_sys=True)


def _next_start(control: socket.socket) -> tuple[Request, int]:
    """What a daemon is to be and its log, in its own process; the template itself stays here until the tests end."""
    # Forks share what they do not write to, and the collector writes to all that it may collect.
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for guardians
    while True:
        message, (*descriptors,), _, _ = socket.recv_fds(control, REQUEST_MAX_BYTES, 2)
        if not message:
            sys.exit()
        # A thread would be gone in the fork, with every lock that it holds.
        assert len(list(Path("/proc/self/task").iterdir())) == 1
        if os.fork() == 0:
            break
        for descriptor in descriptors:
            os.close(descriptor)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log, line = descriptors
    if pid := os.fork():
        _guard(pid, socket.socket(fileno=line))
    request: Request = json.loads(message)
    return request, log


def _guard(pid: int, line: socket.socket) -> NoReturn:
    line.send(str(pid).encode())
    _, status = os.waitpid(pid, 0)
    line.send(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def _become(request: Request, log: int) -> None:
    """Make of this process what `exec` would have made."""
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.chdir(request["cwd"])
    if request["umask"] != -1:
        os.umask(request["umask"])
    os.environ.clear()
    os.environ.update(request["env"])
    time.tzset()
    # The one module that reads the environment when it is imported.
    importlib.reload(failpoint)


if __name__ == "__main__":
    main()
