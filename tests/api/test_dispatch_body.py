"""The reader of a dispatch's body: any cutting of any document gives what reading it at once gives, or a clean no."""

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from imagejobd.api import dispatch_body
from imagejobd.api.dispatch_body import (
    BODY_PER_PAYLOAD,
    FIELDS_MAX_BYTES,
    ChecksumMismatch,
    DispatchBody,
    payload_in,
)
from imagejobd.model.errors import ErrorCode, Permanent
from imagejobd.model.text import printable

MAX_BYTES = 1024 * 1024
HELLO = base64.b64encode(b"hello, world").decode()

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
known_names = {"encoding", "md5", "content"}
extra_members = st.dictionaries(st.text().filter(lambda name: name.lower() not in known_names), json_values, max_size=4)


def md5_of(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def document(data: bytes, **changes: Any) -> dict[str, Any]:
    return {"encoding": "base64", "MD5": md5_of(data), "content": base64.b64encode(data).decode()} | changes


def read(pieces: Iterable[bytes], *, max_bytes: int = MAX_BYTES) -> bytes:
    body = DispatchBody(max_bytes)
    decoded = b"".join([body.feed(piece) for piece in pieces])
    body.finish()
    return decoded


def outcome(pieces: Iterable[bytes]) -> bytes | ErrorCode:
    """What was read, or how it was refused, in words fit to be shown; nothing else may come of it."""
    try:
        return read(pieces)
    except Permanent as fault:
        return fault.code if fault.message.isprintable() and len(fault.message) < 500 else ErrorCode.INTERNAL


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    """`data` in pieces that end at `places`, which may lie anywhere."""
    ends = sorted({place % (len(data) + 1) for place in places} | {len(data)})
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


@st.composite
def documents(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A payload, and the text of an object that holds it: members in any order, names in any case, base64 escaped and
    broken into lines as JSON allows."""
    data = draw(st.binary(max_size=300))
    text = base64.b64encode(data).decode()
    line_chars = draw(st.sampled_from([76, 5, 1000]))
    breaks = draw(st.sampled_from(["", "\\n", "\\r\\n", "\\u000a"]))
    escaped = draw(st.sampled_from(["+", "/", "A", "="]))
    lines = [text[start : start + line_chars] for start in range(0, len(text), line_chars)]
    text = breaks.join(line.replace(escaped, f"\\u{ord(escaped):04X}").replace("/", "\\/") for line in lines)
    members = {
        draw(st.sampled_from(["encoding", "Encoding", "ENCODING"])): '"base64"',
        draw(st.sampled_from(["MD5", "md5", "Md5"])): json.dumps(
            draw(st.sampled_from([str.upper, str.lower]))(md5_of(data))
        ),
        draw(st.sampled_from(["content", "Content", "CONTENT"])): f'"{text}"',
    }
    for name, value in draw(extra_members).items():
        if name.lower() not in {known.lower() for known in members}:
            members[name] = json.dumps(value, ensure_ascii=draw(st.booleans()))
    blank = draw(st.sampled_from(["", " ", "\r\n\t"]))
    pairs = [
        f"{blank}{json.dumps(name)}{blank}:{blank}{members[name]}{blank}"
        for name in draw(st.permutations(list(members)))
    ]
    return data, f"{blank}{{{','.join(pairs)}}}{blank}".encode()


@given(documents(), st.lists(st.integers(0, 10_000), max_size=20))
def test_a_document_in_any_pieces(written: tuple[bytes, bytes], places: list[int]) -> None:
    """Whatever pieces it comes in, the payload is the one that was written, and json.loads agrees."""
    data, text = written
    members = {name.lower(): value for name, value in json.loads(text).items()}
    assert base64.b64decode("".join(members["content"].split()), validate=True) == data
    assert read(cut(text, places)) == data
    assert read(bytes([byte]) for byte in text) == data


@given(documents(), st.data())
def test_a_damaged_document_is_read_or_refused(written: tuple[bytes, bytes], data: st.DataObject) -> None:
    """Bytes changed or lost: how it ends does not depend on the pieces, and what is read is what json.loads reads."""
    _, text = written
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 3)))
    damaged = (
        text[:start]
        + data.draw(st.binary(max_size=3) | st.sampled_from([b'"', b"\\", b"{", b"]", b",", b"="]))
        + text[end:]
    )
    places = data.draw(st.lists(st.integers(0, 10_000), max_size=10))
    whole = outcome([damaged])
    assert outcome(cut(damaged, places)) == whole
    if isinstance(whole, bytes):
        members = {name.lower(): value for name, value in json.loads(damaged).items()}
        assert base64.b64decode("".join(members["content"].split()), validate=True) == whole


@given(
    st.binary(max_size=200) | st.text('{}[]:,"\\ abcu0019=', max_size=60).map(str.encode),
    st.lists(st.integers(0, 300), max_size=5),
)
@example(b"", [])
@example(b"\xef\xbb\xbf{}", [])
@example(b"{" * 60_000, [])
@example(b'{"' + b"\\" * 1000, [1])
def test_nonsense_is_refused(text: bytes, places: list[int]) -> None:
    """Bytes that are no such document are refused as invalid, cut or not."""
    assert outcome([text]) == outcome(cut(text, places)) == ErrorCode.INVALID


@example("QUJD====", [])
@given(st.text(alphabet="QUJDRg+/=\r\n", max_size=24), st.lists(st.integers(0, 200), max_size=6))
def test_base64_is_taken_as_go_takes_it(text: str, places: list[int]) -> None:
    """Line breaks anywhere; padding where it belongs and nowhere else."""
    bare = text.replace("\r", "").replace("\n", "")
    try:
        expected: bytes | ErrorCode = base64.b64decode(bare, validate=True)
        if base64.b64encode(base64.b64decode(bare))[:-2] != bare.encode()[:-2]:
            expected = ErrorCode.INVALID
    except ValueError:
        expected = ErrorCode.INVALID
    md5 = md5_of(expected) if isinstance(expected, bytes) else ""
    written = json.dumps({"encoding": "base64", "MD5": md5, "content": text}).encode()
    assert outcome(cut(written, places)) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not valid JSON: Input data was truncated"),
        ("[]", "must be a JSON object"),
        ("null", "must be a JSON object"),
        ("{}", "encoding is missing"),
        ('{"encoding": null, "content": ""}', "encoding is missing"),
        ('{"encoding": "base64"}', "content is missing"),
        ('{"encoding": "base64", "content": null}', "content is missing"),
        ('{"encoding": "base64", "content": 5}', "content must be a string"),
        ('{"encoding": "base64", "content": ["QQ=="]}', "content must be a string"),
        ('{"encoding": "hex", "content": "QQ=="}', "encoding must be base64, not 'hex'"),
        ('{"encoding": "BASE64"}', "encoding must be base64"),
        ('{"encoding": 5}', "encoding must be a string"),
        ('{"MD5": {"a": 1}}', "md5 must be a string"),
        ('{"content": "QQ=", "encoding": "base64"}', "padding is missing"),
        ('{"content": "QQ", "encoding": "base64"}', "padding is missing"),
        ('{"content": "QQ==QQ=="}', "not valid base64"),
        ('{"content": "QQ==Q"}', "not valid base64"),
        ('{"content": "QQ==="}', "not valid base64"),
        ('{"content": "=QQQ"}', "not valid base64"),
        ('{"content": "Q QQ"}', "not valid base64"),
        ('{"content": "-_-_"}', "not valid base64"),
        ('{"content": "QUJD\n"}', "not valid base64"),
        ('{"content": "QU\\"JD"}', "not valid base64"),
        ('{"content": "QUJD\\q"}', "not valid base64"),
        ('{"content": "\\u00e4AAA"}', "not valid base64"),
        ('{"content": "QUJD"', "truncated"),
        ('{"content": "QUJD', "truncated"),
        ('{"content": "QUJD" "MD5"', "not valid JSON"),
        ('{"content": "QUJD", }', "not valid JSON"),
        ('{"a": 1, "a": 2}', "'a' is given twice"),
        ('{"MD5": "", "md5": ""}', "'md5' is given twice"),
        ("{a: 1}", "not valid JSON"),
        ('{"a" 1}', "not valid JSON"),
        ('{"a": 1]', "not valid JSON"),
        ('{"a": tru}', "not valid JSON"),
        ('{"a": [1, 2}', "not valid JSON"),
        ('{"a": }', "not valid JSON"),
        ("{,}", "not valid JSON"),
        ("{} {}", "not valid JSON"),
    ],
)
def test_what_is_wrong_is_said(text: str, words: str) -> None:
    """The refusal names what is wrong."""
    with pytest.raises(Permanent, match=words) as refused:
        read([text.encode()])
    assert refused.value.code is ErrorCode.INVALID


@pytest.mark.parametrize("md5", ["", "0" * 32, "0" * 31, None, md5_of(b"hello, world")[:-1], "\x1b[31m" + "x" * 1000])
def test_a_checksum_must_match(md5: str | None) -> None:
    """Missing, of another length or of another payload: both sums are in the message, a stranger's made harmless."""
    with pytest.raises(ChecksumMismatch) as refused:
        read([json.dumps(document(b"hello, world", MD5=md5)).encode()])
    message = f"MD5 hash sum is not valid passed: {printable(md5 or '')}, calculated: {md5_of(b'hello, world')}"
    assert refused.value.message == message
    assert message.isprintable()


def test_an_empty_payload_is_a_payload() -> None:
    """Nothing, with the checksum of nothing, is taken."""
    assert read([json.dumps(document(b"")).encode()]) == b""


def test_a_payload_has_a_bound() -> None:
    """The largest is taken, one byte more is too_large, wherever the body would have ended."""
    assert read([json.dumps(document(bytes(1000))).encode()], max_bytes=1000) == bytes(1000)
    with pytest.raises(Permanent, match="payload_max_bytes") as refused:
        read([json.dumps(document(bytes(1001))).encode()[:-1]], max_bytes=1000)
    assert refused.value.code is ErrorCode.TOO_LARGE


@pytest.mark.parametrize("filler", [b"\\n", b"\\r\\n", b"\\u000a"])
def test_a_body_has_a_bound(filler: bytes) -> None:
    """What a content is written with, and what is no part of it, is bounded too, in one piece or in many."""
    most_bytes = BODY_PER_PAYLOAD * 1000 + FIELDS_MAX_BYTES
    head, tail = b'{"encoding": "base64", "MD5": "' + md5_of(b"").encode() + b'", "content": "', b'"}'
    within = filler * ((most_bytes - len(head + tail)) // len(filler))
    assert read([head + within + tail], max_bytes=1000) == b""
    endless = head + within + filler * 10
    for pieces in ([endless], cut(endless, range(0, len(endless), 1000))):
        with pytest.raises(Permanent, match="payload_max_bytes") as refused:
            read(pieces, max_bytes=1000)
        assert refused.value.code is ErrorCode.TOO_LARGE


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"{" + b" " * FIELDS_MAX_BYTES, ErrorCode.TOO_LARGE),
        (b'{"' + b"a" * FIELDS_MAX_BYTES, ErrorCode.TOO_LARGE),
        (b'{"a": "' + b"a" * FIELDS_MAX_BYTES, ErrorCode.TOO_LARGE),
        (b'{"a":' + b"[" * (FIELDS_MAX_BYTES - 5), ErrorCode.INVALID),
        (b'{"content":"","a": "' + b"a" * FIELDS_MAX_BYTES, ErrorCode.TOO_LARGE),
        (b"{" + b" " * FIELDS_MAX_BYTES + b'"content":""}', ErrorCode.TOO_LARGE),
    ],
)
def test_what_is_besides_has_bounds(text: bytes, code: ErrorCode) -> None:
    """All that is no content is bounded, in one piece or in many."""
    assert outcome([text]) == code
    assert outcome(cut(text, range(0, len(text), 1000))) == code


async def arriving(text: bytes, chunk_bytes: int) -> AsyncIterator[bytes]:
    for start in range(0, len(text), chunk_bytes):
        await asyncio.sleep(0)
        yield text[start : start + chunk_bytes]


@pytest.mark.parametrize("size", [0, 10, 5000, 100_000])
async def test_a_body_is_read_in_batches(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Off the loop and ahead of its reader, the payload is the same."""
    monkeypatch.setattr(dispatch_body, "BATCH_BYTES", 1000)
    data = bytes(range(256)) * (size // 256 + 1)
    text = json.dumps(document(data[:size])).encode()
    pieces = [piece async for piece in payload_in(arriving(text, 300), DispatchBody(MAX_BYTES))]
    assert b"".join(pieces) == data[:size]


async def test_a_body_that_breaks_off_in_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """What its sender's connection raises comes through, and nothing is left running."""
    monkeypatch.setattr(dispatch_body, "BATCH_BYTES", 1000)

    async def broken() -> AsyncIterator[bytes]:
        yield json.dumps(document(bytes(5000))).encode()[:2500]
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        async for _ in payload_in(broken(), DispatchBody(MAX_BYTES)):
            pass
    assert len(asyncio.all_tasks()) == 1
