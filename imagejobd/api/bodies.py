"""Request bodies from strangers, read in bounds of bytes and of silence: JSON, multipart (RFC 2046 §5.1, RFC 7578) and
base64.

aiohttp does the framing of HTTP. What it leaves open is closed here: its many ways to fail become one fault, and a body
that comes faster than it is read leaves others their turn. Its reader of multipart takes headers, preamble and epilogue
line by line, without a return to the loop, and writes to stderr about headers it cannot read; here they are bounded in
bytes, and parts do not nest. No `Content-Encoding` or `Content-Transfer-Encoding` is unpacked on the way, because a
bound that is counted before unpacking bounds nothing.
"""

import asyncio
import binascii
import re
import string
from collections.abc import AsyncIterator, Callable

import msgspec
import pybase64
from aiohttp import HttpVersion11, StreamReader, hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from imagejobd.api.intake import Server
from imagejobd.api.wire import too_large
from imagejobd.model.bounds import KIB, MIB
from imagejobd.model.errors import ErrorCode, Permanent, invalid
from imagejobd.model.text import one_line, printable

CHUNK_BYTES = 256 * KIB
REASON_MAX_CHARS = 200
# Each member of a JSON object has one, and takes some 300 bytes when it is decoded: 30 times what it took on the wire.
COLONS_MAX = 50_000
# Only a tar in base64 makes JSON large, and decodes fast. Of escapes and small values 32 MiB hold up the loop for long.
BESIDES_BASE64_MAX_BYTES = 2 * MIB
MULTIPART_HINT = "send the tar as a multipart part instead"
SMALL_PART_HINT = "it holds only the job's few fields"
# What comes before the first boundary, and what after the last one. Nobody reads either.
PREAMBLE_MAX_BYTES = EPILOGUE_MAX_BYTES = 64 * KIB
HEADERS_MAX_BYTES = 8 * KIB
HEADERS_MAX = 32
# RFC 2046 §5.1.1.
BOUNDARY_MAX_BYTES = 70
# Blanks between a boundary and the end of its line, which gateways were once known to add.
PADDING_MAX_BYTES = 64

# What aiohttp's parsers raise for malformed bodies.
_MALFORMED = (HttpProcessingError, ValueError, RuntimeError)
_BASE64 = (string.ascii_letters + string.digits + "+/=").encode()
_BLANK_BYTES = string.whitespace.encode()
_AS_THEY_ARE = frozenset({"", "binary", "8bit", "7bit"})
_CRLF = b"\r\n"
_BOUNDARY = re.compile(r';\s*boundary=("[^"]*"|[^;\s]*)', re.IGNORECASE)
_PARAMETER = re.compile(r';[ \t]*([^=;"\s]+)[ \t]*=[ \t]*("(?:[^"\\]|\\.)*"|[^;"]*)[ \t]*')
_QUOTED_PAIR = re.compile(r"\\(.)")

# Accounts for the bytes of each piece that is held in memory; raises when there are too many.
Hold = Callable[[int], None]


class Part(msgspec.Struct, frozen=True):
    """One part, to be read before the next one. `name` is empty where the sender gave none; `chunks` is its content as
    it arrives, and raises `Permanent(invalid)` when the body ends within it."""

    name: str
    chunks: AsyncIterator[bytes]


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


def is_multipart(request: web.Request) -> bool:
    # aiohttp's `content_type` goes through the parser of e-mail: a third of a second for 8 KiB of semicolons.
    return request.headers.get(hdrs.CONTENT_TYPE, "").lstrip().lower().startswith("multipart/")


async def read_body(
    request: web.Request, server: Server, hold: Hold, *, max_bytes: int | None = None, hint: str = MULTIPART_HINT
) -> bytearray:
    """All of a JSON body, at most `json_max_bytes`, or `max_bytes` where that is less.

    Raises `Permanent(too_large)`, which gives the `hint`; also for absurdly many members, or much that is no base64.
    """
    most_bytes = min(server.json_max_bytes, max_bytes or server.json_max_bytes)
    if (request.content_length or 0) > most_bytes:
        raise too_large("the request body", most_bytes, hint)
    return await _gathered(body_chunks(request, server), most_bytes, hold, "the request body", hint)


def has_arrived(request: web.Request) -> bool:
    """Whether the whole body came with the head, as a small one does."""
    return request.content.is_eof() and request.content.exception() is None


def body_chunks(request: web.Request, server: Server) -> AsyncIterator[bytes]:
    """A body as it arrives, of any size. Raises `Permanent(invalid)`, and `Permanent(timeout)` for a silent sender."""
    _check_encoding(request)
    if has_arrived(request):
        return _arrived(request.content)
    return _awaited(request, server.body_idle_s)


def arrived_body(request: web.Request) -> bytes:
    """The body of a request that `has_arrived`. Raises `Permanent(invalid)`."""
    _check_encoding(request)
    return request.content.read_nowait()


async def read_part(part: Part, max_bytes: int, hold: Hold, *, hint: str = SMALL_PART_HINT) -> bytearray:
    """All of a small part. Raises `Permanent(too_large)`, which gives the `hint`."""
    return await _gathered(part.chunks, max_bytes, hold, f"the part {part.name!r}", hint)


def parts(request: web.Request, server: Server) -> AsyncIterator[Part]:
    """The parts of a multipart body, to its very end. How many and which there may be is the caller's rule."""
    return read_parts(request.headers[hdrs.CONTENT_TYPE], body_chunks(request, server))


async def base64_chunks(text: str, field: str) -> AsyncIterator[bytes]:
    """Decode base64 piece by piece; white space is allowed, anything else outside the alphabet is refused."""
    decoder = Base64Text(field)
    for start in range(0, len(text), CHUNK_BYTES):
        # What is no ASCII becomes `?`, which is not in the alphabet either.
        piece = text[start : start + CHUNK_BYTES].encode("ascii", "replace")
        yield decoder.decode(piece.translate(None, _BLANK_BYTES))
        await asyncio.sleep(0)
    decoder.finish()


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
    """Splits a body. `_buffer` is what has come and has not been read; it stays as small as a chunk and a boundary.

    A boundary begins with the end of the line before it, which may be that of the last header, or for the first
    boundary of no line at all. So where content begins a line end is put before it; `_line_end_bytes` of it are to be
    dropped.
    """

    def __init__(self, boundary: bytes, body: AsyncIterator[bytes]) -> None:
        self._body = body
        self._delimiter = _CRLF + b"--" + boundary
        self._buffer = bytearray()
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
        while len(self._buffer) < 2 and await self._more():
            pass
        if self._buffer.startswith(b"--"):
            del self._buffer[:2]
            return False
        padding = await self._until(_CRLF, PADDING_MAX_BYTES, "behind a boundary")
        if padding.strip(b" \t"):
            raise malformed("a line begins like its boundary and goes on otherwise")
        return True

    async def headers(self) -> dict[str, str]:
        """The headers of a part, their names in lower case."""
        # A part without headers begins with an empty line.
        self._buffer[:0] = _CRLF
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
        """What comes before the next boundary, which is read, too."""
        while self._is_in_content:
            end = self._buffer.find(self._delimiter)
            if end >= 0:
                chunk = self._take(end)
                del self._buffer[: len(self._delimiter)]
                self._is_in_content = False
            else:
                # The last bytes may be the beginning of a boundary.
                chunk = self._take(max(0, len(self._buffer) - len(self._delimiter) + 1))
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
            skipped_bytes += len(self._buffer)
            if skipped_bytes > EPILOGUE_MAX_BYTES:
                raise malformed(f"more than {EPILOGUE_MAX_BYTES} bytes come after its last boundary")
            self._buffer.clear()
            if not await self._more():
                return

    async def _until(self, mark: bytes, most_bytes: int, where: str) -> bytes:
        """What comes before `mark`, which is read, too."""
        while (end := self._buffer.find(mark, 0, most_bytes + len(mark))) < 0:
            if len(self._buffer) >= most_bytes + len(mark):
                raise malformed(f"there are more than {most_bytes} bytes {where}")
            if not await self._more():
                raise self._cut_short()
        text = self._take(end)
        del self._buffer[: len(mark)]
        return text

    def _begin_content(self) -> None:
        self._buffer[:0] = _CRLF
        self._line_end_bytes = len(_CRLF)
        self._is_in_content = True

    def _cut_short(self) -> Permanent:
        return malformed(f"it ends without the line {printable(self._delimiter.lstrip())}--")

    def _take(self, size_bytes: int) -> bytes:
        chunk = bytes(self._buffer[:size_bytes])
        del self._buffer[:size_bytes]
        return chunk

    async def _more(self) -> bool:
        chunk = await anext(self._body, None)
        self._buffer += chunk or b""
        return chunk is not None


def _check_encoding(request: web.Request) -> None:
    encoding = request.headers.get(hdrs.CONTENT_ENCODING, "identity")
    if encoding.lower() != "identity":
        raise invalid(f"Content-Encoding {encoding[:32]!r} is not taken: send the body as it is")


async def _gathered(chunks: AsyncIterator[bytes], max_bytes: int, hold: Hold, what: str, hint: str) -> bytearray:
    gathered = bytearray()
    colons = besides_base64_bytes = 0
    async for chunk in chunks:
        hold(len(chunk))
        gathered += chunk
        if len(gathered) > max_bytes:
            raise too_large(what, max_bytes, hint)
        colons += chunk.count(b":")
        if colons > COLONS_MAX:
            raise Permanent(ErrorCode.TOO_LARGE, f"{what} has more than {COLONS_MAX} colons; no job needs that")
        besides_base64_bytes += len(chunk.translate(None, _BASE64))
        if besides_base64_bytes > BESIDES_BASE64_MAX_BYTES:
            raise too_large(f"{what}, but for base64,", BESIDES_BASE64_MAX_BYTES, hint)
    return gathered


async def _arrived(content: StreamReader) -> AsyncIterator[bytes]:
    """A small body, which comes with its head: a time limit on nothing would cost more than to read it."""
    yield content.read_nowait()


async def _awaited(request: web.Request, idle_s: float) -> AsyncIterator[bytes]:
    # Ask for the body, where its sender waits for that. Other expectations, of which there are none, are ignored, as
    # RFC 9110 §10.1.1 lets a server do.
    if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue" and request.version >= HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer itself has not begun
    while chunk := await _read(request.content, idle_s):
        yield chunk
        # What has come already is read without waiting: a fast sender would leave nobody else a turn.
        await asyncio.sleep(0)


async def _read(content: StreamReader, idle_s: float) -> bytes:
    """What comes next. A sender that falls silent is given up; one that breaks the protocol is told so."""
    try:
        async with asyncio.timeout(idle_s):
            return await content.readany()
    except TimeoutError:
        raise Permanent(ErrorCode.TIMEOUT, f"no byte of the request body came for {idle_s:g} s") from None
    except _MALFORMED as error:
        text = error.message if isinstance(error, HttpProcessingError) else str(error)
        raise malformed(one_line(text, REASON_MAX_CHARS)) from None


def _boundary(content_type: str) -> bytes:
    """Of several boundaries the last is the true one: curl adds its own to a Content-Type that its user gave."""
    boundaries = _BOUNDARY.findall(content_type) or [""]
    boundary: bytes = boundaries[-1].strip('"').encode(errors="surrogateescape")
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
            return _QUOTED_PAIR.sub(r"\1", value[1:-1]) if value.startswith('"') else value.strip()
        at = parameter.end()
    return ""
