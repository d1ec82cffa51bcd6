"""The file that a container writes: what is taken as its result, and how everything else is refused."""

import sqlite3
from contextlib import closing
from typing import Any

import msgspec
import pytest

from imagejobd.jobs.run import DEPTH_MAX, INTEGER_MAX_CHARS, VALUES_MAX, Result, parse_perf
from imagejobd.model.errors import ErrorCode, Permanent

PATH = "/data/perf.json"


def nested(depth: int) -> bytes:
    """An object with lists in it, `depth` levels in all."""
    return b'{"perf": 1, "x": ' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


@pytest.mark.parametrize(
    ("data", "perf"),
    [
        (b'{"perf": 0.99}', 0.99),
        (b'{"perf": 1}', 1.0),
        (b'{"perf": -0}', 0.0),
        (b'{"perf": 1e-400}', 0.0),
        (b'\n\t{"perf":1.7976931348623157e308}\r\n', 1.7976931348623157e308),
        (b'{"perf": ' + b"9" * INTEGER_MAX_CHARS + b"}", float("9" * INTEGER_MAX_CHARS)),
        (b'{"perf": 0.' + b"1" * 100_000 + b"}", 1 / 9),
        (b'{"PERF": "x", "perf": 2}', 2.0),
    ],
)
def test_perf(data: bytes, perf: float) -> None:
    """Every finite number is a performance."""
    result = parse_perf(data, PATH)
    assert result.perf == perf
    assert isinstance(result.perf, float)


@pytest.mark.parametrize(
    "metrics",
    [
        {"perf": 0.5, "loss": [0.3, 0.2], "model": {"name": "naïve ✓", "layers": None, "is_deep": False}},
        {"perf": 1, "seed": 2**64 + 1, "": "", "nul": "\0"},
        {"perf": 1, "points": [0] * (VALUES_MAX - 2)},
    ],
)
def test_metrics_are_kept_whole(metrics: dict[str, Any]) -> None:
    """The whole object is kept, and comes out of SQLite as it was."""
    result = parse_perf(msgspec.json.encode(metrics), PATH)
    assert result.metrics == metrics
    assert stored(result) == {"perf": result.perf, "metrics": metrics}


def test_depth_is_bounded() -> None:
    """As deep as the bound is taken and stored, one level more is not."""
    assert stored(parse_perf(nested(DEPTH_MAX), PATH))["perf"] == 1
    with pytest.raises(Permanent, match=f"deeper than {DEPTH_MAX} levels"):
        parse_perf(nested(DEPTH_MAX + 1), PATH)


def stored(result: Result) -> Any:
    """The result as SQLite gives it back, through the functions that read JSON in statements and views."""
    text = msgspec.json.encode(result).decode()
    with closing(sqlite3.connect(":memory:")) as db:
        select = "select json_valid(?1), json_object('perf', ?1 -> '$.perf', 'metrics', ?1 -> '$.metrics'), json(?1)"
        is_valid, _, again = db.execute(select, (text,)).fetchone()
    assert is_valid == 1
    return msgspec.json.decode(again)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", "it is not JSON: Expecting value: line 1 column 1", id="empty"),
        pytest.param(b"perf: 0.99\n", "it is not JSON: Expecting value: line 1 column 1", id="YAML"),
        pytest.param(b'{"perf": 1', "it is not JSON: Expecting ',' delimiter: line 1 column 11", id="cut short"),
        pytest.param(b'{"perf": 1} {"perf": 2}', "it is not JSON: Extra data", id="two objects"),
        pytest.param(b"{'perf': 1}", "it is not JSON", id="single quotes"),
        pytest.param(b'{"perf": 1,}', "it is not JSON", id="trailing comma"),
        pytest.param(b'{"perf": 01}', "it is not JSON", id="leading zero"),
        pytest.param(b'{"perf": .5}', "it is not JSON", id="no leading digit"),
        pytest.param(b'{"perf": 1 /* good */}', "it is not JSON", id="comment"),
        pytest.param(b'{"perf": 1, "x": "a\nb"}', "it is not JSON: Invalid control character", id="line break"),
        pytest.param(b"\xef\xbb\xbf" + b'{"perf": 1}', "it is not JSON: Unexpected UTF-8 BOM", id="BOM"),
        pytest.param(b'{"perf": 1, "x": "\xff"}', "it is not UTF-8: invalid start byte at byte 18", id="not UTF-8"),
        pytest.param('{"perf": 1}'.encode("utf-16"), "it is not UTF-8", id="UTF-16"),
        pytest.param(b'{"perf": 1, "x": "\\ud800"}', "half a surrogate pair", id="lone surrogate"),
        pytest.param(b'{"perf": 1, "\\udc00": 1}', "half a surrogate pair", id="lone surrogate as a name"),
        pytest.param(b"\0" * 100, "it is not JSON", id="zeros"),
        pytest.param(b"[0.99]", "it holds no JSON object", id="list"),
        pytest.param(b"0.99", "it holds no JSON object", id="bare number"),
        pytest.param(b"null", "it holds no JSON object", id="null"),
        pytest.param(b"{}", "the object has no perf", id="no perf"),
        pytest.param(b'{"Perf": 1}', "the object has no perf", id="another case"),
        pytest.param(b'{"perf": true}', "perf is 'true', which is not a number", id="boolean"),
        pytest.param(b'{"perf": "0.99"}', "perf is '\"0.99\"', which is not a number", id="string"),
        pytest.param(b'{"perf": null}', "perf is 'null', which is not a number", id="null perf"),
        pytest.param(b'{"perf": [1]}', "perf is '[1]', which is not a number", id="list as perf"),
        pytest.param(b'{"perf": NaN}', "NaN is not a finite number", id="NaN"),
        pytest.param(b'{"perf": Infinity}', "Infinity is not a finite number", id="Infinity"),
        pytest.param(b'{"perf": 1, "x": -Infinity}', "-Infinity is not a finite number", id="-Infinity elsewhere"),
        pytest.param(b'{"perf": 1e999}', "1e999 is not a finite number", id="1e999"),
        pytest.param(b'{"perf": 1, "x": -1e999}', "-1e999 is not a finite number", id="1e999 elsewhere"),
        pytest.param(b'{"perf": ' + b"1" * 400 + b"}", "more than 300 digits", id="400 digits"),
        pytest.param(b'{"perf": ' + b"1" * 200_000 + b"}", "more than 300 digits", id="200,000 digits"),
        pytest.param(b'{"perf": 1, "perf": 2}', "the name 'perf' is given twice in one object", id="perf twice"),
        pytest.param(b'{"perf": 1, "x": {"a": 1, "\\u0061": 2}}', "the name 'a' is given twice", id="escaped twice"),
        pytest.param(nested(10_000), "deeper than 64 levels", id="10,000 deep"),
        pytest.param(b"[" * 200_000, "deeper than 64 levels", id="never closed"),
        pytest.param(b'{"a":' * 40_000, "deeper than 64 levels", id="objects never closed"),
        pytest.param(
            b'{"perf": 1, "x": [' + b"1," * VALUES_MAX + b"1]}", "it holds more than 20000 values", id="many values"
        ),
    ],
)
def test_refused(data: bytes, reason: str) -> None:
    """The message names the file, what is wrong and what would be right, in one line."""
    with pytest.raises(Permanent) as caught:
        parse_perf(data, PATH)
    fault = caught.value
    assert fault.code is ErrorCode.RESULT_INVALID
    assert fault.message.startswith(f"{PATH}: ")
    assert reason in fault.message
    assert fault.message.endswith('; the container must write one JSON object such as {"perf": 0.99}')
    assert fault.message.isprintable()
    assert len(fault.message) < 300
