"""What the APIs share at the wire: HTTP statuses for faults, JSON answers, times.

How an error looks is each API's own; which status it gets is decided here once.
"""

import asyncio
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

import msgspec
from aiohttp import web

from imagejobd.model.errors import ErrorCode, Fault, Permanent, StoreFailed, Temporary

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


def json_response(
    value: Any, status: int = 200, *, headers: Mapping[str, str] | None = None, indent: int | None = None
) -> web.Response:
    body = _json.encode(value)
    if indent is not None:
        body = msgspec.json.format(body, indent=indent)
    return web.Response(body=body, status=status, content_type="application/json", charset="utf-8", headers=headers)


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
