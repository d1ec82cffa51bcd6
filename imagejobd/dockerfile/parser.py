"""Instructions of a Dockerfile: name, flags, arguments and the lines they stand on.

Refuses what it does not know, so that nothing unread reaches an engine as if it had been checked, and what engines of
different age read differently, so that it is read here as it is built. The grammar is that of BuildKit's
`extractBuilderFlags`, `BFlags` and `parseJSON`, as far as decisions hang on it.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

import msgspec

from imagejobd.dockerfile.expand import SEPARATORS, SPACES, split_words
from imagejobd.dockerfile.source import Heredoc, LogicalLine, Source, SyntaxFault
from imagejobd.model.errors import invalid

# A build of more would be past every engine's limit on layers; a bound keeps the reading of a hostile file short.
INSTRUCTIONS_MAX = 5000
FLAGS_MAX = 64

# A flag that is not here is refused, for nobody has said yet what it may do; `RUN --device`, which hands out the host's
# hardware, is left out on purpose.
FLAGS = {
    "ADD": frozenset({"checksum", "chmod", "chown", "exclude", "keep-git-dir", "link", "unpack"}),
    "COPY": frozenset({"chmod", "chown", "exclude", "from", "link", "parents"}),
    "FROM": frozenset({"platform"}),
    "HEALTHCHECK": frozenset({"interval", "retries", "start-interval", "start-period", "timeout"}),
    "RUN": frozenset({"mount", "network", "security"}),
}
NAMES = (
    frozenset(FLAGS)
    | {"ARG", "CMD", "ENTRYPOINT", "ENV", "EXPOSE", "LABEL", "MAINTAINER"}
    | {"ONBUILD", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR"}
)
MOUNT_TYPES = frozenset({"bind", "cache", "secret", "ssh", "tmpfs"})

_WITH_HEREDOC = frozenset({"ADD", "COPY", "RUN"})
_WITHOUT_ARGUMENTS = frozenset({"CMD", "ENTRYPOINT", "RUN"})
_JSON_FORM = frozenset({"ADD", "CMD", "COPY", "ENTRYPOINT", "HEALTHCHECK", "RUN", "SHELL", "VOLUME"})
_NOT_TRIGGERS = frozenset({"FROM", "MAINTAINER", "ONBUILD"})
_BOOLEAN_FLAGS = frozenset({"keep-git-dir", "link", "parents", "unpack"})
_REPEATED_FLAGS = frozenset({"exclude", "mount"})
_FLAG_CHOICES = {"network": ("default", "none", "host"), "security": ("sandbox", "insecure")}
_MOUNT_SWITCHES = frozenset({"readonly", "readwrite", "required", "ro", "rw"})
_MOUNT_KEYS = (
    _MOUNT_SWITCHES
    | {"destination", "dst", "from", "source", "src", "target", "type"}
    | {"env", "gid", "id", "mode", "sharing", "size", "uid"}
)
_SEPARATOR_RUN = re.compile(f"[{SEPARATORS}]+")
# A whole word of printable ASCII without quotes and escapes, as nearly all flags are.
_PLAIN_FLAG = re.compile(rf"[!#-&(-\[\]-~]+(?=[{SEPARATORS}]|\Z)")
_QUOTED = re.compile(r'[\\"]')
# No engine can pass these on, but for the byte order mark, which it drops where a word begins.
_UNFIT = re.compile("[\\0\ufeff\ud800-\udfff]")


class BadInstruction(ValueError):
    """What no engine knows, or what engines read differently; the message says why."""


class Mount(msgspec.Struct, frozen=True):
    """`type` is one of `MOUNT_TYPES`; `origin` is the stage or image of `from=`, "" for none; `fields` are all the
    others as they are written, with their keys in lower case."""

    type: str
    origin: str
    fields: tuple[str, ...] = ()

    def printed(self) -> str:
        """What follows `--mount=`."""
        fields = (*self.fields, f"from={self.origin}") if self.origin else self.fields
        line = io.StringIO()
        csv.writer(line, lineterminator="").writerow(fields)
        return line.getvalue()


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
    instructions = tuple(_instruction(source, line) for line in islice(source.lines(), 2))
    if len(instructions) != 1:
        raise SyntaxFault(1, "a trigger is exactly one instruction")
    _check_trigger(instructions[0])
    return instructions[0]


def separated(text: str) -> list[str]:
    """Split as engines split FROM, ADD and COPY: at spaces, whatever the quotes."""
    return [word for word in _SEPARATOR_RUN.split(text) if word]


def printed_flag(flag: str) -> str:
    """A flag as a Dockerfile may have it, so that the parser gives it back."""
    if _PLAIN_FLAG.fullmatch(flag):
        return flag
    key, equals, value = flag.partition("=")
    if '"' in value and "'" not in value and "\\" not in value:
        return f"{key}{equals}'{value}'"
    escaped = _QUOTED.sub(r"\\\g<0>", value)
    return f'{key}{equals}"{escaped}"'


def _instruction(source: Source, line: LogicalLine) -> Instruction:
    parsed = _with_trigger(line, source.escape)
    body = parsed.trigger or parsed
    if body.name not in _WITH_HEREDOC or "<<" not in line.text or body.values is not None:
        return parsed
    line, heredocs = source.read_heredocs(line)
    return msgspec.structs.replace(_with_trigger(line, source.escape), heredocs=heredocs)


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
        flags, arguments = _cut_flags(rest or "", escape)
        _check_flags(name, flags)
        values = _json_form(name, arguments)
        _check_arguments(name, arguments, values, escape)
        mounts = tuple(_mount(value) for value in _flag_values(flags, "mount")) if flags else ()
    except BadInstruction as error:
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


def _cut_word(text: str) -> tuple[str, str | None]:
    """The first word, and what follows the space behind it; None where there is none."""
    word, *rest = _SEPARATOR_RUN.split(text, maxsplit=1)
    return word, rest[0] if rest else None


def _flag_values(flags: tuple[str, ...], name: str) -> Iterator[str]:
    prefix = f"--{name}="
    return (flag.removeprefix(prefix) for flag in flags if flag.startswith(prefix))


def _cut_flags(text: str, escape: str) -> tuple[tuple[str, ...], str]:
    """The leading `--…` words without their quotes, and what follows them.

    Any other space than those of ASCII ends the flags.
    """
    text = text.strip(SEPARATORS)
    flags: list[str] = []
    while text.startswith("--"):
        flag, rest = _cut_flag(text)
        if escape != "\\" and any(char in text[: len(text) - len(rest)] for char in ("\\", escape)):
            # Before BuildKit 0.20 (Docker 28) a backslash escapes in flags, whatever the directive says.
            raise BadInstruction(f"flag {flag[:64]!r} holds an escape character, about which engines disagree here")
        text = rest.lstrip(SEPARATORS)
        if flag == "--":
            break
        if len(flags) == FLAGS_MAX:
            raise BadInstruction(f"more than {FLAGS_MAX} flags")
        flags.append(flag)
    return tuple(flags), text.strip(SPACES)


def _cut_flag(text: str) -> tuple[str, str]:
    if plain := _PLAIN_FLAG.match(text):
        return plain.group(), text[plain.end() :]
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
    # The engine takes the bytes of a character for characters, and some of them for spaces.
    if not text[: at + 1].isascii() or not text[:at].isprintable():
        what = "characters other than printable ASCII, which engines tear apart"
        raise BadInstruction(f"flag {text[:at][:64]!r} has {what}")
    return "".join(word), text[at:]


def _check_flags(name: str, flags: Iterable[str]) -> None:
    known = FLAGS.get(name, frozenset())
    seen: set[str] = set()
    for flag in flags:
        key, equals, value = flag[2:].partition("=")
        if key not in known:
            names = ", ".join(f"--{one}" for one in sorted(known)) or "none"
            raise BadInstruction(f"flag --{key[:64]} is not known; its flags: {names}")
        if key in seen and key not in _REPEATED_FLAGS:
            raise BadInstruction(f"flag --{key} is given twice")
        seen.add(key)
        if key in _BOOLEAN_FLAGS:
            if equals and value not in ("true", "false"):
                raise BadInstruction(f"flag --{key} is true or false, not {value[:64]!r}")
        elif not equals:
            raise BadInstruction(f"flag --{key} needs a value: --{key}=…")
        elif key in _FLAG_CHOICES and value not in _FLAG_CHOICES[key]:
            raise BadInstruction(f"flag --{key} is one of {', '.join(_FLAG_CHOICES[key])}, not {value[:64]!r}")


def _mount(value: str) -> Mount:
    """Parse what follows `--mount=`; of a key that is repeated the last counts."""
    keys: dict[str, str] = {}
    fields: list[str] = []
    try:
        words = next(csv.reader([value], strict=True), []) if '"' in value else value.split(",")
    except csv.Error as error:
        raise BadInstruction(f"--mount: {error}") from None
    for field in words:
        key, equals, content = field.partition("=")
        key = key.lower()
        if key not in _MOUNT_KEYS:
            raise BadInstruction(f"--mount: key {key[:64]!r} is not known")
        if not equals and key not in _MOUNT_SWITCHES:
            raise BadInstruction(f"--mount: key {key} needs a value: {key}=…")
        keys[key] = content
        if key != "from":
            fields.append(f"{key}{equals}{content}")
    # Engines expand variables and remove quotes here, so any other text could become any type.
    kind = keys.get("type", "bind").lower()
    if kind not in MOUNT_TYPES:
        raise BadInstruction(f"--mount: type {kind[:64]!r} is not one of {', '.join(sorted(MOUNT_TYPES))}")
    return Mount(kind, keys.get("from", ""), tuple(fields))


def _json_form(name: str, arguments: str) -> tuple[str, ...] | None:
    """The strings of the JSON form, None where it is text. For HEALTHCHECK that is what follows CMD.

    Where engines of different age disagree about which of the two it is, neither is taken.
    """
    text = (_cut_word(arguments)[1] or "") if name == "HEALTHCHECK" else arguments
    if not text.startswith("[") or name not in _JSON_FORM:
        return None
    try:
        values, end = json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError:
        return None
    except (RecursionError, ValueError):
        raise BadInstruction("the JSON array is nested too deep, or holds a huge number") from None
    if text[end:]:
        raise BadInstruction("engines disagree about what follows a JSON array; write it without the array")
    if not all(isinstance(value, str) for value in values):
        raise BadInstruction("a JSON array may hold nothing but strings")
    if any(_UNFIT.search(value) for value in values):
        raise BadInstruction("a string of the JSON array holds NUL, a byte order mark or half a character")
    return tuple(values)


def _check_arguments(name: str, arguments: str, values: tuple[str, ...] | None, escape: str) -> None:
    """Refuse what the engine's parser refuses; `values` are those of the JSON form."""
    if not arguments and name not in _WITHOUT_ARGUMENTS:
        raise BadInstruction("it needs an argument")
    match name:
        case "ENV" | "LABEL":
            words = split_words(arguments, escape)
            # There is no word at all where an escape is all that stands there.
            if not words or "=" not in words[0]:
                if len(separated(arguments)) < 2:
                    raise BadInstruction("it needs a name and a value")
            elif bare := next((word for word in words if "=" not in word), ""):
                raise BadInstruction(f"{bare[:64]!r} has no '='; it takes name=value")
        case "ADD" | "COPY":
            if len(separated(arguments) if values is None else values) < 2:
                raise BadInstruction("it needs a source and a destination")
        case "SHELL" if not values:
            raise BadInstruction('it takes the JSON form: ["program", "argument"]')
        case "HEALTHCHECK":
            kind, test = _cut_word(arguments)
            if not (kind.upper() == "NONE" and test is None) and (kind.upper() != "CMD" or not test):
                raise BadInstruction("it is NONE, or CMD and a command")
