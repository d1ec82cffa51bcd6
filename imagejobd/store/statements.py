"""SQL as named, described statements in `sql/*.sql`, so that it reads, greps and explains as SQL.

A statement begins at a line `-- name: what` and runs to the next one; the comment under that line describes it. Values
reach SQL as parameters only; no statement is made from text that came from outside.
"""

import re
from collections.abc import Mapping
from importlib import resources

_NAME = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)


def load(topic: str) -> Mapping[str, str]:
    """The statements of `sql/<topic>.sql` by name."""
    text = (resources.files("imagejobd.store") / "sql" / f"{topic}.sql").read_text("utf-8")
    _, *parts = _NAME.split(text)
    return dict(zip(parts[::2], parts[1::2], strict=True))
