"""Named places where a test may crash the process, as a power cut or the OOM killer would.

`IMAGEJOBD_FAILPOINTS=after_build,before_commit:3` ends the process with status 137, without any cleaning up, when it
comes to `after_build` for the first time, or to `before_commit` for the third. Without the variable they cost a
dictionary look-up.
"""

import os

EXIT_STATUS = 137


_entries = (entry.partition(":") for entry in os.environ.get("IMAGEJOBD_FAILPOINTS", "").split(",") if entry)
_passes_remaining = {name: int(count or 1) for name, _, count in _entries}


def failpoint(name: str) -> None:
    """Crash here, if this place is armed and its turn has come."""
    if name not in _passes_remaining:
        return
    _passes_remaining[name] -= 1
    if _passes_remaining[name] == 0:
        os._exit(EXIT_STATUS)
