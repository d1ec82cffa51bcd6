"""Dockerfile text to logical lines: directives, comments, continuations and heredocs.

Follows BuildKit's `parser.Parse`, which decides by these rules what is an instruction and what is only the body of one.
Lines end at a line feed and nowhere else: Python's `splitlines` knows a dozen more ends than the engine does.
"""

import re
from collections.abc import Iterator

import msgspec

from imagejobd.model.dockerfile.words import SPACES, Ambiguous, BadWord, split_raw, split_unquoted
from imagejobd.model.errors import Permanent, invalid

BOM = "\ufeff"
DEFAULT_ESCAPE = "\\"

_DIRECTIVE = re.compile(r"#[\t\f\r ]*([a-zA-Z][a-zA-Z0-9]*)[\t\f\r ]*=[\t\f\r ]*(.+?)[\t\f\r ]*")
_LOOSE_DIRECTIVE = re.compile(r"#\s*([a-zA-Z][a-zA-Z0-9]*)\s*=.*", re.DOTALL)
_DIRECTIVES = frozenset({"escape", "syntax", "check"})
_HEREDOC = re.compile(r"[0-9]*<<(-?)([^<]+)")


class Heredoc(msgspec.Struct, frozen=True):
    """The body between `<<name` and the line `name`; its lines are counted in the instruction's range."""

    name: str
    body: str


class LogicalLine(msgspec.Struct, frozen=True):
    """One instruction's text with continuations joined; `first` and `last` are lines of the file, from 1."""

    text: str
    first: int
    last: int


class Source:
    """Reads a Dockerfile from the top. `escape` is right once the first logical line has been read."""

    def __init__(self, text: str) -> None:
        lines = text.removeprefix(BOM).split("\n")
        self._lines = [line.rstrip("\r") for line in (lines if lines[-1] else lines[:-1])]
        self._at = 0
        self._seen: set[str] = set()
        self._is_top = True
        self._set_escape(DEFAULT_ESCAPE)

    def lines(self) -> Iterator[LogicalLine]:
        """Every logical line that is not empty. Raises `Permanent(invalid)` with the line number."""
        while self._at < len(self._lines):
            raw = self._take().lstrip(SPACES)
            first = self._at
            self._directive(raw)
            text, is_open = self._cut_continuation("" if raw.startswith("#") else raw)
            if not text and not is_open:
                continue
            yield LogicalLine(text + self._rest(is_open=is_open), first, self._at)

    def heredocs(self, line: str) -> tuple[Heredoc, ...]:
        """Read the bodies that `line`, the logical line just read, announces."""
        return tuple(self._heredoc(name, strip_tabs) for name, strip_tabs in _announced(line, self._at))

    @property
    def line_number(self) -> int:
        """The last line read, from 1."""
        return self._at

    def _take(self) -> str:
        self._at += 1
        return self._lines[self._at - 1]

    def _rest(self, *, is_open: bool) -> str:
        pieces: list[str] = []
        while is_open and self._at < len(self._lines):
            raw = self._take()
            stripped = raw.lstrip(SPACES)
            if not stripped or stripped.startswith("#"):
                continue
            piece, is_open = self._cut_continuation(raw)
            pieces.append(piece)
        return "".join(pieces)

    def _cut_continuation(self, line: str) -> tuple[str, bool]:
        trimmed = line.rstrip(" \t")
        if trimmed.endswith(self.escape) and not trimmed.endswith(self.escape * 2):
            return trimmed[:-1], True
        return line, False

    def _directive(self, line: str) -> None:
        if not self._is_top:
            return
        match = _DIRECTIVE.fullmatch(line)
        loose = _LOOSE_DIRECTIVE.fullmatch(line)
        name = loose.group(1).lower() if loose else ""
        if not match and name in _DIRECTIVES:
            raise at_line(self._at, f"engines disagree about this {name!r} directive; write it with ordinary spaces")
        if not match or name not in _DIRECTIVES:
            self._is_top = False
            return
        if name in self._seen:
            raise at_line(self._at, f"only one {name!r} parser directive can be used")
        self._seen.add(name)
        if name == "escape":
            self._set_escape(match.group(2))

    def _set_escape(self, char: str) -> None:
        if char not in ("\\", "`"):
            raise at_line(self._at, f"invalid escape character {char!r}: it can be \\ or `")
        self.escape = char

    def _heredoc(self, name: str, strip_tabs: bool) -> Heredoc:
        start = self._at
        body: list[str] = []
        while self._at < len(self._lines):
            line = self._take()
            line = line.lstrip("\t") if strip_tabs else line
            if line == name:
                return Heredoc(name, "".join(f"{line}\n" for line in body))
            body.append(line)
        raise at_line(start, f"the heredoc <<{name} is not closed by a line that holds only {name}")


def at_line(line: int, message: str) -> Permanent:
    """The fault for a Dockerfile that is wrong in one line."""
    return invalid(f"Dockerfile line {line}: {message}")


def _announced(line: str, number: int) -> Iterator[tuple[str, bool]]:
    """Name, and whether tabs are stripped, of each `<<name` word outside quotes."""
    try:
        words = split_raw(line)
    except Ambiguous as error:
        raise at_line(number, str(error)) from None
    except BadWord:
        # The engine too takes a line that it cannot split for one without heredocs.
        return
    for word in words:
        match = _HEREDOC.fullmatch(word)
        if not match:
            continue
        try:
            names = split_unquoted(match.group(2))
        except BadWord as error:
            raise at_line(number, f"{word!r}: {error}") from None
        if len(names) == 1:
            yield names[0], match.group(1) == "-"
