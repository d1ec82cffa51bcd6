"""The patterns of `${x#p}`, `${x%p}` and `${x/p/r}`: `*` any run, `?` any character, `\\` takes the next one as it is.

Matched by stepping a set of positions along the text, in time linear in it: with a backtracking regular expression
a hostile pattern takes years. What a whole Dockerfile may take is counted in `Steps`.
"""

import re
from collections import defaultdict

from imagejobd.model.dockerfile.steps import Steps

PATTERN_MAX_CHARS = 64
VALUE_MAX_CHARS = 512
# What it takes to make a pattern ready, however short it is.
_PATTERN_STEPS = 16

_TOKEN = re.compile(r"\\.|[^\\]", re.DOTALL)


class _Pattern:
    """`pattern` compiled to bit masks: bit `i` of a state says that the first `i` tokens have matched."""

    def __init__(self, tokens: list[str], steps: Steps) -> None:
        steps.spend(_PATTERN_STEPS + len(tokens))
        self._steps = steps
        self._stars = 0
        self._any = 0
        self._literal: dict[str, int] = defaultdict(int)
        for index, char in enumerate(tokens):
            if char == "*":
                self._stars |= 1 << index
            elif char == "?":
                self._any |= 1 << index
            else:
                self._literal[char[-1]] |= 1 << index
        self._accept = 1 << len(tokens)
        self.has_star = self._stars != 0

    def ends(self, text: str, start: int = 0) -> tuple[list[int], bool]:
        """Every end of a match that begins at `start`, ascending; and whether a longer text could still match."""
        state = self._closed(1)
        found = [start] if state & self._accept else []
        for at in range(start, len(text)):
            self._steps.spend(1)
            moving = state & (self._any | self._literal.get(text[at], 0))
            state = self._closed(moving << 1 | state & self._stars)
            if not state:
                return found, False
            if state & self._accept:
                found.append(at + 1)
        return found, state & ~self._accept != 0

    def _closed(self, state: int) -> int:
        return state | (state & self._stars) << 1


def trim_prefix(value: str, pattern: str, steps: Steps) -> str:
    """`${x#p}`; a pattern that begins with `#` cuts the longest match. Raises `ValueError`."""
    pattern, is_longest = pattern.removeprefix("#"), pattern.startswith("#")
    ends, _ = _Pattern(_tokens(value, pattern), steps).ends(value)
    return value[ends[-1 if is_longest else 0] :] if ends else value


def trim_suffix(value: str, pattern: str, steps: Steps) -> str:
    """`${x%p}`; a pattern that begins with `%` cuts the longest match. Raises `ValueError`."""
    pattern, is_longest = pattern.removeprefix("%"), pattern.startswith("%")
    ends, _ = _Pattern(_tokens(value, pattern)[::-1], steps).ends(value[::-1])
    return value[: len(value) - ends[-1 if is_longest else 0]] if ends else value


def replace(value: str, pattern: str, replacement: str, steps: Steps, *, is_everywhere: bool) -> str:
    """`${x/p/r}`, or `${x//p/r}` for all matches; each match is the longest and not empty. Raises `ValueError`."""
    tokens = _tokens(value, pattern)
    if set(tokens) <= {"*"}:
        raise ValueError("engines replace what a pattern of nothing or '*' alone matches in ways of their own")
    if is_everywhere and "$" in replacement:
        raise ValueError("engines read a '$' in the replacement of '//' in ways of their own")
    compiled = _Pattern(tokens, steps)
    pieces: list[str] = []
    at = 0
    while at < len(value):
        ends, is_open = compiled.ends(value, at)
        if ends and ends[-1] > at:
            pieces.append(replacement)
            at = ends[-1]
            # What follows the longest match of a star holds no second one.
            if not is_everywhere or compiled.has_star:
                break
        elif is_open and compiled.has_star:
            # A star that found no end from here finds none from further on.
            break
        else:
            pieces.append(value[at])
            at += 1
    return "".join(pieces) + value[at:]


def _tokens(value: str, pattern: str) -> list[str]:
    if len(value) > VALUE_MAX_CHARS or len(pattern) > PATTERN_MAX_CHARS:
        raise ValueError(f"patterns go to {PATTERN_MAX_CHARS} characters, on values up to {VALUE_MAX_CHARS}")
    tokens: list[str] = []
    for char in _TOKEN.findall(pattern):
        if char[0] == "\\" and char[-1] not in "*?\\}/":
            raise ValueError(f"{char!r} is not an escape that a pattern knows")
        if char == "*" and tokens[-1:] == ["*"]:
            continue
        tokens.append(char)
    if "\n" in value and any(token in ("*", "?") for token in tokens):
        raise ValueError("'*' and '?' match no line break in engines, and there is one in the value")
    return tokens
