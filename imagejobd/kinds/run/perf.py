"""What a run has measured, read from the file that its container wrote: bytes from a stranger.

Strict JSON (RFC 8259) in UTF-8: one object with a finite number as `perf`. The whole object is kept, so what another
reader could take for something else is refused: a name given twice, NaN, a number beyond the range of doubles, half a
surrogate pair.
"""

import json
import math
from collections.abc import Iterable
from typing import Any

import msgspec

from imagejobd.model.errors import ErrorCode, Permanent
from imagejobd.model.job import Json

DEPTH_MAX = 64
VALUES_MAX = 20_000
# Within the range of doubles, and of what Python turns into an integer at all.
INTEGER_MAX_CHARS = 300
SHOWN_MAX_CHARS = 80


_TOO_DEEP = f"it is nested deeper than {DEPTH_MAX} levels"


class _Unusable(ValueError):
    """What is wrong with the file, in words that end a sentence."""


class Result(msgspec.Struct, frozen=True):
    """The result of a job, as it is stored: the one number, and the object that it came in."""

    perf: float
    metrics: Json


def parse(data: bytes, path: str) -> Result:
    """Read the content of the file `path`. Raises `Permanent(result_invalid)` that names it and what is wrong."""
    try:
        metrics = _object(data)
        return Result(_perf(metrics), metrics)
    except _Unusable as reason:
        raise Permanent(
            ErrorCode.RESULT_INVALID,
            f'{path}: {reason}; the container must write one JSON object such as {{"perf": 0.99}}',
        ) from None


def _object(data: bytes) -> Json:
    try:
        value = json.loads(
            data.decode(),
            object_pairs_hook=_members,
            parse_constant=_constant,
            parse_float=_float,
            parse_int=_integer,
        )
    except json.JSONDecodeError as error:
        raise _Unusable(f"it is not JSON: {error}") from None
    except RecursionError:
        raise _Unusable(_TOO_DEEP) from None
    except UnicodeDecodeError as error:
        raise _Unusable(f"it is not UTF-8: {error.reason} at byte {error.start}") from None
    if not isinstance(value, dict):
        raise _Unusable("it holds no JSON object")
    _check_size(value)
    _check_text(value)
    return value


def _perf(metrics: Json) -> float:
    if "perf" not in metrics:
        raise _Unusable("the object has no perf")
    perf = metrics["perf"]
    if isinstance(perf, bool) or not isinstance(perf, int | float):
        raise _Unusable(f"perf is {_shown(perf)}, which is not a number")
    return float(perf)


def _members(pairs: Iterable[tuple[str, Any]]) -> Json:
    members: Json = {}
    for name, value in pairs:
        if name in members:
            raise _Unusable(f"the name {name[:SHOWN_MAX_CHARS]!a} is given twice in one object")
        members[name] = value
    return members


def _constant(name: str) -> Any:
    raise _Unusable(f"{name} is not a finite number")


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _Unusable(f"{text[:SHOWN_MAX_CHARS]} is not a finite number")
    return number


def _integer(text: str) -> int:
    if len(text) > INTEGER_MAX_CHARS:
        raise _Unusable(f"a number has more than {INTEGER_MAX_CHARS} digits")
    return int(text)


def _check_size(value: Json) -> None:
    """Walk it level by level: both bounds hold for what is read from the store again and again."""
    containers: list[Json | list[Any]] = [value]
    depth = values = 0
    while containers:
        depth += 1
        inner = [item for each in containers for item in (each.values() if isinstance(each, dict) else each)]
        values += len(inner)
        if depth > DEPTH_MAX:
            raise _Unusable(_TOO_DEEP)
        if values > VALUES_MAX:
            raise _Unusable(f"it holds more than {VALUES_MAX} values")
        containers = [item for item in inner if isinstance(item, dict | list)]


def _check_text(value: Json) -> None:
    try:
        msgspec.json.encode(value)
    except UnicodeEncodeError:
        raise _Unusable("a string in it holds half a surrogate pair") from None


def _shown(value: Any) -> str:
    return ascii(msgspec.json.encode(value)[:SHOWN_MAX_CHARS].decode(errors="ignore"))
