"""The body of a dispatch, `{"encoding": "base64", "MD5": "<hex>", "content": "<base64>"}`, read as it arrives.

A payload may be larger than memory, so its text is decoded and hashed piece by piece. All else that the object may hold
is little, and is bounded. What the original's Go decoder took is taken: names in any case and order, unknown members,
null for what is absent, every JSON escape in the base64, and line breaks in it.
"""

import asyncio
import hashlib
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable

import msgspec

from imagejobd.api.bodies import Base64Text, JsonText, after_blanks
from imagejobd.model.bounds import KIB, MIB
from imagejobd.model.errors import ErrorCode, Permanent, invalid
from imagejobd.model.text import printable

# All of the body but the text of the content.
FIELDS_MAX_BYTES = 64 * KIB
# Base64 takes 4/3 of the payload; escapes of `/` and `+` and line breaks, as encoders write them, stay well below the
# rest.
BODY_PER_PAYLOAD = 2
MEMBERS_MAX = 100
# Decoded off the loop, in pieces that are worth the hop to another thread.
BATCH_BYTES = 1 * MIB
ENCODING = "base64"
PAYLOAD_LIMIT = "(kinds.dispatch.payload_max_bytes)"

# Nearly every name and value is a short string of plain characters, and comes in one piece.
_PLAIN_NAME = re.compile(rb'[ \t\r\n]*"([ !#-\[\]-~]*)"[ \t\r\n]*:')
_PLAIN_VALUE = re.compile(rb'[ \t\r\n]*"([ !#-\[\]-~]*)"(?=[ \t\r\n]*[,}])')
_CUT_ESCAPE = re.compile(rb"\\(?:u[0-9a-fA-F]{0,3})?\Z")
_LINE_BREAKS = b"\r\n"

_decode_text = msgspec.json.Decoder(str).decode
_decode_any = msgspec.json.Decoder().decode
_NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class ChecksumMismatch(Permanent):
    """The payload is not what the sender's MD5 says."""


class DispatchBody:
    """One body, fed piece by piece, in whatever pieces it comes. Each step reads one part of its grammar.

    Raises `Permanent(invalid)` that names the place, `Permanent(too_large)` for a payload over `max_bytes`.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._step: Callable[[bytes, int], int] = self._read_opening
        self._body_bytes = 0
        self._fields_bytes = 0
        self._payload_bytes = 0
        self._payload: list[bytes] = []
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._base64 = Base64Text("content")
        self._cut_escape = b""
        self._text = JsonText()
        self._names: set[str] = set()
        self._name = ""
        self._fields: dict[str, str] = {}

    @property
    def md5(self) -> str:
        """The MD5 of the payload so far, in hex."""
        return self._md5.hexdigest()

    def feed(self, data: bytes) -> bytes:
        """The part of the payload that `data` holds."""
        self._body_bytes += len(data)
        check_body_size(self._body_bytes, self._max_bytes)
        position = 0
        while position < len(data):
            step, start = self._step, position
            position = step(data, position)
            if step != self._read_content:
                self._count(position - start)
        payload = b"".join(self._payload)
        self._payload.clear()
        return payload

    def finish(self) -> None:
        """The body is whole. Raises `ChecksumMismatch`, too."""
        if self._step != self._read_end:
            raise invalid("the request body ends too soon")
        if "encoding" not in self._fields:
            raise invalid("encoding is missing; it must be base64")
        if "content" not in self._fields:
            raise invalid("content is missing")
        passed = self._fields.get("md5", "")
        if passed.lower() != self.md5:
            message = f"MD5 hash sum is not valid passed: {printable(passed)}, calculated: {self.md5}"
            raise ChecksumMismatch(ErrorCode.INVALID, message)

    def _count(self, size_bytes: int) -> None:
        self._fields_bytes += size_bytes
        if self._fields_bytes > FIELDS_MAX_BYTES:
            message = f"the request body holds more than {FIELDS_MAX_BYTES} bytes besides its content"
            raise Permanent(ErrorCode.TOO_LARGE, message)

    def _read_opening(self, data: bytes, position: int) -> int:
        position = after_blanks(data, position)
        if position < len(data):
            if data[position] != ord("{"):
                raise invalid("the request body must be a JSON object")
            self._step = self._read_name
            position += 1
        return position

    def _read_name(self, data: bytes, position: int) -> int:
        if self._text.is_new and (plain := _PLAIN_NAME.match(data, position)):
            self._begin_member(plain[1].decode())
            return plain.end()
        position = self._text.read(data, position)
        if position == len(data):
            return position
        raw, stop = self._text.taken(), data[position]
        if stop == ord("}") and not self._names and not raw.strip():
            self._step = self._read_end
        elif stop == ord(":"):
            self._begin_member(_text(raw, "a member's name"))
        else:
            raise invalid(f"a member's name was expected, not {printable(raw + bytes([stop]))!r}")
        return position + 1

    def _begin_member(self, name: str) -> None:
        self._name = name.lower()
        if self._name in self._names:
            raise invalid(f"{printable(name)!r} is given twice")
        self._names.add(self._name)
        if len(self._names) > MEMBERS_MAX:
            raise invalid(f"the object has more than {MEMBERS_MAX} members")
        self._step = self._read_content_opening if self._name == "content" else self._read_value

    def _read_value(self, data: bytes, position: int) -> int:
        if self._text.is_new and (plain := _PLAIN_VALUE.match(data, position)):
            self._end_member(plain[1].decode())
            return self._read_separator(data, plain.end())
        position = self._text.read(data, position)
        if position == len(data):
            return position
        self._end_member(_value(self._text.taken(), self._name))
        return self._read_separator(data, position)

    def _end_member(self, value: object) -> None:
        if self._name not in ("encoding", "md5", "content") or value is None:
            return
        if not isinstance(value, str):
            raise invalid(f"{self._name} must be a string")
        if self._name == "encoding" and value != ENCODING:
            raise invalid(f"encoding must be {ENCODING}, not {printable(value)!r}")
        self._fields[self._name] = value

    def _read_separator(self, data: bytes, position: int) -> int:
        position = after_blanks(data, position)
        if position < len(data):
            if data[position] not in b",}":
                raise invalid(f"after {printable(self._name)!r} a comma or the end of the object was expected")
            self._step = self._read_name if data[position] == ord(",") else self._read_end
            position += 1
        return position

    def _read_content_opening(self, data: bytes, position: int) -> int:
        position = after_blanks(data, position)
        if position < len(data):
            is_text = data[position] == ord('"')
            self._step = self._read_content if is_text else self._read_value
            position += is_text
        return position

    def _read_content(self, data: bytes, position: int) -> int:
        end = data.find(b'"', position)
        is_last = end >= 0
        text = self._cut_escape + data[position : end if is_last else len(data)]
        self._cut_escape = b""
        if b"\\" in text:
            text = self._unescaped(text, is_last=is_last)
        self._take(self._base64.decode(text))
        if not is_last:
            return len(data)
        self._base64.finish()
        self._fields["content"] = ""
        self._step = self._read_separator
        return end + 1

    def _unescaped(self, text: bytes, *, is_last: bool) -> bytes:
        """The base64 that `text` stands for; an escape that goes on in the next piece is kept for it."""
        if not is_last and (cut := _CUT_ESCAPE.search(text)):
            self._cut_escape = cut[0]
            text = text[: cut.start()]
        try:
            return _decode_text(b'"%b"' % text).encode("ascii").translate(None, _LINE_BREAKS)
        except (*_NOT_JSON, UnicodeEncodeError):
            raise invalid("content is not valid base64, or has an escape that JSON does not know") from None

    def _take(self, piece: bytes) -> None:
        self._payload_bytes += len(piece)
        if self._payload_bytes > self._max_bytes:
            message = f"the payload is larger than {self._max_bytes} bytes, which is the limit {PAYLOAD_LIMIT}"
            raise Permanent(ErrorCode.TOO_LARGE, message)
        self._md5.update(piece)
        self._payload.append(piece)

    def _read_end(self, data: bytes, position: int) -> int:
        position = after_blanks(data, position)
        if position < len(data):
            raise invalid("something follows the JSON object")
        return position


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


def _text(raw: bytes, what: str) -> str:
    try:
        return _decode_text(raw)
    except _NOT_JSON:
        raise invalid(f"{what} must be a JSON string, not {printable(raw)!r}") from None


def _value(raw: bytes, name: str) -> object:
    try:
        return _decode_any(raw)
    except _NOT_JSON as error:
        raise invalid(f"{printable(name)!r} is not valid JSON: {error}") from None
