"""Named places where a test may crash the process, as a power cut or the OOM killer would.

`IMAGEJOBD_FAILPOINTS=after_build,before_commit:3` ends the process with status 137, without any cleaning up, when it
comes to `after_build` for the first time, or to `before_commit` for the third. Without the variable they cost a
dictionary look-up.
"""

import os

EXIT_STATUS = 137


def _armed(text: str) -> dict[str, int]:
    pairs = (entry.partition(":") for entry in text.split(",") if entry)
    return {name: int(count or 1) for name, _, count in pairs}


_passes_left = _armed(os.environ.get("IMAGEJOBD_FAILPOINTS", ""))


def failpoint(name: str) -> None:
    """Crash here, if this place is armed and its turn has come."""
    if name not in _passes_left:
        return
    _passes_left[name] -= 1
    if _passes_left[name] == 0:
        os._exit(EXIT_STATUS)
