"""The `Warning: 299` headers by which a registry speaks to people (distribution spec, "Warnings")."""

import re
from collections.abc import Callable, Iterable

from imagejobd.registry.words import shown

WARNING_MAX_CHARS = 256
WARNINGS_MAX = 20

_WARNING = re.compile(r'299 \S+ "((?:[^"\\]|\\.)*)"')


class Notices:
    """Tells each text once, and not too many of them."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._told: set[str] = set()

    def heard(self, headers: Iterable[str], redact: Callable[[str], str]) -> None:
        """Take the `Warning` headers of one answer. `redact` removes what no text may show."""
        for header in headers:
            for found in _WARNING.finditer(header[: 4 * WARNING_MAX_CHARS]):
                text = shown(re.sub(r"\\(.)", r"\1", found[1]), WARNING_MAX_CHARS, redact)
                if text and text not in self._told and len(self._told) < WARNINGS_MAX:
                    self._told.add(text)
                    self._tell(text)
