"""Multipart bodies (RFC 2046 §5.1, RFC 7578) as they arrive: parts by name, and what they hold.

aiohttp's reader takes all that is no part's content line by line, without a return to the loop, and writes to stderr
about headers it cannot read. Here everything but content is bounded in bytes, and nothing goes by the line. Parts do
not nest, and nothing is unpacked on the way (`Content-Transfer-Encoding` is deprecated by RFC 7578 §4.7), because a
bound that is counted before unpacking bounds nothing.
"""

import re
from collections.abc import AsyncIterator

from imagejobd.model.bounds import KIB
from imagejobd.model.errors import Permanent, invalid
from imagejobd.model.text import printable

# What comes before the first boundary, and what after the last one. Nobody reads either.
PREAMBLE_MAX_BYTES = EPILOGUE_MAX_BYTES = 64 * KIB
HEADERS_MAX_BYTES = 8 * KIB
HEADERS_MAX = 32
# RFC 2046 §5.1.1.
BOUNDARY_MAX_BYTES = 70
# Blanks between a boundary and the end of its line, which gateways were once known to add.
PADDING_MAX_BYTES = 64

_AS_THEY_ARE = frozenset({"", "binary", "8bit", "7bit"})
_CRLF = b"\r\n"
_BOUNDARY = re.compile(r';\s*boundary=("[^"]*"|[^;\s]*)', re.IGNORECASE)
_PARAMETER = re.compile(r';[ \t]*([^=;"\s]+)[ \t]*=[ \t]*("(?:[^"\\]|\\.)*"|[^;"]*)[ \t]*')
_QUOTED_PAIR = re.compile(r"\\(.)")


class Part:
    """One part, to be read before the next one. `name` is empty where the sender gave none."""

    def __init__(self, name: str, content: AsyncIterator[bytes]) -> None:
        self.name = name
        self._content = content

    def chunks(self) -> AsyncIterator[bytes]:
        """The part as it arrives. Raises `Permanent(invalid)` when the body ends within it."""
        return self._content


async def read_parts(content_type: str, body: AsyncIterator[bytes]) -> AsyncIterator[Part]:
    """The parts of a multipart `body`, to its very end; of a part that is not read to its end the rest is skipped.

    Raises `Permanent(invalid)` for what is malformed, beyond the bounds above, nested or packed.
    """
    framing = _Framing(_boundary(content_type), body)
    await framing.skip_preamble()
    while await framing.begins_part():
        yield Part(_name(await framing.headers()), framing.content())
        async for _ in framing.content():
            pass
    await framing.skip_epilogue()


def malformed(why: str) -> Permanent:
    """The fault of a body that breaks its own format."""
    return invalid(f"malformed request body: {why}")


class _Framing:
    """Takes a body apart. `_left` is what has come and is not taken; it stays as small as a chunk and a boundary.

    A boundary begins with the end of the line before it, which may be that of the last header, or for the first
    boundary of no line at all. So where content begins a line end is put before it; `_line_end_bytes` of that are left.
    """

    def __init__(self, boundary: bytes, body: AsyncIterator[bytes]) -> None:
        self._body = body
        self._delimiter = _CRLF + b"--" + boundary
        self._left = bytearray()
        self._is_in_content = False
        self._line_end_bytes = 0

    async def skip_preamble(self) -> None:
        """To the end of the first boundary."""
        self._begin_content()
        skipped_bytes = 0
        async for chunk in self.content():
            skipped_bytes += len(chunk)
            if skipped_bytes > PREAMBLE_MAX_BYTES:
                raise malformed(f"more than {PREAMBLE_MAX_BYTES} bytes come before its first boundary")

    async def begins_part(self) -> bool:
        """Whether the boundary just read begins a part; else it was the last one."""
        while len(self._left) < 2 and await self._more():
            pass
        if self._left.startswith(b"--"):
            del self._left[:2]
            return False
        padding = await self._until(_CRLF, PADDING_MAX_BYTES, "behind a boundary")
        if padding.strip(b" \t"):
            raise malformed("a line begins like its boundary and goes on otherwise")
        return True

    async def headers(self) -> dict[str, str]:
        """The headers of a part, their names in lower case."""
        # A part without headers begins with an empty line.
        self._left[:0] = _CRLF
        head = await self._until(_CRLF * 2, HEADERS_MAX_BYTES, "in the headers of a part")
        self._begin_content()
        lines = head.decode(errors="replace").split("\r\n")[1:]
        if len(lines) > HEADERS_MAX:
            raise malformed(f"a part has more than {HEADERS_MAX} headers")
        if not all(":" in line for line in lines):
            raise malformed("a header of a part has no colon")
        pairs = (line.partition(":") for line in lines)
        return {name.lower(): value.strip(" \t") for name, _, value in pairs}

    async def content(self) -> AsyncIterator[bytes]:
        """What comes before the next boundary; that is taken, too."""
        while self._is_in_content:
            end = self._left.find(self._delimiter)
            if end >= 0:
                chunk = self._take(end)
                del self._left[: len(self._delimiter)]
                self._is_in_content = False
            else:
                # The last bytes may be the beginning of a boundary.
                chunk = self._take(max(0, len(self._left) - len(self._delimiter) + 1))
            line_end_bytes = min(self._line_end_bytes, len(chunk))
            self._line_end_bytes -= line_end_bytes
            if len(chunk) > line_end_bytes:
                yield chunk[line_end_bytes:]
            if self._is_in_content and not await self._more():
                raise self._cut_short()

    async def skip_epilogue(self) -> None:
        """To the end of the body."""
        skipped_bytes = 0
        while True:
            skipped_bytes += len(self._left)
            if skipped_bytes > EPILOGUE_MAX_BYTES:
                raise malformed(f"more than {EPILOGUE_MAX_BYTES} bytes come after its last boundary")
            self._left.clear()
            if not await self._more():
                return

    async def _until(self, mark: bytes, most_bytes: int, where: str) -> bytes:
        """What comes before `mark`, which is taken, too."""
        while (end := self._left.find(mark, 0, most_bytes + len(mark))) < 0:
            if len(self._left) >= most_bytes + len(mark):
                raise malformed(f"there are more than {most_bytes} bytes {where}")
            if not await self._more():
                raise self._cut_short()
        text = self._take(end)
        del self._left[: len(mark)]
        return text

    def _begin_content(self) -> None:
        self._left[:0] = _CRLF
        self._line_end_bytes = len(_CRLF)
        self._is_in_content = True

    def _cut_short(self) -> Permanent:
        return malformed(f"it ends without the line {printable(self._delimiter.lstrip())}--")

    def _take(self, size_bytes: int) -> bytes:
        chunk = bytes(self._left[:size_bytes])
        del self._left[:size_bytes]
        return chunk

    async def _more(self) -> bool:
        chunk = await anext(self._body, None)
        self._left += chunk or b""
        return chunk is not None


def _boundary(content_type: str) -> bytes:
    """Of several boundaries the last is the true one: curl adds its own to a Content-Type that its user gave."""
    given = _BOUNDARY.findall(content_type)
    boundary = given[-1].strip('"').encode(errors="surrogateescape") if given else b""
    if not 0 < len(boundary) <= BOUNDARY_MAX_BYTES:
        raise malformed(f"its Content-Type names no boundary of 1 to {BOUNDARY_MAX_BYTES} bytes")
    return boundary


def _name(headers: dict[str, str]) -> str:
    """The name of a part that is sent as it is. Raises `Permanent(invalid)` for any other."""
    if headers.get("content-type", "").lower().startswith("multipart/"):
        raise invalid("a multipart part may not itself be multipart")
    if headers.get("content-transfer-encoding", "").lower() not in _AS_THEY_ARE or "content-encoding" in headers:
        raise invalid("a multipart part is sent as it is, without Content-Transfer-Encoding or Content-Encoding")
    disposition = headers.get("content-disposition", "")
    at = disposition.find(";")
    while at >= 0 and (parameter := _PARAMETER.match(disposition, at)):
        name, value = parameter.groups()
        if name.lower() == "name":
            quoted = value.startswith('"')
            return _QUOTED_PAIR.sub(r"\1", value[1:-1]) if quoted else value.strip()
        at = parameter.end()
    return ""
