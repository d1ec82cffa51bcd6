"""What registries and the HTTP library say, in the one error vocabulary. The only place that translates.

Messages name the registry and what to do, never a credential. What a peer wrote is quoted in part only, on one line
that shows no secret and steers no terminal.
"""

import datetime as dt
import os
import re
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import aiohttp
import msgspec

from imagejobd.model.errors import ErrorCode, Fault, NotFound, Permanent, Temporary, parse_retry_after
from imagejobd.model.text import one_line

DETAIL_MAX_CHARS = 300
# An image may miss as many blobs as manifests may list; what is more is not of the spec's form.
ERRORS_MAX = 20_000

LOGIN_TO_CHECK = "check the user name and password, and that this user may do so there"
# What to do where a registry wants a login, by why there is none; `hint` is how the job may give it.
LOGIN_CONFIGURABLE = '{hint}, or set username and password_file in [registry."{host}"]'
LOGIN_WEAKENED = (
    "{hint}; the configured login is not sent over a connection that the job made weaker (http, or verify_tls = false)"
)
LOGIN_NOT_FOR_YOU = (
    'no login is configured for you; {hint}, or ask the operator to name your tenant in tenants of [registry."{host}"]'
)

_TRY_LATER = frozenset({408, 425, 429})
_NEVER = frozenset({501, 505})  # not implemented, not this HTTP
_MISSING_CONTENT = frozenset({"MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN", "MANIFEST_UNKNOWN"})
_DIGEST = re.compile(rb"sha256:[a-f0-9]{64}\b|sha512:[a-f0-9]{128}\b")
# A plain HTTP server's answer to a TLS hello, as OpenSSL 1.1 to 3.x name it.
_NOT_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"})
# What servers say to who shows no certificate, or not the right one (Go's, OpenSSL's).
_CERTIFICATE_ALERTS = frozenset({"SSLV3_ALERT_BAD_CERTIFICATE", "TLSV13_ALERT_CERTIFICATE_REQUIRED"})


F = TypeVar("F", bound=Fault)


class _Error(msgspec.Struct):
    code: str = ""
    message: str | None = None
    detail: msgspec.Raw = msgspec.Raw(b"null")


class _ErrorBody(msgspec.Struct):
    """Distribution spec, "Error Codes"; token servers mostly use it, too."""

    errors: list[_Error] = []


def _errors(body: bytes) -> list[_Error]:
    if body.count(b"{") > ERRORS_MAX:
        return []
    try:
        return msgspec.json.decode(body, type=_ErrorBody).errors
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []


def codes_of(body: bytes) -> frozenset[str]:
    """The error codes in a body of the spec's form; none in any other. They say more than the status."""
    return frozenset(error.code.upper() for error in _errors(body))


def is_missing_content(body: bytes) -> bool:
    """Whether an error body says that content which is referred to is not there. docker-registry says so with 500 for a
    layer that registries do not hold, and no retry helps."""
    return bool(codes_of(body) & _MISSING_CONTENT)


def missing_digests(body: bytes) -> tuple[str, ...]:
    """What such a body names: docker-registry does so in `detail` (`{"digest": …}`), ECR in its message; maybe none."""
    digests: dict[bytes, None] = {}
    for error in _errors(body):
        if error.code.upper() in _MISSING_CONTENT:
            message = (error.message or "").encode(errors="replace")
            digests |= dict.fromkeys(_DIGEST.findall(bytes(error.detail)) or _DIGEST.findall(message))
    return tuple(digest.decode() for digest in digests)


def detail(body: bytes, redact: Callable[[str], str] = str) -> str:
    """What the peer's error body says, on one bounded line without the secrets that `redact` knows; empty where it says
    nothing in the spec's form."""
    text = "; ".join(": ".join(filter(None, (error.code, error.message))) for error in _errors(body))
    return one_line(redact(text), DETAIL_MAX_CHARS)  # a part of a secret is not known as one


def is_busy(status: int) -> bool:
    """Whether the same request may be answered otherwise in a moment."""
    return status in _TRY_LATER or (status >= 500 and status not in _NEVER)


def refusal(
    host: str, status: int, *, what: str, detail: str = "", retry_after: str | None = None, advice: str | None = None
) -> Fault:
    """The fault for a status that is no success. `what` was asked, e.g. `manifest of app:1`; `detail` see `detail`;
    `advice` is for who has no login."""
    message = f"registry {host}: {what}: answered {status}" + (f" ({detail})" if detail else "")
    if status in (401, 403):
        return Permanent(ErrorCode.DENIED, f"{message}; {advice or LOGIN_TO_CHECK}")
    if status >= 500 or status in _TRY_LATER:
        wish_s = parse_retry_after(retry_after, dt.datetime.now(dt.UTC))
        return Temporary(ErrorCode.REGISTRY_UNAVAILABLE, message, retry_after_s=wish_s)
    return NotFound(message) if status == 404 else Permanent(ErrorCode.REGISTRY_UNAVAILABLE, message)


def unavailable(kind: type[F], host: str, why: str) -> F:
    """`host` does not do what a registry does."""
    return kind(ErrorCode.REGISTRY_UNAVAILABLE, f"registry {host}: {why}")


def login_needed(host: str, path: str, advice: str) -> Permanent:
    """The registry wants credentials and there are none, or those configured do not go with this connection."""
    return Permanent(ErrorCode.DENIED, f"registry {host} asks for a login for {path}: {advice}")


def no_token(server: str, host: str, status: int, detail: str) -> Permanent:
    """A token server will not give a token for `host`, with whatever status: nothing there is missing or broken."""
    answer = f"answered {status}" + (f" ({detail})" if detail else "")
    return Permanent(
        ErrorCode.DENIED,
        f"token server {server}: it gives no token for registry {host}: {answer}; check the user name and password, "
        "and that the registry names the right token server",
    )


class NoAnswer(Exception):
    """A request ended before its answer began. `cause` is the HTTP library's; `peer` is who was to answer (see
    `model.circuit.peer_name`): a redirect's target, or the proxy that leads there."""

    def __init__(self, peer: str, cause: aiohttp.ClientError | OSError) -> None:
        super().__init__(str(cause))
        self.peer = peer
        self.cause = cause


class Unanswered(Temporary):
    """`silent` gave no answer to this request. Whether it answers to nobody is still to be found out, see
    `RegistryClient.blamed`: until then it is not `peer`."""

    def __init__(self, code: ErrorCode, message: str, *, silent: str) -> None:
        super().__init__(code, message)
        self.silent = silent


@contextmanager
def translated(host: str, *, withheld: str = "", scheme: str | None = None) -> Iterator[None]:
    """Turn the HTTP library's errors about `host` into faults. `withheld` is what to say to who may not use the login
    that is configured there, `scheme` the one that the request itself asked for."""
    try:
        yield
    except NoAnswer as error:
        fault = _fault(host, error.cause, withheld, scheme)
        if isinstance(fault, Temporary) and not _is_unknown_name(error.cause):
            fault = Unanswered(fault.code, fault.message, silent=error.peer)
        raise fault from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise _fault(host, error, withheld, scheme) from error


def _fault(host: str, error: aiohttp.ClientError | OSError | ValueError, withheld: str, scheme: str | None) -> Fault:
    code, is_temporary = ErrorCode.REGISTRY_UNAVAILABLE, True
    match error:
        case aiohttp.ClientHttpProxyError(status=status):
            why, is_temporary = f"the proxy answered {status} instead of connecting to it", is_busy(status)
        case aiohttp.ClientOSError() if _wants_certificate(error):
            code, is_temporary = ErrorCode.DENIED, False
            advice = withheld or f'set cert_file and key_file in [registry."{host}"]'
            why = f"it does not let us in with the client certificate that it is shown, or without one; {advice}"
        case aiohttp.ClientSSLError():
            why, is_temporary = _tls_failure(host, error, scheme)
        case TimeoutError():
            why = "no answer in time"
        case aiohttp.ClientError() | OSError():
            why = _reason(error)
        case _:
            # What a peer named, and neither the library nor the codecs below it can put into a request.
            why, is_temporary = f"it named what cannot be asked for ({type(error).__name__})", False
    return (Temporary if is_temporary else Permanent)(code, f"registry {host}: {why}")


def _wants_certificate(error: aiohttp.ClientOSError) -> bool:
    """The alert comes in the handshake, with TLS 1.3 only behind it."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return False
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error.__cause__
    return isinstance(cause, ssl.SSLError) and cause.reason in _CERTIFICATE_ALERTS


def _is_unknown_name(error: aiohttp.ClientError | OSError) -> bool:
    """Whether those who know names have answered, and the answer was no."""
    return isinstance(error, aiohttp.ClientConnectorDNSError) and error.os_error.errno != socket.EAI_AGAIN


def _tls_failure(host: str, error: aiohttp.ClientSSLError, scheme: str | None) -> tuple[str, bool]:
    """Why TLS failed, and whether that may pass."""
    cause = error.certificate_error if isinstance(error, aiohttp.ClientConnectorCertificateError) else error.os_error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f'its certificate is not trusted ({cause.verify_message}); set ca_file in [registry."{host}"]', False
    if isinstance(cause, ssl.SSLError) and cause.reason in _NOT_TLS:
        how = f'set plain_http = true in [registry."{host}"]' if scheme is None else f"write http://{host}"
        return f"it does not speak TLS; {how} if plain HTTP is meant", False
    return f"TLS failed ({cause})", True


def _reason(error: aiohttp.ClientError | OSError) -> str:
    """Why a connection failed. The library's own text may quote URLs, whose queries can be signed: not quoted."""
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        return "its proxy cannot be reached"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        # Also what the system says after its own time-out.
        is_late = error.os_error.errno == socket.EAI_AGAIN
        return "its name does not resolve in time" if is_late else "its name does not resolve"
    if isinstance(error, aiohttp.ClientConnectorError) and error.os_error.errno and error.os_error.errno > 0:
        return f"{os.strerror(error.os_error.errno)} at {error.host}:{error.port}"
    if isinstance(error, aiohttp.ClientResponseError):
        return "its answer is not HTTP as it should be"
    if isinstance(error, OSError) and error.errno and error.errno > 0:
        return os.strerror(error.errno)  # asyncio puts a text of its own into `strerror`
    return f"the connection failed ({type(error).__name__})"
