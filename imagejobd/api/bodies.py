"""Texts of strangers: a JSON text of which only the end is looked for, base64 that is decoded on the way, and how any
text is made fit to be shown.

The first two take pieces of any length; what they make of a text does not depend on where it was cut.

Request bodies from strangers: read in bounds of bytes and of silence, and taken as they are.

aiohttp does the framing of HTTP. What it leaves open is closed here: its many ways to fail become one fault, a body
that comes faster than it is read leaves others their turn, and no `Content-Encoding` is unpacked, because a bound that
is counted before unpacking bounds nothing.
"""

import asyncio
import binascii
import string
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import pybase64
from aiohttp import HttpVersion11, StreamReader, hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from imagejobd.api.multipart import Part, malformed, read_parts
from imagejobd.api.settings import Server
from imagejobd.api.wire import too_large
from imagejobd.model.bounds import KIB, MIB
from imagejobd.model.errors import ErrorCode, Permanent, invalid
from imagejobd.model.text import one_line


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


CHUNK_BYTES = 256 * KIB
REASON_MAX_CHARS = 200
# Each member of a JSON object has one, and takes some 300 bytes when it is decoded: 30 times what it took on the wire.
COLONS_MAX = 50_000
# Only a tar in base64 makes JSON large, and decodes fast. Of escapes and small values 32 MiB hold up the loop for long.
BESIDES_BASE64_MAX_BYTES = 2 * MIB
MULTIPART_HINT = "send the tar as a multipart part instead"
SMALL_PART_HINT = "it holds only the job's few fields"

# What aiohttp's parsers raise for malformed bodies.
_MALFORMED = (HttpProcessingError, ValueError, RuntimeError)
_BASE64 = (string.ascii_letters + string.digits + "+/=").encode()
_BLANK_BYTES = string.whitespace.encode()

T = TypeVar("T")
# Told of every piece that is to be held in memory; raises when there is too much of it.
Hold = Callable[[int], None]


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


def has_arrived(request: web.Request) -> bool:
    """Whether the whole body came with the head, as a small one does."""
    return request.content.is_eof() and request.content.exception() is None


async def read_part(part: Part, max_bytes: int, hold: Hold, *, hint: str = SMALL_PART_HINT) -> bytearray:
    """All of a small part. Raises `Permanent(too_large)`, which gives the `hint`."""
    return await _gathered(part.chunks(), max_bytes, hold, f"the part {part.name!r}", hint)


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
    await _invite(request)
    while chunk := await _read(request.content.readany, idle_s):
        yield chunk
        # What has come already is read without waiting: a fast sender would leave nobody else a turn.
        await asyncio.sleep(0)


async def _invite(request: web.Request) -> None:
    """Ask for the body, where its sender waits for that. Other expectations, of which there are none, are ignored, as
    RFC 9110 §10.1.1 lets a server do."""
    if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue" and request.version >= HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer itself has not begun


async def _read(read: Callable[[], Awaitable[T]], idle_s: float) -> T:
    """One read: a sender that falls silent is given up, one that talks nonsense is told so."""
    try:
        async with asyncio.timeout(idle_s):
            return await read()
    except TimeoutError:
        raise Permanent(ErrorCode.TIMEOUT, f"no byte of the request body came for {idle_s:g} s") from None
    except _MALFORMED as error:
        raise malformed(_reason(error)) from None


def _reason(error: Exception) -> str:
    text = error.message if isinstance(error, HttpProcessingError) else str(error)
    return one_line(text, REASON_MAX_CHARS)
