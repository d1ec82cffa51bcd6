"""Processes of this machine, by what they were started with."""

import random
from pathlib import Path


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
