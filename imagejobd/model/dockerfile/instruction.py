"""Instructions of a Dockerfile: name, flags, arguments and the lines they stand on.

Refuses what it does not know, so that nothing unread reaches an engine as if it had been checked. The finer grammar of
each instruction is left to the engine, whose own message says it best.
"""

import json
from collections.abc import Iterator
from itertools import islice

import msgspec

from imagejobd.model.dockerfile.source import Heredoc, LogicalLine, Source, at_line
from imagejobd.model.dockerfile.words import SEPARATORS, SPACES
from imagejobd.model.errors import invalid

# A build of more would be past every engine's limit on layers; a bound keeps the reading of a hostile file short.
INSTRUCTIONS_MAX = 5000
FLAGS_MAX = 64

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
_WITHOUT_ARGUMENTS = frozenset({"CMD", "ENTRYPOINT", "RUN", "SHELL"})
_WITH_HEREDOC = frozenset({"ADD", "COPY", "RUN"})
_NOT_TRIGGERS = frozenset({"FROM", "MAINTAINER", "ONBUILD"})


class Instruction(msgspec.Struct, frozen=True, kw_only=True):
    """One instruction. `name` is upper case; `arguments` is the text after the flags; lines count from 1.

    `trigger` is what an ONBUILD holds, else None.
    """

    name: str
    flags: tuple[str, ...]
    arguments: str
    first_line: int
    last_line: int
    heredocs: tuple[Heredoc, ...] = ()
    trigger: "Instruction | None" = None

    def flag_values(self, name: str) -> Iterator[str]:
        """The value of each `--name=value`."""
        prefix = f"--{name}="
        return (flag.removeprefix(prefix) for flag in self.flags if flag.startswith(prefix))


class Dockerfile(msgspec.Struct, frozen=True):
    """A parsed Dockerfile; `escape` is its escape character."""

    instructions: tuple[Instruction, ...]
    escape: str


def parse(text: str) -> Dockerfile:
    """Parse a Dockerfile. Raises `Permanent(invalid)` that names the line."""
    source = Source(text)
    instructions = tuple(_instruction(source, line) for line in islice(source.lines(), INSTRUCTIONS_MAX + 1))
    if len(instructions) > INSTRUCTIONS_MAX:
        raise at_line(instructions[-1].first_line, f"there are more than {INSTRUCTIONS_MAX} instructions")
    if not instructions:
        raise invalid("the Dockerfile holds no instructions")
    first = next((one for one in instructions if one.name != "ARG"), instructions[-1])
    if first.name != "FROM":
        raise at_line(first.first_line, f"{first.name} comes before the first FROM; only ARG may")
    return Dockerfile(instructions, source.escape)


def _instruction(source: Source, line: LogicalLine) -> Instruction:
    parsed = _parsed(line, line.text)
    if parsed.name == "ONBUILD":
        parsed = msgspec.structs.replace(parsed, trigger=_trigger(line, parsed.arguments))
    body = parsed.trigger or parsed
    if body.name not in _WITH_HEREDOC or "<<" not in line.text or _is_json(body):
        return parsed
    heredocs = source.heredocs(line.text)
    return msgspec.structs.replace(parsed, heredocs=heredocs, last_line=source.line_number)


def _trigger(line: LogicalLine, text: str) -> Instruction:
    trigger = _parsed(line, text)
    if trigger.name in _NOT_TRIGGERS:
        raise at_line(line.first, f"{trigger.name} is not allowed in ONBUILD")
    return trigger


def _parsed(line: LogicalLine, text: str) -> Instruction:
    word, rest = _cut_word(text.strip(SPACES))
    name = word.upper()
    if name not in NAMES or not word.isascii():
        raise at_line(line.first, f"unknown instruction {word[:64]!r}")
    flags, arguments = _cut_flags(rest)
    if len(flags) > FLAGS_MAX:
        raise at_line(line.first, f"{name} has more than {FLAGS_MAX} flags")
    if not arguments and name not in _WITHOUT_ARGUMENTS:
        raise at_line(line.first, f"{name} needs an argument")
    return Instruction(name=name, flags=flags, arguments=arguments, first_line=line.first, last_line=line.last)


def _cut_word(text: str) -> tuple[str, str]:
    end = next((at for at, char in enumerate(text) if char in SEPARATORS), len(text))
    return text[:end], text[end:].lstrip(SEPARATORS)


def _cut_flags(text: str) -> tuple[tuple[str, ...], str]:
    """The leading `--…` words without their quotes, and what follows them (BuildKit's `extractBuilderFlags`)."""
    flags: list[str] = []
    text = text.strip(SPACES)
    while text.startswith("--") and len(flags) <= FLAGS_MAX:
        flag, text = _cut_flag(text)
        text = text.lstrip(SPACES)
        if flag == "--":
            break
        flags.append(flag)
    return tuple(flags), text


def _cut_flag(text: str) -> tuple[str, str]:
    word: list[str] = []
    quote = ""
    at = 0
    while at < len(text):
        char = text[at]
        if char == "\\":
            at += 1
            word.append(text[at : at + 1])
        elif char == quote:
            quote = ""
        elif not quote and char in "'\"":
            quote = char
        elif not quote and char in SPACES:
            break
        else:
            word.append(char)
        at += 1
    return "".join(word), text[at:]


def _is_json(instruction: Instruction) -> bool:
    """Whether the engine takes the arguments for the JSON form: an array of nothing but strings.

    Old parsers overlook what follows the array, so a heredoc there is one for new engines only.
    """
    if not instruction.arguments.startswith("["):
        return False
    try:
        values, end = json.JSONDecoder().raw_decode(instruction.arguments)
    except (ValueError, RecursionError):
        return False
    is_json = all(isinstance(value, str) for value in values)
    if is_json and "<<" in instruction.arguments[end:]:
        raise at_line(instruction.first_line, "engines disagree about '<<' behind a JSON array; write one or the other")
    return is_json
