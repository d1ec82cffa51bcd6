"""Dockerfile text to logical lines: directives, comments, continuations and heredocs; and who is to read the file.

Follows BuildKit's `parser.Parse`, which decides by these rules what is an instruction and what is only the body of one.
Lines end at a line feed and nowhere else: Python's `splitlines` knows a dozen more ends than the engine does.

`# syntax=image` makes BuildKit pull an image and let it translate the file, so nothing that was checked here would be
what is built. Engines differ in which forms they see; `frontends` sees every form that one of them does.
"""

import re
from collections.abc import Iterator

import msgspec

from imagejobd.dockerfile.expand import SPACES, Ambiguous, BadWord, split_raw, split_unquoted
from imagejobd.model.errors import ErrorCode, Permanent

BOM = "\ufeff"
DEFAULT_ESCAPE = "\\"
# Most of them comments; what so many instructions need is far less.
LINES_MAX = 20_000
# The engine's own bound on one line, without its end.
LINE_MAX_BYTES = 65534
# Telling heredocs from quotes takes a look at each character.
HEREDOC_LINES_MAX_CHARS = 256 * 1024

_DIRECTIVE_SPACES = "\t\f\r "
# The value is stripped afterwards: a pattern for the spaces behind it takes time by the square of their number.
_DIRECTIVE = re.compile(
    rf"#[{_DIRECTIVE_SPACES}]*([a-zA-Z][a-zA-Z0-9]*)[{_DIRECTIVE_SPACES}]*=[{_DIRECTIVE_SPACES}]*(.+)"
)
_LOOSE_DIRECTIVE = re.compile(r"#\s*([a-zA-Z][a-zA-Z0-9]*)\s*=.*", re.DOTALL)
_DIRECTIVES = frozenset({"escape", "syntax", "check"})
_HEREDOC = re.compile(r"[0-9]*<<(-?)([\t\f\r ]*)([^<]+)")
# Of its name engines make other things where it holds anything else.
_HEREDOC_NAME = re.compile(r"([\"']?)([A-Za-z0-9_][A-Za-z0-9_.-]*)\1")
_FRONTEND_DIRECTIVE = re.compile(r"(?:#|//)\s*([a-zA-Z][a-zA-Z0-9]*)\s*=\s*(\S.*)", re.DOTALL)
# The frontend that every engine with BuildKit has built in, in its stable versions.
_BUILTIN = re.compile(r"(?:docker\.io/)?docker/dockerfile(?::(?:latest|1(?:\.\d{1,4}){0,2}))?", re.ASCII)


class SyntaxFault(Permanent):
    """A Dockerfile that is wrong, or beyond our bounds, in one line, which the message names beside `reason`."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(ErrorCode.INVALID, f"Dockerfile line {line}: {reason} [rule syntax]")
        self.reason = reason


class Heredoc(msgspec.Struct, frozen=True):
    """The body between `<<name` and the line `name`; its lines are counted in the instruction's range."""

    name: str
    body: str


class LogicalLine(msgspec.Struct, frozen=True):
    """One instruction's text with continuations joined; `first` and `last` are lines of the file, from 1."""

    text: str
    first: int
    last: int


class Frontend(msgspec.Struct, frozen=True):
    """A choice of who reads the file: `image` as it is written, None for a form that cannot be allowed."""

    line: int
    text: str
    image: str | None

    @property
    def is_builtin(self) -> bool:
        """Whether it stands for the frontend inside the engine, which then fetches none."""
        return self.image is not None and _BUILTIN.fullmatch(self.image) is not None


class Source:
    """Reads a Dockerfile from the top. `escape` and `directives` (by name in lower case) are right once the first
    logical line has been read."""

    def __init__(self, text: str) -> None:
        if "\0" in text:
            raise SyntaxFault(text.count("\n", 0, text.index("\0")) + 1, "there is a NUL character")
        # Counted before there is an object for each.
        if text.count("\n", 0, -1) >= LINES_MAX:
            raise SyntaxFault(LINES_MAX + 1, f"there are more than {LINES_MAX} lines")
        lines = text.removeprefix(BOM).split("\n")
        if max(map(len, lines)) * 4 > LINE_MAX_BYTES:
            for number, line in enumerate(lines, 1):
                if len(line.encode()) > LINE_MAX_BYTES:
                    raise SyntaxFault(number, f"the line is longer than {LINE_MAX_BYTES} bytes, the engine's limit")
        self._lines = lines if lines[-1] else lines[:-1]
        self._at = 0
        self._heredoc_lines_chars = 0
        self.directives: dict[str, str] = {}
        self._is_top = True
        self._set_escape(DEFAULT_ESCAPE)

    def lines(self) -> Iterator[LogicalLine]:
        """Every logical line that is not empty. Raises `SyntaxFault`."""
        while self._at < len(self._lines):
            raw = self._take().lstrip(SPACES)
            first = self._at
            if self._is_top:
                self._directive(raw)
            if not raw or raw.startswith("#"):
                continue
            text, is_open = self._cut_continuation(raw)
            line = LogicalLine(text + self._rest() if is_open else text, first, self._at)
            if BOM in line.text:
                # The engine's lexer drops one where a word begins, so the end of a heredoc or a value would be another.
                raise SyntaxFault(first, "there is a byte order mark inside the text")
            yield line

    def read_heredocs(self, line: LogicalLine) -> tuple[LogicalLine, tuple[Heredoc, ...]]:
        """Read the bodies that `line`, the logical line just read, announces. Also `line` with them, and without the
        space that may stand between `<<` and a name.

        Only engines since BuildKit 0.22 (Docker 28.2) see a heredoc in `<< EOF`; written as one word all do. Raises
        `SyntaxFault` where they would differ even so.
        """
        number = self._at
        self._heredoc_lines_chars += len(line.text)
        if self._heredoc_lines_chars > HEREDOC_LINES_MAX_CHARS:
            limit = f"{HEREDOC_LINES_MAX_CHARS} characters together"
            raise SyntaxFault(number, f"the instructions that hold '<<' have more than {limit}")
        pieces: list[str] = []
        at = 0
        for word in _raw_words(line.text, number, joins_heredocs=True):
            start = line.text.find(word, at)
            match = _HEREDOC.fullmatch(word)
            if match and match.group(2) and start >= 0:
                pieces += [line.text[at:start], word[: match.start(2)], word[match.end(2) :]]
                at = start + len(word)
            else:
                pieces.append(line.text[at : max(at, start + len(word))])
                at = max(at, start + len(word))
        text = "".join([*pieces, line.text[at:]])
        names = _names(line.text, number, joins_heredocs=True)
        if any(_names(text, number, joins_heredocs=joins) != names for joins in (False, True)):
            raise SyntaxFault(number, "engines disagree about '<<' and the spaces behind it; put '<<' in quotes")
        heredocs = tuple([self._heredoc(word, strip_tabs, number) for word, strip_tabs in names])
        return LogicalLine(text, line.first, self._at), heredocs

    def _take(self) -> str:
        self._at += 1
        return self._lines[self._at - 1].rstrip("\r")

    def _rest(self) -> str:
        pieces: list[str] = []
        is_open = True
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
        if trimmed[-1:] == self.escape and not trimmed.endswith(self.escape * 2):
            return trimmed[:-1], True
        return line, False

    def _directive(self, line: str) -> None:
        match = _DIRECTIVE.fullmatch(line)
        loose = _LOOSE_DIRECTIVE.fullmatch(line)
        name = loose.group(1).lower() if loose else ""
        if not match and name in _DIRECTIVES:
            raise SyntaxFault(
                self._at, f"engines disagree about this {name!r} directive; write it with ordinary spaces"
            )
        if not match or name not in _DIRECTIVES:
            self._is_top = False
            return
        if name in self.directives:
            raise SyntaxFault(self._at, f"only one {name!r} parser directive can be used")
        if name == "escape" and "check" in self.directives:
            raise SyntaxFault(
                self._at, "engines disagree about 'escape' behind 'check'; put the escape directive first"
            )
        self.directives[name] = match.group(2).rstrip(_DIRECTIVE_SPACES)
        if name == "escape":
            self._set_escape(self.directives[name])

    def _set_escape(self, char: str) -> None:
        if char not in ("\\", "`"):
            raise SyntaxFault(self._at, f"invalid escape character {char!r}: it can be \\ or `")
        self.escape = char

    def _heredoc(self, word: str, strip_tabs: bool, number: int) -> Heredoc:
        match = _HEREDOC_NAME.fullmatch(word)
        if not match:
            why = "the name of a heredoc has letters, digits, '_', '.' and '-' only"
            hint = "put a '<<' that announces none in quotes, or write $((1<<2)) without spaces"
            raise SyntaxFault(number, f"<<{word[:64]}: {why}; {hint}")
        name, start = match.group(2), self._at
        body: list[str] = []
        while self._at < len(self._lines):
            line = self._take()
            line = line.lstrip("\t") if strip_tabs else line
            if line == name:
                return Heredoc(name, "".join(f"{line}\n" for line in body))
            body.append(line)
        raise SyntaxFault(start, f"the heredoc <<{name[:64]} is not closed by a line that holds only {name[:64]}")


def frontends(text: str) -> Iterator[Frontend]:
    """Every choice of a frontend in `text`.

    Covers `# syntax=` and `// syntax=` among the leading directives, also after a byte order mark or a shebang, and
    a JSON document. A `# syntax=` further down is a comment to every engine and stays one here.
    """
    lines = text.removeprefix(BOM).split("\n")
    start = 1 if lines[0].startswith("#!") else 0
    first = next((line for line in lines[start:] if line.strip(SPACES + BOM)), "")
    if first.lstrip(SPACES + BOM).startswith("{"):
        yield Frontend(start + 1, "a JSON document", None)
    for number, line in enumerate(lines[start:], start + 1):
        match = _FRONTEND_DIRECTIVE.match(line.lstrip(SPACES + BOM))
        if not match:
            return
        if match.group(1).lower() == "syntax":
            yield Frontend(number, repr(line.strip(SPACES)[:128]), match.group(2).strip(SPACES))


def _names(line: str, number: int, *, joins_heredocs: bool) -> list[tuple[str, bool]]:
    """What stands behind each `<<` that announces a heredoc, as written, and whether a `-` was before it."""
    names: list[tuple[str, bool]] = []
    for word in _raw_words(line, number, joins_heredocs=joins_heredocs):
        match = _HEREDOC.fullmatch(word)
        if not match:
            continue
        try:
            # Several words, or none, announce nothing.
            is_one = len(split_unquoted(match.group(3))) == 1
        except BadWord as error:
            raise SyntaxFault(number, f"{word[:64]!r}: {error}") from None
        if is_one:
            names.append((match.group(3), match.group(1) == "-"))
    return names


def _raw_words(line: str, number: int, *, joins_heredocs: bool) -> list[str]:
    try:
        return split_raw(line, joins_heredocs=joins_heredocs)
    except Ambiguous as error:
        raise SyntaxFault(number, str(error)) from None
    except BadWord:
        # The engine too takes a line that it cannot split for one without heredocs.
        return []
