"""The body of a dispatch, `{"encoding": "base64", "MD5": "<hex>", "content": "<base64>"}`, read as it arrives.

A payload may be larger than memory, so the text of `content` is decoded and hashed piece by piece. All else in the
object is gathered, within a bound, and decoded at once. What the original's Go decoder took is taken: names in any case
and order, unknown members, null for what is absent, every JSON escape in the base64, and line breaks in it.
"""

import asyncio
import hashlib
import re
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any

import msgspec

from imagejobd.api.bodies import Base64Text
from imagejobd.api.wire import NOT_JSON
from imagejobd.model.bounds import KIB, MIB
from imagejobd.model.errors import ErrorCode, Permanent, invalid
from imagejobd.model.text import printable

# All of the body but the text of the content.
FIELDS_MAX_BYTES = 64 * KIB
# Base64 takes 4/3 of the payload; escapes of `/` and `+` and line breaks, as encoders write them, stay well below the
# rest.
BODY_PER_PAYLOAD = 2
# Decoded off the loop, in pieces that are worth the hop to another thread.
BATCH_BYTES = 1 * MIB
ENCODING = "base64"
FIELDS = ("encoding", "md5", "content")
PAYLOAD_LIMIT = "(kinds.dispatch.payload_max_bytes)"

# Complete strings, and the marks outside of them; a quote by itself begins a string that has not ended yet.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|["{}\[\]:]', re.DOTALL)
_STRING_OPENING = re.compile(rb'[ \t\r\n]*"')
_OBJECT_OPENING = re.compile(rb"[ \t\r\n]*(?:\{|\Z)")
_CUT_ESCAPE = re.compile(rb"\\(?:u[0-9a-fA-F]{0,3})?\Z")
_LINE_BREAKS = b"\r\n"

_decode_text = msgspec.json.Decoder(str).decode
_decode_object = msgspec.json.Decoder(dict[str, Any]).decode


class ChecksumMismatch(Permanent):
    """The payload is not what the sender's MD5 says."""


class DispatchBody:
    """One body, fed piece by piece, in whatever pieces it comes.

    Raises `Permanent(invalid)`, and `Permanent(too_large)` for a payload over `max_bytes`.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._body_bytes = 0
        self._payload_bytes = 0
        # The object without the text of its content, of which only the quotes are here.
        self._fields = bytearray()
        self._has_content = self._is_in_content = False
        self._cut_escape = b""
        self._base64 = Base64Text("content")
        self._md5 = hashlib.md5(usedforsecurity=False)

    @property
    def md5(self) -> str:
        """The MD5 of the payload so far, in hex."""
        return self._md5.hexdigest()

    def feed(self, data: bytes) -> bytes:
        """The part of the payload that `data` holds."""
        self._body_bytes += len(data)
        check_body_size(self._body_bytes, self._max_bytes)
        if not self._has_content:
            # What is beyond its bound is not even looked at.
            room = FIELDS_MAX_BYTES + 1 - len(self._fields)
            rest = data[room:]
            self._fields += data[:room]
            data = self._begin_content()
            if self._has_content:
                data += rest
        payload = b""
        if self._is_in_content:
            text, quote, data = data.partition(b'"')
            payload = self._payload(text, is_last=bool(quote))
            self._is_in_content = not quote
            self._fields += quote
        self._fields += data
        if len(self._fields) > FIELDS_MAX_BYTES:
            message = f"the request body holds more than {FIELDS_MAX_BYTES} bytes besides its content"
            raise Permanent(ErrorCode.TOO_LARGE, message)
        return payload

    def finish(self) -> None:
        """The body is whole. Raises `ChecksumMismatch`, too."""
        fields = _parse(self._fields)
        if "encoding" not in fields:
            raise invalid("encoding is missing; it must be base64")
        if "content" not in fields:
            raise invalid("content is missing")
        checksum = fields.get("md5", "")
        if checksum.lower() != self.md5:
            message = f"MD5 hash sum is not valid passed: {printable(checksum)}, calculated: {self.md5}"
            raise ChecksumMismatch(ErrorCode.INVALID, message)

    def ignored(self) -> list[str]:
        """The names of members that no dispatch has, once the body is whole."""
        return [name for name, _ in _members(self._fields) if name not in FIELDS]

    def _begin_content(self) -> bytes:
        """What has come of the content, and what follows; nothing where it has not begun yet."""
        head = bytes(self._fields)
        if not _OBJECT_OPENING.match(head):
            raise invalid("the request body must be a JSON object")
        for name, start in _members(head):
            if name == "content" and (opening := _STRING_OPENING.match(head, start)):
                del self._fields[opening.end() :]
                data = head[opening.end() :]
                if b'"' not in data:
                    _parse(self._fields + b'"}')  # What is wrong by now needs no more of the payload to come.
                self._has_content = self._is_in_content = True
                return data
        return b""

    def _payload(self, text: bytes, *, is_last: bool) -> bytes:
        text = self._cut_escape + text
        self._cut_escape = b""
        if b"\\" in text:
            text = self._unescaped(text, is_last=is_last)
        payload = self._base64.decode(text)
        if is_last:
            self._base64.finish()
        self._payload_bytes += len(payload)
        if self._payload_bytes > self._max_bytes:
            message = f"the payload is larger than {self._max_bytes} bytes, which is the limit {PAYLOAD_LIMIT}"
            raise Permanent(ErrorCode.TOO_LARGE, message)
        self._md5.update(payload)
        return payload

    def _unescaped(self, text: bytes, *, is_last: bool) -> bytes:
        """The base64 that `text` stands for; an escape that goes on in the next piece is left to it."""
        if not is_last and (cut := _CUT_ESCAPE.search(text)):
            self._cut_escape = cut[0]
            text = text[: cut.start()]
        try:
            return _decode_text(b'"%b"' % text).encode("ascii").translate(None, _LINE_BREAKS)
        except (*NOT_JSON, UnicodeEncodeError):
            raise invalid("content is not valid base64, or has an escape that JSON does not know") from None


async def payload_in(chunks: AsyncIterator[bytes], body: DispatchBody) -> AsyncGenerator[bytes, None]:
    """The payload in `body`, which arrives as `chunks`. At the end all of the body has been checked."""
    async for batch in _ahead(_batches(chunks)):
        if len(batch) < BATCH_BYTES:
            piece = body.feed(batch)
        else:
            piece = await asyncio.to_thread(body.feed, batch)
        if piece:
            yield piece
    body.finish()


def check_body_size(size_bytes: int, payload_max_bytes: int) -> None:
    """Raises `Permanent(too_large)` for a body, announced or come, that is larger than any payload within its bound
    needs: line breaks and escapes are no payload, and must have an end too."""
    most_bytes = BODY_PER_PAYLOAD * payload_max_bytes + FIELDS_MAX_BYTES
    if size_bytes > most_bytes:
        message = f"the request body is larger than {most_bytes} bytes, which is more than the largest payload needs"
        raise Permanent(ErrorCode.TOO_LARGE, f"{message} {PAYLOAD_LIMIT}")


async def _batches(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in batches of `BATCH_BYTES` or more, but for the last."""
    gathered = bytearray()
    async for chunk in chunks:
        gathered += chunk
        if len(gathered) >= BATCH_BYTES:
            yield bytes(gathered)
            gathered.clear()
    if gathered:
        yield bytes(gathered)


async def _ahead(batches: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same batches, each received while the one before it is worked on. One that is short is the last."""
    batch = await anext(batches, b"")
    while len(batch) >= BATCH_BYTES:
        following = asyncio.ensure_future(anext(batches, b""))
        try:
            yield batch
            batch = await following
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
    if batch:
        yield batch


def _members(text: bytes | bytearray) -> Iterator[tuple[str, int]]:
    """The names of an object's members, in lower case, and where their values begin, as far as `text` goes."""
    depth, string = 0, b""
    for token in _TOKEN.finditer(text):
        mark = token[0]
        if mark == b'"':
            return
        if mark in b"{[":
            depth += 1
        elif mark in b"}]":
            depth -= 1
        elif mark != b":":
            string = mark
        elif depth == 1:
            yield _name(string), token.end()


def _name(string: bytes) -> str:
    try:
        return _decode_text(string).lower()
    except NOT_JSON:
        return ""  # Who decodes the object will say so.


def _parse(text: bytearray) -> dict[str, str]:
    """The members that are known and not null. Raises `Permanent(invalid)` for what is no such object."""
    try:
        members = {name.lower(): value for name, value in _decode_object(text).items()}
    except msgspec.ValidationError:
        raise invalid("the request body must be a JSON object") from None
    except NOT_JSON as error:
        # Positions are of no use: the content is not in this text.
        raise invalid(f"the request body is not valid JSON: {str(error).partition(' (byte')[0]}") from None
    names = [name for name, _ in _members(text)]
    if len(names) > len(members):
        raise invalid(f"{printable(Counter(names).most_common(1)[0][0])!r} is given twice")
    fields = {name: members[name] for name in FIELDS if members.get(name) is not None}
    for name, value in fields.items():
        if not isinstance(value, str):
            raise invalid(f"{name} must be a string")
    if fields.get("encoding", ENCODING) != ENCODING:
        raise invalid(f"encoding must be {ENCODING}, not {printable(fields['encoding'])!r}")
    return fields
