"""Flags of instructions: which there are, and how they are cut from a line.

BuildKit's `extractBuilderFlags` and `BFlags`. A flag that is not in the table is refused, for nobody has said yet what
it may do; `RUN --device`, which hands out the host's hardware, is left out on purpose.

`RUN --mount=`: the comma-separated keys that say what is mounted, and from which image or stage.
"""

import csv
import io
import re
from collections.abc import Iterable

import msgspec

from imagejobd.dockerfile.expand import SEPARATORS, SPACES

FLAGS_MAX = 64

FLAGS = {
    "ADD": frozenset({"checksum", "chmod", "chown", "exclude", "keep-git-dir", "link", "unpack"}),
    "COPY": frozenset({"chmod", "chown", "exclude", "from", "link", "parents"}),
    "FROM": frozenset({"platform"}),
    "HEALTHCHECK": frozenset({"interval", "retries", "start-interval", "start-period", "timeout"}),
    "RUN": frozenset({"mount", "network", "security"}),
}
_BOOLEAN = frozenset({"keep-git-dir", "link", "parents", "unpack"})
_REPEATED = frozenset({"exclude", "mount"})
_CHOICES = {"network": ("default", "none", "host"), "security": ("sandbox", "insecure")}
# A whole word of printable ASCII without quotes and escapes, as nearly all flags are.
_QUOTED = re.compile(r'[\\"]')
_PLAIN_FLAG = re.compile(rf"[!#-&(-\[\]-~]+(?=[{SEPARATORS}]|\Z)")


class BadFlag(ValueError):
    """A flag that no engine knows, or that engines read differently; the message says why."""


def cut_flags(text: str, escape: str) -> tuple[tuple[str, ...], str]:
    """The leading `--…` words without their quotes, and what follows them. Raises `BadFlag`.

    Any other space than those of ASCII ends the flags.
    """
    text = text.strip(SEPARATORS)
    flags: list[str] = []
    while text.startswith("--"):
        flag, rest = _cut_flag(text)
        if escape != "\\" and any(char in text[: len(text) - len(rest)] for char in ("\\", escape)):
            # Before BuildKit 0.20 (Docker 28) a backslash escapes in flags, whatever the directive says.
            raise BadFlag(f"flag {flag[:64]!r} holds an escape character, about which engines disagree here")
        text = rest.lstrip(SEPARATORS)
        if flag == "--":
            break
        if len(flags) == FLAGS_MAX:
            raise BadFlag(f"more than {FLAGS_MAX} flags")
        flags.append(flag)
    return tuple(flags), text.strip(SPACES)


def check_flags(name: str, flags: Iterable[str]) -> None:
    """Hold the flags of an instruction `name` against the table. Raises `BadFlag`."""
    known = FLAGS.get(name, frozenset())
    seen: set[str] = set()
    for flag in flags:
        key, equals, value = flag[2:].partition("=")
        if key not in known:
            names = ", ".join(f"--{one}" for one in sorted(known)) or "none"
            raise BadFlag(f"flag --{key[:64]} is not known; its flags: {names}")
        if key in seen and key not in _REPEATED:
            raise BadFlag(f"flag --{key} is given twice")
        seen.add(key)
        _check_value(key, equals, value)


def written(flag: str) -> str:
    """A flag as a Dockerfile may have it, so that `cut_flags` gives it back. Raises `BadFlag`."""
    if _PLAIN_FLAG.fullmatch(flag):
        return flag
    key, equals, value = flag.partition("=")
    if '"' in value and "'" not in value and "\\" not in value:
        return f"{key}{equals}'{value}'"
    escaped = _QUOTED.sub(r"\\\g<0>", value)
    return f'{key}{equals}"{escaped}"'


def spelled_out(flag: str) -> str:
    """A flag with its value: `--link` is `--link=true`, which engines take for the same."""
    return flag if "=" in flag else f"{flag}=true"


def _check_value(key: str, equals: str, value: str) -> None:
    if key in _BOOLEAN:
        if equals and value not in ("true", "false"):
            raise BadFlag(f"flag --{key} is true or false, not {value[:64]!r}")
    elif not equals:
        raise BadFlag(f"flag --{key} needs a value: --{key}=…")
    elif key in _CHOICES and value not in _CHOICES[key]:
        raise BadFlag(f"flag --{key} is one of {', '.join(_CHOICES[key])}, not {value[:64]!r}")


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
        raise BadFlag(f"flag {text[:at][:64]!r} has characters other than printable ASCII, which engines tear apart")
    return "".join(word), text[at:]


TYPES = frozenset({"bind", "cache", "secret", "ssh", "tmpfs"})

_FLAG_KEYS = frozenset({"readonly", "readwrite", "required", "ro", "rw"})
_VALUE_KEYS = frozenset(
    {
        "destination",
        "dst",
        "env",
        "from",
        "gid",
        "id",
        "mode",
        "sharing",
        "size",
        "source",
        "src",
        "target",
        "type",
        "uid",
    }
)


class Mount(msgspec.Struct, frozen=True):
    """`type` is one of `TYPES`; `origin` is the stage or image of `from=`, "" for none; `fields` are all the others
    as they are written, with their keys in lower case."""

    type: str
    origin: str
    fields: tuple[str, ...] = ()

    def written(self) -> str:
        """What follows `--mount=`."""
        fields = (*self.fields, f"from={self.origin}") if self.origin else self.fields
        line = io.StringIO()
        csv.writer(line, lineterminator="").writerow(fields)
        return line.getvalue()


def parse_mount(value: str) -> Mount:
    """Parse what follows `--mount=`; of a key that is repeated the last counts. Raises `BadFlag`."""
    keys: dict[str, str] = {}
    fields: list[str] = []
    for field in _fields(value):
        key, equals, content = field.partition("=")
        key = key.lower()
        if key not in _VALUE_KEYS | _FLAG_KEYS:
            raise BadFlag(f"--mount: key {key[:64]!r} is not known")
        if not equals and key not in _FLAG_KEYS:
            raise BadFlag(f"--mount: key {key} needs a value: {key}=…")
        keys[key] = content
        if key != "from":
            fields.append(f"{key}{equals}{content}")
    # Engines expand variables and remove quotes here, so any other text could become any type.
    kind = keys.get("type", "bind").lower()
    if kind not in TYPES:
        raise BadFlag(f"--mount: type {kind[:64]!r} is not one of {', '.join(sorted(TYPES))}")
    return Mount(kind, keys.get("from", ""), tuple(fields))


def _fields(value: str) -> list[str]:
    if '"' not in value:
        return value.split(",")
    try:
        return next(csv.reader([value], strict=True), [])
    except csv.Error as error:
        raise BadFlag(f"--mount: {error}") from None
