"""Request bodies from strangers: read in bounds of bytes and of silence, and taken as they are.

aiohttp does the framing. What it leaves open is closed here: its many ways to fail become one fault, multipart parts
do not nest, and nothing is unpacked on the way, neither a `Content-Encoding` nor a part's `Content-Transfer-Encoding`
(deprecated by RFC 7578 §4.7), because a bound that is counted before unpacking bounds nothing.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from aiohttp import BodyPartReader, HttpVersion11, MultipartReader, StreamReader, hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from imagejobd.api.settings import Server
from imagejobd.api.texts import Base64Text, one_line
from imagejobd.api.wire import too_large
from imagejobd.model.errors import ErrorCode, Permanent, invalid

CHUNK_BYTES = 256 * 1024
REASON_MAX_CHARS = 200
# Each member of a JSON object has one, and takes some 300 bytes when it is decoded: 30 times what it took on the wire.
COLONS_MAX = 100_000
MULTIPART_HINT = "send the tar as a multipart part instead"
SMALL_PART_HINT = "it holds only the job's few fields"

# What aiohttp's parsers raise for malformed bodies; its multipart reader checks with `assert` too.
_MALFORMED = (HttpProcessingError, ValueError, RuntimeError, AssertionError)
_AS_THEY_ARE = frozenset({"", "binary", "8bit", "7bit"})
_BOUNDARY = re.compile(r';\s*boundary=("[^"]*"|[^;\s]*)', re.IGNORECASE)

T = TypeVar("T")
# Told of every piece that is to be held in memory; raises when there is too much of it.
Hold = Callable[[int], None]


def is_multipart(request: web.Request) -> bool:
    return request.content_type.startswith("multipart/")


async def read_body(
    request: web.Request, server: Server, hold: Hold, *, max_bytes: int | None = None, hint: str = MULTIPART_HINT
) -> bytearray:
    """All of a JSON body, at most `json_max_bytes`, or `max_bytes` where that is less.

    Raises `Permanent(too_large)`, which gives the `hint`; also for absurdly many members.
    """
    most_bytes = min(server.json_max_bytes, max_bytes or server.json_max_bytes)
    if (request.content_length or 0) > most_bytes:
        raise too_large("the request body", most_bytes, hint)
    body = await _gathered(body_chunks(request, server), most_bytes, hold, "the request body", hint)
    if body.count(b":") > COLONS_MAX:
        raise Permanent(ErrorCode.TOO_LARGE, f"the request body has more than {COLONS_MAX} colons; no job needs that")
    return body


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


class Part:
    """One part of a multipart body, to be read before the next one. `name` is empty where the sender gave none."""

    def __init__(self, reader: BodyPartReader, idle_s: float) -> None:
        self.name = reader.name or ""
        self._reader = reader
        self._idle_s = idle_s

    async def chunks(self) -> AsyncIterator[bytes]:
        """The part as it arrives. Raises `Permanent(invalid)` when the body ends within it."""
        while chunk := await _read(self._chunk, self._idle_s):
            yield chunk
        if not self._reader.at_eof():
            raise invalid(f"malformed request body: it ends within the part {self.name!r}")

    async def body(self, max_bytes: int, hold: Hold, *, hint: str = SMALL_PART_HINT) -> bytearray:
        """All of a small part. Raises `Permanent(too_large)`, which gives the `hint`."""
        return await _gathered(self.chunks(), max_bytes, hold, f"the part {self.name!r}", hint)

    async def _chunk(self) -> bytes:
        return bytes(await self._reader.read_chunk(CHUNK_BYTES))


async def parts(request: web.Request, server: Server) -> AsyncIterator[Part]:
    """The parts of a multipart body, to its very end. How many and which there may be is the caller's rule."""
    _check_encoding(request)
    await _invite(request)
    reader: MultipartReader = await _read(lambda: _multipart(request), server.body_idle_s)
    while (part := await _read(reader.next, server.body_idle_s)) is not None:
        if not isinstance(part, BodyPartReader):
            raise invalid("a multipart part may not itself be multipart")
        encoding = part.headers.get(hdrs.CONTENT_TRANSFER_ENCODING, "")
        if encoding.lower() not in _AS_THEY_ARE or hdrs.CONTENT_ENCODING in part.headers:
            raise invalid("a multipart part is sent as it is, without Content-Transfer-Encoding or Content-Encoding")
        yield Part(part, server.body_idle_s)


async def _multipart(request: web.Request) -> MultipartReader:
    """The reader of a multipart body; of several boundaries the last is the true one, because curl adds its own to a
    Content-Type that its user gave."""
    boundaries = _BOUNDARY.findall(request.headers[hdrs.CONTENT_TYPE])
    if len(boundaries) > 1:
        headers = request.headers.copy()
        headers[hdrs.CONTENT_TYPE] = f"{request.content_type}; boundary={boundaries[-1]}"
        request = request.clone(headers=headers)
    return await request.multipart()


async def base64_chunks(text: str, field: str) -> AsyncIterator[bytes]:
    """Decode base64 piece by piece; white space is allowed, anything else outside the alphabet is refused."""
    decoder = Base64Text(field)
    for start in range(0, len(text), CHUNK_BYTES):
        # What is no ASCII becomes `?`, which is not in the alphabet either.
        yield decoder.decode("".join(text[start : start + CHUNK_BYTES].split()).encode("ascii", "replace"))
    decoder.finish()


def _check_encoding(request: web.Request) -> None:
    encoding = request.headers.get(hdrs.CONTENT_ENCODING, "identity")
    if encoding.lower() != "identity":
        raise invalid(f"Content-Encoding {encoding[:32]!r} is not taken: send the body as it is")


async def _gathered(chunks: AsyncIterator[bytes], max_bytes: int, hold: Hold, what: str, hint: str) -> bytearray:
    gathered = bytearray()
    async for chunk in chunks:
        hold(len(chunk))
        gathered += chunk
        if len(gathered) > max_bytes:
            raise too_large(what, max_bytes, hint)
    return gathered


async def _arrived(content: StreamReader) -> AsyncIterator[bytes]:
    """A small body, which comes with its head: a time limit on nothing would cost more than to read it."""
    yield content.read_nowait()


async def _awaited(request: web.Request, idle_s: float) -> AsyncIterator[bytes]:
    await _invite(request)
    while chunk := await _read(request.content.readany, idle_s):
        yield chunk


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
        raise invalid(f"malformed request body: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    text = error.message if isinstance(error, HttpProcessingError) else str(error)
    return one_line(text, REASON_MAX_CHARS)
