"""What the kernel tells of this machine's processes and TCP connections, where no peer would."""

import random
from pathlib import Path

TCP_TABLE = Path("/proc/net/tcp")
ESTABLISHED = "01"


def processes(argument: str) -> list[int]:
    """Those that have `argument` among theirs."""
    return [
        int(folder.name)
        for folder in Path("/proc").iterdir()
        if folder.name.isdecimal() and argument.encode() in _arguments(folder)
    ]


def unique_seconds() -> str:
    """A time to sleep, over a day, that nobody else on this machine sleeps, other workers of the tests included."""
    return str(random.SystemRandom().randrange(10**5, 10**9))


def _arguments(folder: Path) -> list[bytes]:
    try:
        return (folder / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def untaken_bytes(port: int) -> int:
    """Bytes that clients, over connections that they hold open, have sent to a local port and that were not taken."""
    waiting = 0
    for line in TCP_TABLE.read_text().splitlines()[1:]:
        _, _, remote, state, queues, *_ = line.split()
        if state == ESTABLISHED and int(remote.rpartition(":")[2], 16) == port:
            waiting += int(queues.partition(":")[0], 16)
    return waiting
