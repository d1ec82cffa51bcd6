"""`.dockerignore`, as docker reads and applies it: moby's `patternmatcher`, walked as BuildKit's client walks.

The file goes through two stages there, each of which trims and cleans a line anew (`ignorefile.ReadAll`, then
`patternmatcher.New`), and some odd lines mean what they mean only because of that: so it does here. Patterns that are
not plain become regular expressions of RE2's syntax, which is Go's.
"""

import posixpath
import re
import time
from collections.abc import Iterator
from enum import Enum

import msgspec
import re2

from imagejobd.model.errors import ErrorCode, Permanent, invalid
from imagejobd.model.text import quoted

IGNORE_FILE = ".dockerignore"
IGNORE_FILE_MAX_BYTES = 1 << 20
# Every one may have to be tried on every path.
PATTERNS_MAX = 2000
# What all comparisons of one file may take. Behind a `*`, question marks have so many states that RE2 is slow at them,
# and would fill its memory: 8 MiB for each pattern unless it is told.
PROCESSOR_MAX_S = 30.0
REGEXP_MAX_BYTES = 256 << 10

# What Go's `strings.TrimSpace` removes; Python's `strip` would also take U+001C to U+001F.
_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
_BOM = b"\xef\xbb\xbf"
# Go's `bufio.MaxScanTokenSize`.
_LINE_MAX_BYTES = 64 << 10
_LITERAL_IN_PATTERNS = frozenset(".+()|{}$")
_WILDCARDS = frozenset("*[]?^\\")
# A byte that is not UTF-8 is one character to Go's regular expressions, and the same whichever it is.
_NOT_UTF8 = re.compile("[\udc80-\udcff]")


class _How(Enum):
    EXACT = "the whole path"
    PREFIX = "the beginning of the path"
    SUFFIX = "the end of the path"
    REGEXP = "a regular expression"


class _Pattern(msgspec.Struct, frozen=True):
    text: str
    is_exception: bool
    how: _How
    regexp: "re2._Regexp" = None

    def matches(self, path: str) -> bool:
        match self.how:
            case _How.EXACT:
                return path == self.text
            case _How.PREFIX:
                return path.startswith(self.text[:-2])
            case _How.SUFFIX:
                suffix = self.text[2:]
                # `**/name` is also `name` at the top.
                return path.endswith(suffix) or (suffix[0] == "/" and path == suffix[1:])
            case _How.REGEXP:
                return self.regexp.search(_NOT_UTF8.sub("\ufffd", path)) is not None

    @property
    def folder(self) -> str:
        """Where everything lies that an exception can bring back, if it has no wildcard but a last `*` or `**`."""
        return self.text.removesuffix("/**").removesuffix("/*")


class IgnoreFile:
    """The patterns of one `.dockerignore`. Paths are relative to the context, of bytes, without `.` and `..`.

    Verdicts on directories are remembered, because those on what is in them build upon them. All of them together may
    take `PROCESSOR_MAX_S`; whatever asks for one raises `Permanent(too_large)` after that.
    """

    def __init__(self, content: bytes, name: str = IGNORE_FILE) -> None:
        """Read the file. Raises `Permanent(invalid | too_large)`, which names the line of the file called `name`."""
        if len(content) > IGNORE_FILE_MAX_BYTES:
            raise _too_large(name, f"has {len(content)} bytes", IGNORE_FILE_MAX_BYTES)
        self._name = name
        self._spent_s = 0.0
        self._patterns = _read(content, name)
        if len(self._patterns) > PATTERNS_MAX:
            raise _too_large(name, f"has {len(self._patterns)} patterns", PATTERNS_MAX)
        exceptions = [pattern for pattern in self._patterns if pattern.is_exception]
        self._exceptions = [f"{pattern.folder}/" for pattern in exceptions]
        self._has_wild_exceptions = any(not _WILDCARDS.isdisjoint(pattern.folder) for pattern in exceptions)
        self._directories: dict[str, tuple[bool, int]] = {}

    def excludes(self, path: bytes) -> bool:
        """Whether the file, link or directory is left out. What is in such a directory may be brought back."""
        return self._verdict(_text(path))[0]

    def prunes(self, directory: bytes) -> bool:
        """Whether the directory is left out with everything in it, so that it need not be walked."""
        text = _text(directory)
        if self._has_wild_exceptions or not self._directory(text)[0]:
            return False
        return not any(exception.startswith(f"{text}/") for exception in self._exceptions)

    def _directory(self, path: str) -> tuple[bool, int]:
        verdict = self._directories.get(path)
        if verdict is None:
            verdict = self._directories[path] = self._verdict(path)
        return verdict

    def _verdict(self, path: str) -> tuple[bool, int]:
        """Whether `path` is excluded, and the patterns that it or a directory above matches, as bits.

        A pattern that could not change the verdict is not tried, and then does not count as matched below either
        (`MatchesUsingParentResults`): `*`, `!a/b`, `a` excludes `a` but leaves `a/b`.
        """
        parent = path.rpartition("/")[0]
        above = self._directory(parent)[1] if parent else 0
        is_excluded, matches = False, 0
        begun_s = time.thread_time()
        for number, pattern in enumerate(self._patterns):
            bit = 1 << number
            if above & bit or (pattern.is_exception == is_excluded and pattern.matches(path)):
                matches |= bit
                is_excluded = not pattern.is_exception
        self._spent_s += time.thread_time() - begun_s
        if self._spent_s > PROCESSOR_MAX_S:
            why = f"{self._name} takes more than {PROCESSOR_MAX_S:g} s of a processor for the paths of this context"
            raise Permanent(ErrorCode.TOO_LARGE, f"{why}; use fewer wildcards in it")
        return is_excluded, matches


def _read(content: bytes, name: str) -> list[_Pattern]:
    patterns = []
    for number, line in enumerate(content.removeprefix(_BOM).split(b"\n"), 1):
        if len(line) >= _LINE_MAX_BYTES:
            raise _too_large(name, f"line {number} has {len(line)} bytes", _LINE_MAX_BYTES)
        text = _line(_text(line.removesuffix(b"\r")))
        if not text:
            continue
        try:
            patterns.append(_pattern(text))
        except ValueError as error:
            raise invalid(f"{name}, line {number}: the pattern {quoted(text)} {error}") from None
    return patterns


def _line(text: str) -> str:
    """What `ignorefile.ReadAll` makes of a line; empty for none."""
    if text.startswith("#"):
        return ""
    text = text.strip(_SPACE)
    mark = "!" if text.startswith("!") else ""
    text = text[len(mark) :].strip(_SPACE) if mark else text
    if text:
        text = _clean(text)
        text = text[1:] if len(text) > 1 and text[0] == "/" else text
    return mark + text


def _pattern(text: str) -> _Pattern:
    """What `patternmatcher.New` makes of that. Raises ValueError."""
    text = _clean(text.strip(_SPACE))
    is_exception = text.startswith("!")
    if is_exception:
        text = text[1:]
    if not text:
        raise ValueError("excepts nothing; write what after the '!'")
    _check_syntax(text)
    how, expression = _compiled(text)
    if how is not _How.REGEXP:
        return _Pattern(text, is_exception, how)
    options = re2.Options()
    options.log_errors = False
    options.max_mem = REGEXP_MAX_BYTES
    try:
        return _Pattern(text, is_exception, how, re2.compile(_NOT_UTF8.sub("\ufffd", expression), options))
    except re2.error as error:
        reason = error.args[0].decode(errors="replace")
        raise ValueError(f"cannot be read as docker reads it: {reason}") from None


def _check_syntax(pattern: str) -> None:
    """What Go's `filepath.Match` finds wrong with a pattern, as ValueError."""
    chars = iter(pattern)
    for char in chars:
        if char == "\\" and next(chars, "") == "":
            raise ValueError("ends in a backslash, which escapes nothing")
        if char == "[":
            _check_class(chars)


def _check_class(chars: Iterator[str]) -> None:
    """Go past a character class; what stands in it has to be single characters and ranges, of which at least one."""
    unfinished = ValueError("has a '[' whose characters and ranges do not end in a ']'")
    char = next(chars, "")
    if char == "^":
        char = next(chars, "")
    is_empty = True
    while is_empty or char != "]":
        char = _past_class_char(char, chars, unfinished)
        if char == "-":
            char = _past_class_char(next(chars, ""), chars, unfinished)
        is_empty = False


def _past_class_char(char: str, chars: Iterator[str], unfinished: ValueError) -> str:
    """The character after the one that `char` begins."""
    if char == "\\":
        char = next(chars, "")
    elif char in ("-", "]"):
        raise unfinished
    following = next(chars, "") if char else ""
    if not following or _NOT_UTF8.match(char):
        raise unfinished
    return following


def _compiled(pattern: str) -> tuple[_How, str]:
    """How the pattern is compared, and the regular expression where it is by one."""
    how, expression, at = _How.EXACT, "^", 0
    while at < len(pattern):
        char = pattern[at]
        at += 1
        if char == "*" and pattern.startswith("*", at):
            is_first = at == 1
            at += 2 if pattern.startswith("/", at + 1) else 1
            is_last = at == len(pattern)
            expression += ".*" if is_last else "(.*/)?"
            how = _How.PREFIX if is_last and how is _How.EXACT else _How.REGEXP
            how = _How.SUFFIX if is_first else how
        elif char in "*?":
            expression += "[^/]*" if char == "*" else "[^/]"
            how = _How.REGEXP
        elif char == "\\":
            expression += char + pattern[at]
            at += 1
            how = _How.REGEXP
        else:
            expression += f"\\{char}" if char in _LITERAL_IN_PATTERNS else char
            how = _How.REGEXP if char in "[]" else how
    return how, f"{expression}$"


def _clean(path: str) -> str:
    """Go's `path.Clean`."""
    cleaned = posixpath.normpath(path)
    return cleaned[1:] if cleaned.startswith("//") else cleaned


def _text(path: bytes) -> str:
    return path.decode(errors="surrogateescape")


def _too_large(name: str, what: str, limit: int) -> Permanent:
    return Permanent(ErrorCode.TOO_LARGE, f"{name} {what}; the limit is {limit}")
