"""The finer grammar of single instructions, as far as decisions or the engine's own parser hang on it.

What follows an instruction is a JSON array of strings, or text. Where engines of different age disagree about which of
the two it is, neither is taken.

Instructions of a Dockerfile: name, flags, arguments and the lines they stand on.

Refuses what it does not know, so that nothing unread reaches an engine as if it had been checked, and what engines of
different age read differently, so that it is read here as it is built.
"""

import json
import re
from collections.abc import Iterator, Mapping
from itertools import islice

import msgspec

from imagejobd.dockerfile.expand import SEPARATORS, SPACES, split_words
from imagejobd.dockerfile.flags import BadFlag, Mount, check_flags, cut_flags, parse_mount
from imagejobd.dockerfile.source import Heredoc, LogicalLine, Source, SyntaxFault
from imagejobd.model.errors import invalid

_JSON_FORM = frozenset({"ADD", "CMD", "COPY", "ENTRYPOINT", "HEALTHCHECK", "RUN", "SHELL", "VOLUME"})
_WITHOUT_ARGUMENTS = frozenset({"CMD", "ENTRYPOINT", "RUN"})
_SEPARATOR_RUN = re.compile(f"[{SEPARATORS}]+")
# No engine can pass these on, but for the byte order mark, which it drops where a word begins.
_UNFIT = re.compile("[\\0\ufeff\ud800-\udfff]")


class BadArguments(ValueError):
    """Arguments that an engine refuses, or that engines read differently; the message says why."""


def separated(text: str) -> list[str]:
    """Split as engines split FROM, ADD and COPY: at spaces, whatever the quotes."""
    return [word for word in _SEPARATOR_RUN.split(text) if word]


def json_form(name: str, arguments: str) -> tuple[str, ...] | None:
    """The strings of the JSON form, None where it is text. Raises `BadArguments`.

    For HEALTHCHECK that is what follows CMD.
    """
    text = arguments
    if name == "HEALTHCHECK":
        _, _, text = _healthcheck(arguments)
    if not text.startswith("[") or name not in _JSON_FORM:
        return None
    try:
        values, end = json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError:
        return None
    except (RecursionError, ValueError):
        raise BadArguments("the JSON array is nested too deep, or holds a huge number") from None
    if text[end:]:
        raise BadArguments("engines disagree about what follows a JSON array; write it without the array")
    if not all(isinstance(value, str) for value in values):
        raise BadArguments("a JSON array may hold nothing but strings")
    if any(_UNFIT.search(value) for value in values):
        raise BadArguments("a string of the JSON array holds NUL, a byte order mark or half a character")
    return tuple(values)


def check_arguments(name: str, arguments: str, values: tuple[str, ...] | None, escape: str) -> None:
    """Refuse what the engine's parser refuses; `values` are those of the JSON form. Raises `BadArguments`."""
    if not arguments and name not in _WITHOUT_ARGUMENTS:
        raise BadArguments("it needs an argument")
    match name:
        case "ENV" | "LABEL":
            _check_pairs(arguments, escape)
        case "ADD" | "COPY":
            if len(separated(arguments) if values is None else values) < 2:
                raise BadArguments("it needs a source and a destination")
        case "SHELL" if not values:
            raise BadArguments('it takes the JSON form: ["program", "argument"]')
        case "HEALTHCHECK":
            _check_healthcheck(arguments)


def _check_pairs(arguments: str, escape: str) -> None:
    words = split_words(arguments, escape)
    if "=" in words[0]:
        for word in words:
            if "=" not in word:
                raise BadArguments(f"{word[:64]!r} has no '='; it takes name=value")
    elif len(separated(arguments)) < 2:
        raise BadArguments("it needs a name and a value")


def _check_healthcheck(arguments: str) -> None:
    kind, gap, test = _healthcheck(arguments)
    if kind == "NONE" and not gap:
        return
    if kind != "CMD" or not test:
        raise BadArguments("it is NONE, or CMD and a command")


def _healthcheck(arguments: str) -> tuple[str, str, str]:
    """The kind in upper case, the space behind it, and the command."""
    match = _SEPARATOR_RUN.search(arguments)
    if not match:
        return arguments.upper(), "", ""
    return arguments[: match.start()].upper(), match.group(), arguments[match.end() :]


# A build of more would be past every engine's limit on layers; a bound keeps the reading of a hostile file short.
INSTRUCTIONS_MAX = 5000

NAMES = frozenset(
    {
        "ADD",
        "ARG",
        "CMD",
        "COPY",
        "ENTRYPOINT",
        "ENV",
        "EXPOSE",
        "FROM",
        "HEALTHCHECK",
        "LABEL",
        "MAINTAINER",
        "ONBUILD",
        "RUN",
        "SHELL",
        "STOPSIGNAL",
        "USER",
        "VOLUME",
        "WORKDIR",
    }
)
_WITH_HEREDOC = frozenset({"ADD", "COPY", "RUN"})
_NOT_TRIGGERS = frozenset({"FROM", "MAINTAINER", "ONBUILD"})
_FIRST_WORD = re.compile(f"([^{SEPARATORS}]*)[{SEPARATORS}]*")


class Instruction(msgspec.Struct, frozen=True, kw_only=True):
    """One instruction. `name` is upper case; `arguments` is the text after the flags; lines count from 1.

    `values` are the strings of the JSON form, None for text; `trigger` is what an ONBUILD holds, else None.
    """

    name: str
    flags: tuple[str, ...]
    arguments: str
    first_line: int
    last_line: int
    values: tuple[str, ...] | None = None
    mounts: tuple[Mount, ...] = ()
    heredocs: tuple[Heredoc, ...] = ()
    trigger: "Instruction | None" = None

    def flag_values(self, name: str) -> Iterator[str]:
        """The value of each `--name=value`."""
        return _flag_values(self.flags, name)


class Dockerfile(msgspec.Struct, frozen=True):
    """A parsed Dockerfile; `escape` is its escape character, `directives` all of its parser directives by name."""

    instructions: tuple[Instruction, ...]
    escape: str
    directives: Mapping[str, str] = {}


def parse(text: str) -> Dockerfile:
    """Parse a Dockerfile. Raises `SyntaxFault`, which names the line, and `Permanent(invalid)` for an empty one."""
    source = Source(text)
    instructions = tuple(_instruction(source, line) for line in islice(source.lines(), INSTRUCTIONS_MAX + 1))
    if len(instructions) > INSTRUCTIONS_MAX:
        raise SyntaxFault(instructions[-1].first_line, f"there are more than {INSTRUCTIONS_MAX} instructions")
    if not instructions:
        raise invalid("the Dockerfile holds no instructions [rule syntax]")
    first = next((one for one in instructions if one.name != "ARG"), instructions[-1])
    if first.name != "FROM":
        raise SyntaxFault(first.first_line, f"{first.name}: it comes before the first FROM; only ARG may")
    return Dockerfile(instructions, source.escape, source.directives)


def parse_trigger(text: str) -> Instruction:
    """Parse an ONBUILD trigger as an image keeps it. Raises `SyntaxFault`."""
    source = Source(text)
    found = tuple(_instruction(source, line) for line in islice(source.lines(), 2))
    if len(found) != 1:
        raise SyntaxFault(1, "a trigger is exactly one instruction")
    _check_trigger(found[0])
    return found[0]


def _instruction(source: Source, line: LogicalLine) -> Instruction:
    parsed = _with_trigger(line, source.escape)
    body = parsed.trigger or parsed
    if body.name not in _WITH_HEREDOC or "<<" not in line.text or body.values is not None:
        return parsed
    closed = source.close_heredocs(line)
    heredocs = source.heredocs(closed.text)
    return msgspec.structs.replace(
        _with_trigger(closed, source.escape), heredocs=heredocs, last_line=source.line_number
    )


def _with_trigger(line: LogicalLine, escape: str) -> Instruction:
    parsed = _parsed(line, line.text, escape)
    if parsed.name != "ONBUILD":
        return parsed
    trigger = _parsed(line, parsed.arguments, escape)
    _check_trigger(trigger)
    return msgspec.structs.replace(parsed, trigger=trigger)


def _check_trigger(trigger: Instruction) -> None:
    if trigger.name in _NOT_TRIGGERS:
        raise SyntaxFault(trigger.first_line, f"ONBUILD: {trigger.name} is not allowed in it")


def _parsed(line: LogicalLine, text: str, escape: str) -> Instruction:
    word, rest = _cut_word(text.strip(SPACES))
    name = word.upper()
    if name not in NAMES or not word.isascii():
        raise SyntaxFault(line.first, f"unknown instruction {word[:64]!r}")
    try:
        flags, arguments = cut_flags(rest, escape)
        check_flags(name, flags)
        values = json_form(name, arguments)
        check_arguments(name, arguments, values, escape)
        mounts = tuple(parse_mount(value) for value in _flag_values(flags, "mount")) if flags else ()
    except (BadFlag, BadArguments) as error:
        raise SyntaxFault(line.first, f"{name}: {error}") from None
    return Instruction(
        name=name,
        flags=flags,
        arguments=arguments,
        first_line=line.first,
        last_line=line.last,
        values=values,
        mounts=mounts,
    )


def _cut_word(text: str) -> tuple[str, str]:
    match = _FIRST_WORD.match(text)
    # The pattern matches the empty text too.
    return (match.group(1), text[match.end() :]) if match else ("", text)


def _flag_values(flags: tuple[str, ...], name: str) -> Iterator[str]:
    prefix = f"--{name}="
    return (flag.removeprefix(prefix) for flag in flags if flag.startswith(prefix))
