"""What is wrong with a spec, told by field: the API that the spec came through may put it into words of its own.

Messages never quote a value, because anything may stand where a password was meant to.
"""

import re
from enum import StrEnum
from typing import Any, Self, TypeVar

import msgspec

from imagejobd.model.errors import ErrorCode, Permanent
from imagejobd.model.job import Json

NAME_MAX_CHARS = 80
BOOLEANS = frozenset({"overwrite", "verify_tls", "referrers", "dry_run"})

# How msgspec says it; there is no typed way to know.
_MISSING = re.compile(r"Object missing required field `(.*?)`(?: - at `\$\.?(.*)`)?", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(.*?)`(?: - at `\$\.?(.*)`)?", re.DOTALL)
_OTHER = re.compile(r"(.*?)(?: - at `\$\.?(.*)`)?", re.DOTALL)

T = TypeVar("T")


class Problem(StrEnum):
    """What kind of wrong a field is."""

    MISSING = "missing"
    UNKNOWN = "unknown"
    WRONG = "wrong"


class FieldFault(Permanent):
    """`field` is its path below the spec (`source.ref`, `targets[2].endpoint`; empty for the spec itself), `why` the
    reason alone; the message has both."""

    def __init__(self, field: str, problem: Problem, why: str) -> None:
        super().__init__(ErrorCode.INVALID, f"{below('spec', field)}: {why}")
        self.field = field
        self.problem = problem
        self.why = why

    @classmethod
    def missing(cls, field: str, what: str = "") -> Self:
        return cls(field, Problem.MISSING, f"missing: {what}" if what else "missing")

    @property
    def name(self) -> str:
        """The field without the path to it."""
        return self.field.rpartition(".")[2]


def wrong(field: str, why: str) -> FieldFault:
    return FieldFault(field, Problem.WRONG, why)


def below(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name


def given(value: Any, path: str) -> Json:
    """What an object says: null means that a field was not given, booleans may be words.

    Raises `FieldFault` for what is no object.
    """
    if not isinstance(value, dict):
        raise wrong(path, "must be an object")
    return {name: _boolean(name, item) for name, item in value.items() if item is not None}


def items(value: Any, path: str, *, most: int) -> list[Any]:
    """A list within its bound. Raises `FieldFault`."""
    if not isinstance(value, list | tuple):
        raise wrong(path, "must be an array")
    if len(value) > most:
        raise wrong(path, f"has {len(value)} entries; the limit is {most}")
    return list(value)


def convert(value: Any, kind: type[T], path: str) -> T:
    """`value` as `kind`. Raises `FieldFault` that tells a missing field from an unknown one."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise _field_fault(str(error), path) from None


def _field_fault(text: str, path: str) -> FieldFault:
    if missing := _MISSING.fullmatch(text):
        return FieldFault.missing(below(below(path, missing[2] or ""), missing[1]))
    if unknown := _UNKNOWN.fullmatch(text):
        name = below(below(path, unknown[2] or ""), unknown[1][:NAME_MAX_CHARS])
        return FieldFault(name, Problem.UNKNOWN, "unknown field")
    other = _OTHER.fullmatch(text)
    why, where = (other[1], other[2]) if other else (text, "")
    return wrong(below(path, where or ""), why)


def _boolean(name: str, value: Any) -> Any:
    if name in BOOLEANS and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    return value
