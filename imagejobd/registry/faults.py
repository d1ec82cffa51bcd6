"""From what registries and the HTTP library say to the one error vocabulary. The only place that does.

Messages name the registry and what to do, never a credential: what a peer wrote is shown in part only, on one line.
"""

import datetime as dt
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp
import msgspec

from imagejobd.model.errors import ErrorCode, Fault, Permanent, Temporary
from imagejobd.model.retry_after import parse_retry_after

DETAIL_MAX_CHARS = 300

_TRY_LATER = frozenset({408, 425, 429})
# A plain HTTP server's answer to a TLS hello, as OpenSSL 1.1 to 3.x name it.
_NOT_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"})


class _Error(msgspec.Struct):
    code: str = ""
    message: str | None = None


class _Errors(msgspec.Struct):
    """The error body of the distribution spec (§ Error Codes), which token servers mostly use too."""

    errors: list[_Error] = []


@contextmanager
def translated(host: str) -> Iterator[None]:
    """Turn the HTTP library's errors about `host` into faults."""
    try:
        yield
    except aiohttp.ClientSSLError as error:
        raise _tls_fault(host, error) from error
    except TimeoutError as error:
        raise Temporary(ErrorCode.REGISTRY_UNAVAILABLE, f"registry {host}: no answer in time") from error
    except (aiohttp.ClientError, OSError) as error:
        raise Temporary(ErrorCode.REGISTRY_UNAVAILABLE, f"registry {host}: {_reason(error)}") from error


def refusal(host: str, status: int, *, what: str, detail: str = "", retry_after: str | None = None) -> Fault:
    """The fault for a status that is no success. `what` was asked, e.g. `manifest of app:1`; `detail` see `detail`."""
    told = f"registry {host}: {what}: answered {status}" + (f" ({detail})" if detail else "")
    if status in (401, 403):
        return Permanent(
            ErrorCode.DENIED,
            f"{told}; check the user name and password, and that this user may pull there",
        )
    if status >= 500 or status in _TRY_LATER:
        wish_s = parse_retry_after(retry_after, dt.datetime.now(dt.UTC))
        return Temporary(ErrorCode.REGISTRY_UNAVAILABLE, told, retry_after_s=wish_s)
    code = ErrorCode.NOT_FOUND if status == 404 else ErrorCode.REGISTRY_UNAVAILABLE
    return Permanent(code, told)


def login_needed(host: str, path: str) -> Permanent:
    """The registry wants credentials and there are none."""
    return Permanent(
        ErrorCode.DENIED,
        f"registry {host} asks for a login for {path}: send username and password with the job, "
        f'or set username and password_file in [registry."{host}"]',
    )


def detail(body: bytes) -> str:
    """What the peer's error body says, on one bounded line; empty where it says nothing in the spec's form."""
    try:
        errors = msgspec.json.decode(body, type=_Errors).errors
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""
    text = "; ".join(": ".join(filter(None, (e.code, e.message))) for e in errors)
    return " ".join(text.split())[:DETAIL_MAX_CHARS]


def _tls_fault(host: str, error: aiohttp.ClientSSLError) -> Fault:
    cause = error.certificate_error if isinstance(error, aiohttp.ClientConnectorCertificateError) else error.os_error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return Permanent(
            ErrorCode.REGISTRY_UNAVAILABLE,
            f"registry {host}: its certificate is not trusted ({cause.verify_message}); "
            f'set ca_file in [registry."{host}"]',
        )
    if isinstance(cause, ssl.SSLError) and cause.reason in _NOT_TLS:
        return Permanent(
            ErrorCode.REGISTRY_UNAVAILABLE,
            f'registry {host}: it does not speak TLS; set plain_http = true in [registry."{host}"] if that is meant',
        )
    return Temporary(ErrorCode.REGISTRY_UNAVAILABLE, f"registry {host}: TLS failed ({cause})")


def _reason(error: aiohttp.ClientError | OSError) -> str:
    """Why a connection failed. The library's own text may quote URLs, whose queries can be signed: not shown."""
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "its name does not resolve"
    if isinstance(error, aiohttp.ClientResponseError):
        return "its answer is not HTTP as it should be"
    if isinstance(error, OSError) and error.errno and error.errno > 0:
        return os.strerror(error.errno)  # asyncio puts a text of its own into `strerror`
    return f"the connection failed ({type(error).__name__})"
