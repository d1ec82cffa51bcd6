"""Texts of strangers: a JSON text of which only the end is looked for, base64 that is decoded on the way, and how any
text is made fit to be shown.

The first two take pieces of any length; what they make of a text does not depend on where it was cut.
"""

import binascii
import re

import pybase64

from imagejobd.model.errors import invalid

DEPTH_MAX = 32
SHOWN_MAX_CHARS = 80

_BLANKS = re.compile(rb"[ \t\r\n]*")
_OUTSIDE_STRING = re.compile(rb'[^"{}\[\]:,]*')
_INSIDE_STRING = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)


class JsonText:
    """Finds the end of a JSON text: the first colon, comma or bracket that is in no string and closes or parts what
    began before it. Whether the text is valid is left to who decodes it."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._depth = 0
        self._is_string = False
        self._is_escape = False

    @property
    def is_new(self) -> bool:
        """Whether nothing of a text has come yet."""
        return not self._pieces

    def read(self, data: bytes, start: int) -> int:
        """Where the text ends that goes on at `start`; the length of `data` when it goes on beyond it."""
        position = self._end(data, start)
        self._pieces.append(data[start:position])
        return position

    def taken(self) -> bytes:
        """The whole text; the next one begins."""
        text = b"".join(self._pieces)
        self._pieces.clear()
        return text

    def _end(self, data: bytes, position: int) -> int:
        while position < len(data):
            if self._is_string:
                position = self._string_end(data, position)
                continue
            position = _end_of(_OUTSIDE_STRING, data, position)
            if position < len(data):
                if self._is_end(data[position]):
                    return position
                position += 1
        return position

    def _string_end(self, data: bytes, position: int) -> int:
        if self._is_escape:
            self._is_escape = False
            return position + 1
        position = _end_of(_INSIDE_STRING, data, position)
        if position < len(data):
            self._is_string = data[position] != ord('"')
            self._is_escape = self._is_string
            position += 1
        return position

    def _is_end(self, mark: int) -> bool:
        if mark == ord('"'):
            self._is_string = True
        elif mark in b"{[":
            self._depth += 1
            if self._depth > DEPTH_MAX:
                raise invalid(f"the request body is nested more than {DEPTH_MAX} deep")
        elif self._depth == 0:
            return True
        elif mark in b"}]":
            self._depth -= 1
        return False


class Base64Text:
    """Base64 in the standard alphabet, padded (RFC 4648 §4), decoded piece by piece; nothing follows the padding.

    `field` is how errors begin.
    """

    def __init__(self, field: str) -> None:
        self._field = field
        self._rest = b""
        self._is_padded = False

    def decode(self, text: bytes) -> bytes:
        """The bytes that are certain by now."""
        if not text:
            return b""
        if self._is_padded:
            raise invalid(f"{self._field} is not valid base64: something follows the padding")
        text = self._rest + text
        whole = len(text) // 4 * 4
        self._rest = text[whole:]
        self._is_padded = text.endswith(b"=", 0, whole)
        try:
            # Not binascii, which takes four times as long, and takes surplus padding for none.
            return pybase64.b64decode(memoryview(text)[:whole], validate=True)
        except binascii.Error:
            raise invalid(f"{self._field} is not valid base64") from None

    def finish(self) -> None:
        """Nothing follows."""
        if self._rest:
            raise invalid(f"{self._field} is not valid base64: it is cut short, or its padding is missing")


def after_blanks(data: bytes, position: int) -> int:
    """Where `data` goes on after JSON's white space."""
    return _end_of(_BLANKS, data, position)


def shown(text: str | bytes) -> str:
    """What a stranger sent, fit to be shown: bounded, and without what does not print."""
    if isinstance(text, bytes):
        text = text[: 4 * SHOWN_MAX_CHARS].decode(errors="replace")
    return "".join(char if char.isprintable() else "?" for char in text[:SHOWN_MAX_CHARS])


def one_line(text: str, max_chars: int) -> str:
    """`text` folded into one printable line. Where it is too long its middle is left out: a message begins with what
    happened, and ends with the last words of what failed."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if len(line) <= max_chars:
        return line
    head = max_chars // 3
    return f"{line[:head]} … {line[head + 3 - max_chars :]}"


def _end_of(pattern: re.Pattern[bytes], data: bytes, position: int) -> int:
    """Where the match ends that begins at `position`, of a pattern that matches nothing, too."""
    match = pattern.match(data, position)
    return match.end() if match else position
