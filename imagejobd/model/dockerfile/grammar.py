"""The finer grammar of single instructions, as far as decisions or the engine's own parser hang on it.

What follows an instruction is a JSON array of strings, or text. Where engines of different age disagree about which of
the two it is, neither is taken.
"""

import json
import re

from imagejobd.model.dockerfile.words import SEPARATORS, split_words

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
