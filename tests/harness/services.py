"""Which programs of the outside world are here, and what to do where one is not."""

import os
import shutil
import unittest
from pathlib import Path

REQUIRE_VARIABLE = "IMAGEJOBD_REQUIRE_SERVICES"
# Debian keeps daemons in folders that a plain user's PATH lacks.
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
NEEDS_ROOT = frozenset({"dockerd", "systemd-nspawn"})


def find_program(name: str) -> Path | None:
    """The full path of a program, or None where it is not installed."""
    if name == "docker":
        # The client that came with the engine, also where another one comes first on PATH.
        for folder in (program("dockerd").parent, Path("/usr/bin")):
            if (folder / "docker").is_file():
                return folder / "docker"
    found = shutil.which(name, path=SEARCH_PATH)
    return Path(found) if found else None


def program(name: str) -> Path:
    """As `find_program`, for a program that has to be there."""
    found = find_program(name)
    if found is None:
        raise FileNotFoundError(f"{name} is not installed")
    return found


def missing(*names: str) -> list[str]:
    """Those of `names` that cannot be run here, each with the reason."""
    reasons = []
    for name in names:
        if find_program(name) is None:
            reasons.append(f"{name} is not installed")
        elif name in NEEDS_ROOT and os.geteuid() != 0:
            reasons.append(f"{name} needs root")
    return reasons


def require(*names: str) -> None:
    """Skip the test where a program is missing; fail it where $IMAGEJOBD_REQUIRE_SERVICES is 1."""
    _refuse_unless_none(missing(*names))


def require_root(what: str) -> None:
    """As `require`, for what only root can do."""
    _refuse_unless_none([] if os.geteuid() == 0 else [f"{what} needs root"])


def require_made(folder: Path, command: str) -> None:
    """As `require`, for what `command` makes."""
    _refuse_unless_none([] if folder.exists() else [f"{folder} is missing: run {command}"])


def _refuse_unless_none(reasons: list[str]) -> None:
    if not reasons:
        return
    if os.environ.get(REQUIRE_VARIABLE) == "1":
        raise RuntimeError(f"{REQUIRE_VARIABLE}=1, but {'; '.join(reasons)}")
    raise unittest.SkipTest("; ".join(reasons))
