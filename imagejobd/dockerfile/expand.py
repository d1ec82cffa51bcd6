r"""Words of a Dockerfile: splitting, quoting and variable expansion as BuildKit does them, with a bound on the work.

Only in part the rules of a shell: `frontend/dockerfile/shell/lex.go` is the specification, and each method of `_Lex` is
one of its functions, so that a heredoc or a base image is never read otherwise than by the engine. Every length and
depth is bounded, because ARGs may refer to ARGs and double with each line; and so are the steps that all expansions of
one Dockerfile take together: thousands of words with hundreds of patterns each took minutes. No environment is read.

The patterns of `${x#p}`, `${x%p}` and `${x/p/r}`: `*` any run, `?` any character, `\` takes the next one as it is. They
are matched by stepping a set of positions along the text, in time linear in it: with a backtracking regular expression
a hostile pattern takes years.
"""

import re
from collections import defaultdict
from collections.abc import Mapping

STEPS_MAX = 200_000
NESTING_MAX = 32
WORD_MAX_CHARS = 4096
PATTERN_MAX_CHARS = 64
VALUE_MAX_CHARS = 512

# What Go's unicode.IsSpace calls a space; Python's notion also has the separators U+001C to U+001F.
SPACES = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"

# What the engine splits an instruction from its arguments by, and FROM's words from each other.
SEPARATORS = "\t\v\f\r "

# What a word takes, however short it is, and what it takes to make a pattern ready.
_WORD_STEPS = 16
_PATTERN_STEPS = 16
_SPACE_RUN = re.compile(f"([{SPACES}]+)")
# Since BuildKit 0.22 (Docker 28.2) `<<` takes the space behind it into its word (`processPossibleHeredoc`).
_HEREDOC_START = re.compile(r"<<[\t\r ]*|<")
_NAME = re.compile(r"[0-9]+|[@*#?\-$!]|[^\W\d]\w*")
_PLAIN = re.compile(r"[^$'\"/}\\`<]+")
_QUOTED_PLAIN = re.compile(r"[^$\"\\`]+")
_TOKEN = re.compile(r"\\.|[^\\]", re.DOTALL)


class BadWord(ValueError):
    """A word that the engine refuses too, or one beyond our bounds; the message says why."""


class Ambiguous(BadWord):
    """A word that engines of different age read differently."""


class Steps:
    """Counts the characters read and positions tried for one Dockerfile, from `STEPS_MAX` down."""

    def __init__(self) -> None:
        self._remaining = STEPS_MAX

    def spend(self, count: int) -> None:
        """Raises `ValueError` once there are none left."""
        self._remaining -= count
        if self._remaining < 0:
            raise ValueError(f"the variables and quotes of this Dockerfile take more than {STEPS_MAX} steps to expand")


def expand(word: str, variables: Mapping[str, str], escape: str, steps: Steps) -> str:
    """Replace `$x`, `${x}` and `${x:-default}` (also `-` `+` `?` `#` `%` `/`) and remove quotes and escapes.

    A variable that is not in `variables` is empty. Raises `BadWord`, also when `steps` run out.
    """
    try:
        steps.spend(_WORD_STEPS + len(word))
        return _joined(_Lex(_bounded(word), variables, escape, steps).until(""))
    except ValueError as error:
        raise BadWord(str(error)) from None


def split_raw(line: str, *, joins_heredocs: bool) -> list[str]:
    """Split at spaces outside quotes; quotes, escapes and variables stay as written.

    With `joins_heredocs` a `<<` and the word behind it are one, whatever space is between them, as newer engines read
    it. Raises `BadWord`, and `Ambiguous` for a `${…}` that holds both a space and `<<`: engines split it differently.
    """
    pieces = _Lex(line, None, "\\", Steps(), is_raw=True, joins_heredocs=joins_heredocs).until("")
    for piece, _ in pieces:
        if piece.startswith("${") and "<<" in piece and _SPACE_RUN.search(piece):
            raise Ambiguous(f"{piece[:64]}: engines disagree about '<<' and spaces in a variable; put it in quotes")
    return _split(pieces)


def split_unquoted(line: str) -> list[str]:
    """Split at spaces outside quotes and remove quotes and escapes; variables stay as written. Raises `BadWord`."""
    return _split(_Lex(line, None, "\\", Steps()).until(""))


def split_words(line: str, escape: str) -> list[str]:
    """Split at spaces outside quotes, keeping quotes and escapes, as ENV, LABEL and ARG are (`parseWords`)."""
    e = re.escape(escape)
    word = rf"(?:'[^']*'?|\"(?:{e}.|[^\"{e}])*\"?|{e}.|[^{SPACES}'\"{e}])+"
    return re.findall(word, line, re.DOTALL)


def _split(pieces: list[tuple[str, bool]]) -> list[str]:
    words: list[str] = []
    word: list[str] = []
    for piece, is_splittable in pieces:
        for part in _SPACE_RUN.split(piece) if is_splittable else (piece,):
            if is_splittable and part and part[0] in SPACES:
                words.append("".join(word))
                word.clear()
            else:
                word.append(part)
    words.append("".join(word))
    return [word for word in words if word]


def _joined(pieces: list[tuple[str, bool]]) -> str:
    return _bounded("".join(piece for piece, _ in pieces))


def _bounded(text: str) -> str:
    if len(text) > WORD_MAX_CHARS:
        raise BadWord(f"a word is or expands to more than {WORD_MAX_CHARS} characters")
    return text


class _Lex:
    """One pass over `text`. Without `variables` every `$…` is kept; `is_raw` keeps quotes and escapes too."""

    def __init__(
        self,
        text: str,
        variables: Mapping[str, str] | None,
        escape: str,
        steps: Steps,
        *,
        is_raw: bool = False,
        joins_heredocs: bool = False,
    ) -> None:
        self._text = text
        self._at = 0
        self._depth = 0
        self._variables = variables
        self._escape = escape
        self._steps = steps
        self._keep_quotes = is_raw
        self._keep_escapes = is_raw
        self._joins_heredocs = joins_heredocs

    def until(self, stop: str) -> list[tuple[str, bool]]:
        """The pieces up to the character `stop` ("" is the end), each with whether its spaces separate words."""
        pieces: list[tuple[str, bool]] = []
        while self._at < len(self._text):
            char = self._text[self._at]
            if char == stop:
                self._at += 1
                return pieces
            if char == "$":
                pieces.append((self._dollar(), True))
            elif char == "'":
                pieces.append((self._single_quoted(), False))
            elif char == '"':
                pieces.append((self._double_quoted(), False))
            elif char == self._escape:
                pieces.append((self._escaped(), False))
            elif char == "<" and self._joins_heredocs:
                pieces.append((self._scan(_HEREDOC_START), False))
            else:
                pieces.append((self._scan(_PLAIN) or self._next(), True))
        if stop:
            raise BadWord(f"{stop!r} is missing")
        return pieces

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _next(self) -> str:
        char = self._peek()
        self._at += 1
        return char

    def _scan(self, pattern: re.Pattern[str]) -> str:
        """What matches here, which is read then; empty when nothing does."""
        match = pattern.match(self._text, self._at)
        if not match:
            return ""
        self._at = match.end()
        return match.group()

    def _escaped(self) -> str:
        escape, char = self._next(), self._next()
        return escape + char if self._keep_escapes else char

    def _single_quoted(self) -> str:
        end = self._text.find("'", self._at + 1)
        if end < 0:
            raise BadWord("a single quote is not closed")
        inner = self._text[self._at + 1 : end]
        self._at = end + 1
        return f"'{inner}'" if self._keep_quotes else inner

    def _double_quoted(self) -> str:
        self._at += 1
        pieces: list[str] = []
        while char := self._peek():
            if char == '"':
                self._at += 1
                inner = "".join(pieces)
                return f'"{inner}"' if self._keep_quotes else inner
            pieces.append(self._dollar() if char == "$" else self._in_double_quotes())
        raise BadWord("a double quote is not closed")

    def _in_double_quotes(self) -> str:
        if plain := self._scan(_QUOTED_PLAIN):
            return plain
        char = self._next()
        if char == self._escape and self._peek() in ('"', "$", self._escape):
            return char + self._next() if self._keep_escapes else self._next()
        return char

    def _dollar(self) -> str:
        self._at += 1
        if self._peek() == "{":
            return self._braced()
        name = self._scan(_NAME)
        if not name:
            return "$"
        return f"${name}" if self._variables is None else self._variables.get(name, "")

    def _braced(self) -> str:
        self._at += 1
        if self._peek() in ("", "{", "}", ":"):
            raise BadWord("a variable name is missing after '${'")
        name = self._scan(_NAME)
        operator = self._next()
        if operator == "}":
            return f"${{{name}}}" if self._variables is None else self._variables.get(name, "")
        if operator == "/":
            return self._replaced(name)
        if operator == ":":
            operator += self._next()
        if operator not in ("-", "+", "?", "#", "%", ":-", ":+", ":?", ":#", ":%"):
            raise BadWord(f"'${{{name}{operator}' is not a known form of expansion")
        word = self._operand("}", keep_escapes=operator[-1] in "#%")
        if self._variables is None:
            return f"${{{name}{operator}{word}}}"
        return _modified(name, self._variables.get(name), operator, word, self._steps)

    def _replaced(self, name: str) -> str:
        is_everywhere = self._peek() == "/"
        self._at += is_everywhere
        pattern = self._operand("/", keep_escapes=True)
        replacement = self._operand("}", keep_escapes=True)
        if self._variables is None:
            return f"${{{name}/{pattern}/{replacement}}}"
        value = self._variables.get(name, "")
        return _bounded(_replace(value, pattern, replacement, self._steps, is_everywhere=is_everywhere))

    def _operand(self, stop: str, *, keep_escapes: bool) -> str:
        if self._depth == NESTING_MAX:
            raise BadWord(f"variables are nested more than {NESTING_MAX} deep")
        self._depth += 1
        outer, self._keep_escapes = self._keep_escapes, keep_escapes
        pieces = self.until(stop)
        # What is only split never grows; what is expanded could at every depth anew.
        word = "".join(piece for piece, _ in pieces) if self._variables is None else _joined(pieces)
        self._keep_escapes = outer
        self._depth -= 1
        return word


def _modified(name: str, value: str | None, operator: str, word: str, steps: Steps) -> str:
    is_set = value is not None and (value != "" or operator[0] != ":")
    known = value or ""
    match operator[-1]:
        case "-":
            return known if is_set else word
        case "+":
            return word if is_set else ""
        case "?":
            if not is_set:
                raise BadWord(f"{name}: {word or 'a value is required'}")
            return known
        case mark:
            return _trimmed(known, mark, word, steps)


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
        ends = [start] if state & self._accept else []
        for at in range(start, len(text)):
            self._steps.spend(1)
            moving = state & (self._any | self._literal.get(text[at], 0))
            state = self._closed(moving << 1 | state & self._stars)
            if not state:
                return ends, False
            if state & self._accept:
                ends.append(at + 1)
        return ends, state & ~self._accept != 0

    def _closed(self, state: int) -> int:
        return state | (state & self._stars) << 1


def _trimmed(value: str, mark: str, pattern: str, steps: Steps) -> str:
    """`${x#p}` or, from the end, `${x%p}`; a pattern that begins with the `mark` cuts the longest match. Raises
    `ValueError`."""
    pattern, is_longest = pattern.removeprefix(mark), pattern.startswith(mark)
    step = 1 if mark == "#" else -1
    ends, _ = _Pattern(_tokens(value, pattern)[::step], steps).ends(value[::step])
    cut = ends[-1 if is_longest else 0] if ends else 0
    return value[cut:] if mark == "#" else value[: len(value) - cut]


def _replace(value: str, pattern: str, replacement: str, steps: Steps, *, is_everywhere: bool) -> str:
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
