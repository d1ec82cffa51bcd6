"""What the APIs share at the wire: HTTP statuses for faults, JSON answers, gzip, ranges, parameters, times.

How an error looks is each API's own; which status it gets is decided here once.
"""

import asyncio
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

import msgspec
from aiohttp import hdrs, web

from imagejobd.model.errors import ErrorCode, Fault, Permanent, StoreFailed, Temporary, invalid
from imagejobd.model.text import printable

STATUS_OF: dict[ErrorCode, HTTPStatus] = {
    ErrorCode.INVALID: HTTPStatus.BAD_REQUEST,
    ErrorCode.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    ErrorCode.DENIED: HTTPStatus.FORBIDDEN,
    ErrorCode.NOT_FOUND: HTTPStatus.NOT_FOUND,
    ErrorCode.CONFLICT: HTTPStatus.CONFLICT,
    ErrorCode.TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    ErrorCode.POLICY: HTTPStatus.UNPROCESSABLE_ENTITY,
    ErrorCode.EGRESS: HTTPStatus.FORBIDDEN,
    ErrorCode.QUEUE_FULL: HTTPStatus.SERVICE_UNAVAILABLE,
    ErrorCode.STORAGE_FULL: HTTPStatus.INSUFFICIENT_STORAGE,
    ErrorCode.TIMEOUT: HTTPStatus.REQUEST_TIMEOUT,
}
# What msgspec raises for a text that it cannot decode.
NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
RETRY_AFTER_DEFAULT_S = 5.0
BUSY_RETRY_AFTER_S = 10.0
# Shorter answers fit into a packet as they are.
GZIP_MIN_BYTES = 1024
NUMBER_MAX_CHARS = 18

# One range. Several at once are answered with the whole, which RFC 9110 §14.2 allows.
_RANGE = re.compile(r"bytes=[ \t]*([0-9]{0,18})-([0-9]{0,18})[ \t]*", re.IGNORECASE)
# In Accept-Encoding (RFC 9110 §12.5.3); a weight of zero means not that one.
_GZIP = re.compile(r"(?:^|,)\s*gzip\s*(?:;\s*q\s*=\s*(?:1|0\.0*[1-9])[0-9.]*\s*)?(?:,|$)", re.IGNORECASE)
_json = msgspec.json.Encoder()


class Explained(Permanent):
    """A refusal whose `message` is fixed by an older API's document; `detail` is what there is to say besides."""

    def __init__(self, code: ErrorCode, message: str, detail: str) -> None:
        super().__init__(code, message)
        self.detail = detail


def words_of(fault: Fault) -> str:
    """All that a refusal says, for the APIs that fix no words."""
    return f"{fault.message}; {fault.detail}" if isinstance(fault, Explained) else fault.message


def detail_of(fault: Fault, key: str = "detail") -> dict[str, str]:
    """What a refusal says besides its fixed words, as a key to follow them."""
    return {key: fault.detail} if isinstance(fault, Explained) else {}


def status_of(fault: Fault) -> HTTPStatus:
    """The HTTP status of a refusal; what no client can cause or cure is a 503 or a 500."""
    may_pass = isinstance(fault, Temporary | StoreFailed)
    fallback = HTTPStatus.SERVICE_UNAVAILABLE if may_pass else HTTPStatus.INTERNAL_SERVER_ERROR
    return STATUS_OF.get(fault.code, fallback)


def headers_of(fault: Fault) -> dict[str, str]:
    """Retry-After for everything that may work later; where a token would help, that it is one (RFC 6750 §3)."""
    if fault.code is ErrorCode.UNAUTHENTICATED:
        return {"WWW-Authenticate": "Bearer"}
    if isinstance(fault, StoreFailed):
        return {"Retry-After": str(math.ceil(BUSY_RETRY_AFTER_S))}
    if not isinstance(fault, Temporary):
        return {}
    wait_s = RETRY_AFTER_DEFAULT_S if fault.retry_after_s is None else fault.retry_after_s
    return {"Retry-After": str(max(1, math.ceil(wait_s)))}


def json_response(value: Any, status: int = 200, *, headers: Mapping[str, str] | None = None) -> web.Response:
    """JSON on a line of its own, for those who read it in a terminal."""
    return _json_response(_json.encode(value) + b"\n", status, headers)


def exact_json_response(value: Any, status: int = 200, *, indent: int | None = None) -> web.Response:
    """JSON with nothing behind it, as the older services answered."""
    body = _json.encode(value)
    return _json_response(body if indent is None else msgspec.json.format(body, indent=indent), status)


def _json_response(body: bytes, status: int, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(body=body, status=status, content_type="application/json", charset="utf-8", headers=headers)


def pack(request: web.Request, response: web.StreamResponse) -> None:
    """Have a long answer of text sent as gzip to a client that takes it."""
    if isinstance(response, web.Response) and isinstance(response.body, bytes) and _is_text(response.content_type):
        offer_gzip(request, response, len(response.body))


def offer_gzip(request: web.Request, response: web.StreamResponse, size_bytes: int) -> bool:
    """Whether the answer, which is not prepared yet and is to have so many bytes, is sent as gzip."""
    if size_bytes <= GZIP_MIN_BYTES or hdrs.CONTENT_ENCODING in response.headers:
        return False
    vary = response.headers.get(hdrs.VARY, "")
    if hdrs.ACCEPT_ENCODING not in vary:
        response.headers[hdrs.VARY] = ", ".join(filter(None, (vary, hdrs.ACCEPT_ENCODING)))
    if not takes_gzip(request):
        return False
    response.enable_compression(web.ContentCoding.gzip)
    return True


def takes_gzip(request: web.Request) -> bool:
    """Whether the client says so; aiohttp looks for the name alone, and takes `gzip;q=0` for a wish."""
    return _GZIP.search(",".join(request.headers.getall(hdrs.ACCEPT_ENCODING, []))) is not None


def _is_text(content_type: str) -> bool:
    return content_type.startswith("text/") or content_type.endswith(("json", "javascript"))


def byte_range(header: str, size_bytes: int) -> range | None:
    """The bytes that a Range header asks for of `size_bytes` (RFC 9110 §14.1.2), empty where there are none of them.
    None where the whole is asked for, or what cannot be read."""
    wanted = _RANGE.fullmatch(header)
    if wanted is None or not any(wanted.groups()):
        return None
    first, last = wanted.groups()
    if not first:
        return range(max(size_bytes - int(last), 0), size_bytes)
    if last and int(last) < int(first):
        return None
    return range(int(first), min(int(last) + 1, size_bytes) if last else size_bytes)


def parameters(request: web.Request, *known: str) -> dict[str, str]:
    """What the query says. Raises `Permanent(invalid)` for a parameter that is not `known` or is given twice."""
    for name in request.query:
        if name not in known:
            which = f"known: {', '.join(known)}" if known else "there are none here"
            raise invalid(f"unknown query parameter {printable(name)!r}; {which}")
        if len(request.query.getall(name)) > 1:
            raise invalid(f"query parameter {name!r} is given twice; one is enough")
    return dict(request.query)


def number(name: str, text: str | None, default: int) -> int:
    """Raises `Permanent(invalid)` for what is not a whole number, or may be too large for the database."""
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) <= NUMBER_MAX_CHARS):
        raise invalid(f"{name} must be a whole number")
    return int(text)


async def send(response: web.StreamResponse, data: bytes, *, idle_s: float) -> None:
    """Send a piece of an answer. Raises `Permanent(timeout)` when the client does not take it within `idle_s`: one that
    has stopped reading would be kept for ever."""
    try:
        async with asyncio.timeout(idle_s):
            await response.write(data)
    except TimeoutError:
        raise Permanent(ErrorCode.TIMEOUT, f"the client took less than {len(data)} bytes in {idle_s:g} s") from None


def too_large(what: str, max_bytes: int, hint: str) -> Permanent:
    return Permanent(ErrorCode.TOO_LARGE, f"{what} is larger than {max_bytes} bytes; {hint}")


def busy(why: str) -> Temporary:
    return Temporary(ErrorCode.QUEUE_FULL, f"{why}; try again in a moment", retry_after_s=BUSY_RETRY_AFTER_S)


def iso(at_ms: int | None, timespec: str = "milliseconds") -> str | None:
    """ISO 8601 in UTC, written to the millisecond or, for `microseconds`, with three more digits."""
    if at_ms is None:
        return None
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec=timespec)
