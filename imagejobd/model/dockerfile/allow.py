"""Lists of globs, of which the last one that matches decides.

`*` stands for any run of characters, `?` for any one; `!` in front forbids. What no glob matches is forbidden.
"""

import re
from collections.abc import Iterable
from fnmatch import translate
from itertools import takewhile

WILDCARDS = "*?"


class AllowList:
    """One list. `allows_all` tells that nothing at all is forbidden."""

    def __init__(self, globs: Iterable[str]) -> None:
        self._globs = [_Glob(text) for text in reversed(tuple(globs))]
        self.allows_all = any(one.text == "*" for one in takewhile(lambda one: one.is_allowing, self._globs))

    def allows(self, text: str) -> bool:
        """Whether the last glob that matches `text` allows it."""
        return self.allows_all or next((one.is_allowing for one in self._globs if one.matches(text)), False)

    def allows_whatever_follows(self, prefix: str) -> bool:
        """Whether every text that begins with `prefix` is allowed; for what only a build can know the end of."""
        if self.allows_all:
            return True
        for one in self._globs:
            if one.covers(prefix):
                return one.is_allowing
            if not one.is_allowing and one.may_match(prefix):
                return False
        return False


class _Glob:
    def __init__(self, text: str) -> None:
        self.is_allowing = not text.startswith("!")
        self.text = text.removeprefix("!")
        self._head = "".join(takewhile(lambda char: char not in WILDCARDS, self.text))
        # Python's groups of a translated glob are atomic, so that no text makes the match go back again and again.
        self._match = re.compile(translate(self.text.replace("[", "[[]"))).match

    def matches(self, text: str) -> bool:
        return self._match(text) is not None

    def covers(self, prefix: str) -> bool:
        """Whether whatever begins with `prefix` matches."""
        return self.text.endswith("*") and self.matches(prefix)

    def may_match(self, prefix: str) -> bool:
        """Whether something that begins with `prefix` could match; true where that is hard to tell."""
        return prefix.startswith(self._head) or self._head.startswith(prefix)
