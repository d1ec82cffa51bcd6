"""Content of the store as an answer (RFC 9110): entity tags, conditions, one range.

aiohttp's FileResponse makes its own tags from the time of a file, knows only dates in If-Range, and refuses several
ranges at once. Content has a digest: that is its tag, and a strong one. It comes from strangers, so no browser may take
it for a page of this host.
"""

import asyncio
import mimetypes
from pathlib import Path
from typing import BinaryIO

import msgspec
from aiohttp import ETag, hdrs, web

from imagejobd.api.wire import byte_range, send
from imagejobd.jobs.dispatch import Content
from imagejobd.model.bounds import KIB
from imagejobd.model.errors import ErrorCode, NotFound, Permanent

CHUNK_BYTES = 256 * KIB
# As everybody writes it; aiohttp would say Etag.
ETAG = "ETag"

# Not the tables of the machine: a name should not depend on what else is installed.
_types = mimetypes.MimeTypes()


class _Span(msgspec.Struct, frozen=True):
    """Part of a content; `is_all` when no part was asked for."""

    start: int
    size_bytes: int
    is_all: bool


async def serve(request: web.Request, content: Content, *, name: str, idle_s: float) -> web.StreamResponse:
    """Answer GET or HEAD with `content`, offered as the file `name`. The client has `idle_s` to take each chunk.

    Raises `Permanent(not_found)` when its file is gone, and `Permanent(timeout)`.
    """
    headers = _headers(content, name)
    status = _condition(request, content.digest)
    if status is not None:
        return web.Response(status=status, headers={ETAG: headers[ETAG]})
    span = _span(request, content)
    if span is None:
        return web.Response(status=416, headers={hdrs.CONTENT_RANGE: f"bytes */{content.size_bytes}"})
    response = web.StreamResponse(status=200 if span.is_all else 206, headers=headers)
    response.content_length = span.size_bytes
    if not span.is_all:
        last = span.start + span.size_bytes - 1
        response.headers[hdrs.CONTENT_RANGE] = f"bytes {span.start}-{last}/{content.size_bytes}"
    await _send(request, response, content, span, idle_s)
    return response


def _headers(content: Content, name: str) -> dict[str, str]:
    file_name = name + (_types.guess_extension(content.media_type) or "")
    return {
        hdrs.CONTENT_TYPE: content.media_type,
        ETAG: f'"{content.digest}"',
        hdrs.ACCEPT_RANGES: "bytes",
        hdrs.CONTENT_DISPOSITION: f'attachment; filename="{file_name}"',
        "X-Content-Type-Options": "nosniff",
    }


def _condition(request: web.Request, digest: str) -> int | None:
    """The status that a condition of the request asks for instead of the content (RFC 9110 §13.2.2). There are no
    dates to compare: content does not change."""
    if request.if_match is not None and not _has(request.if_match, digest, weak=False):
        return 412
    if request.if_none_match is not None and _has(request.if_none_match, digest, weak=True):
        return 304
    return None


def _has(tags: tuple[ETag, ...], digest: str, *, weak: bool) -> bool:
    return any(tag.value in ("*", digest) and (weak or not tag.is_weak) for tag in tags)


def _span(request: web.Request, content: Content) -> _Span | None:
    """What to send; None when nothing of the range is there. Only GET has ranges (RFC 9110 §14.2)."""
    whole = _Span(0, content.size_bytes, is_all=True)
    if request.method != hdrs.METH_GET:
        return whole
    wanted = byte_range(request.headers.get(hdrs.RANGE, ""), content.size_bytes)
    if wanted is None or request.headers.get(hdrs.IF_RANGE, f'"{content.digest}"') != f'"{content.digest}"':
        return whole
    return _Span(wanted.start, len(wanted), is_all=False) if wanted else None


async def _send(
    request: web.Request, response: web.StreamResponse, content: Content, span: _Span, idle_s: float
) -> None:
    unsent_bytes = 0 if request.method == hdrs.METH_HEAD else span.size_bytes
    if content.path is None:
        await response.prepare(request)
        await response.write(content.inline[span.start : span.start + unsent_bytes])
    else:
        with await asyncio.to_thread(_open, content.path, span.start) as file:
            await response.prepare(request)
            while unsent_bytes:
                chunk = await asyncio.to_thread(file.read, min(CHUNK_BYTES, unsent_bytes))
                if not chunk:
                    why = f"a file of the content store is {unsent_bytes} bytes too short"
                    raise Permanent(ErrorCode.INTERNAL, why)
                unsent_bytes -= len(chunk)
                await send(response, chunk, idle_s=idle_s)
    await response.write_eof()


def _open(path: Path, start: int) -> BinaryIO:
    try:
        file = path.open("rb", buffering=0)
    except FileNotFoundError:
        raise NotFound("the content is no longer kept") from None
    file.seek(start)
    return file
