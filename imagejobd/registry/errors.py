"""What peers write, fit for messages and logs: one bounded line that shows no secret and steers no terminal.

From what registries and the HTTP library say to the one error vocabulary. The only place that does.

Messages name the registry and what to do, never a credential: what a peer wrote is shown in part only, on one line.
"""

import datetime as dt
import os
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import aiohttp
import msgspec

from imagejobd.model.errors import ErrorCode, Fault, NotFound, Permanent, Temporary, parse_retry_after

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def one_line(text: str, max_chars: int, redact: Callable[[str], str] = str) -> str:
    """`text` without the secrets that `redact` knows, and only then cut: a part of a secret is not known as one."""
    line = " ".join(redact(text).split())[:max_chars]
    return "".join(character if character.isprintable() else REPLACEMENT for character in line)


DETAIL_MAX_CHARS = 300

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
# A plain HTTP server's answer to a TLS hello, as OpenSSL 1.1 to 3.x name it.
_NOT_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"})
# What servers say to who shows no certificate, or not the right one (Go's, OpenSSL's).
_CERTIFICATE_ALERTS = frozenset({"SSLV3_ALERT_BAD_CERTIFICATE", "TLSV13_ALERT_CERTIFICATE_REQUIRED"})


class _Error(msgspec.Struct):
    code: str = ""
    message: str | None = None


class _Errors(msgspec.Struct):
    """The error body of the distribution spec (§ Error Codes), which token servers mostly use too."""

    errors: list[_Error] = []


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


def refusal(
    host: str, status: int, *, what: str, detail: str = "", retry_after: str | None = None, advice: str | None = None
) -> Fault:
    """The fault for a status that is no success. `what` was asked, e.g. `manifest of app:1`; `detail` see `detail`;
    `advice` is for who has no login."""
    told = f"registry {host}: {what}: answered {status}" + (f" ({detail})" if detail else "")
    if status in (401, 403):
        return Permanent(ErrorCode.DENIED, f"{told}; {advice or LOGIN_TO_CHECK}")
    if status >= 500 or status in _TRY_LATER:
        wish_s = parse_retry_after(retry_after, dt.datetime.now(dt.UTC))
        return Temporary(ErrorCode.REGISTRY_UNAVAILABLE, told, retry_after_s=wish_s)
    return NotFound(told) if status == 404 else Permanent(ErrorCode.REGISTRY_UNAVAILABLE, told)


def is_busy(status: int) -> bool:
    """Whether the same request may be answered otherwise in a moment."""
    return status in _TRY_LATER or (status >= 500 and status not in _NEVER)


def is_missing_content(body: bytes) -> bool:
    """Whether an error body says that a manifest refers to what is not there. docker-registry says so with 500 for a
    layer that registries do not hold, and no retry helps."""
    return any(code in _codes(body) for code in ("MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN"))


def login_needed(host: str, path: str, advice: str) -> Permanent:
    """The registry wants credentials and there are none, or those configured do not go with this connection."""
    return Permanent(ErrorCode.DENIED, f"registry {host} asks for a login for {path}: {advice}")


def detail(body: bytes, redact: Callable[[str], str] = str) -> str:
    """What the peer's error body says, on one bounded line without the secrets that `redact` knows; empty where it says
    nothing in the spec's form."""
    text = "; ".join(": ".join(filter(None, (e.code, e.message))) for e in _errors(body))
    return one_line(text, DETAIL_MAX_CHARS, redact)


def _errors(body: bytes) -> list[_Error]:
    try:
        return msgspec.json.decode(body, type=_Errors).errors
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []


def _codes(body: bytes) -> set[str]:
    return {error.code for error in _errors(body)}


def _wants_certificate(error: aiohttp.ClientOSError) -> bool:
    """The alert comes in the handshake, with TLS 1.3 only behind it."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return False
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error.__cause__
    return isinstance(cause, ssl.SSLError) and cause.reason in _CERTIFICATE_ALERTS


def _fault(host: str, error: aiohttp.ClientError | OSError | ValueError, withheld: str, scheme: str | None) -> Fault:
    match error:
        case aiohttp.ClientHttpProxyError(status=status):
            return _proxy_fault(host, status)
        case aiohttp.ClientOSError() if _wants_certificate(error):
            advice = withheld or f'set cert_file and key_file in [registry."{host}"]'
            why = "it does not let us in with the client certificate that it is shown, or without one"
            return Permanent(ErrorCode.DENIED, f"registry {host}: {why}; {advice}")
        case aiohttp.ClientSSLError():
            return _tls_fault(host, error, scheme)
        case TimeoutError():
            why = "no answer in time"
        case aiohttp.ClientError() | OSError():
            why = _reason(error)
        case _:
            # What a peer named, and neither the library nor the codecs below it can put into a request.
            why = f"it named what cannot be asked for ({type(error).__name__})"
            return Permanent(ErrorCode.REGISTRY_UNAVAILABLE, f"registry {host}: {why}")
    return Temporary(ErrorCode.REGISTRY_UNAVAILABLE, f"registry {host}: {why}")


def _is_unknown_name(error: aiohttp.ClientError | OSError) -> bool:
    """Whether those who know names have answered, and the answer was no."""
    return isinstance(error, aiohttp.ClientConnectorDNSError) and error.os_error.errno != socket.EAI_AGAIN


def _tls_fault(host: str, error: aiohttp.ClientSSLError, scheme: str | None) -> Fault:
    cause = error.certificate_error if isinstance(error, aiohttp.ClientConnectorCertificateError) else error.os_error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return Permanent(
            ErrorCode.REGISTRY_UNAVAILABLE,
            f"registry {host}: its certificate is not trusted ({cause.verify_message}); "
            f'set ca_file in [registry."{host}"]',
        )
    if isinstance(cause, ssl.SSLError) and cause.reason in _NOT_TLS:
        how = f'set plain_http = true in [registry."{host}"]' if scheme is None else f"write http://{host}"
        why = f"it does not speak TLS; {how} if plain HTTP is meant"
        return Permanent(ErrorCode.REGISTRY_UNAVAILABLE, f"registry {host}: {why}")
    return Temporary(ErrorCode.REGISTRY_UNAVAILABLE, f"registry {host}: TLS failed ({cause})")


def no_token(server: str, host: str, status: int, told: str) -> Permanent:
    """A token server will not give a token for `host`, with whatever status: nothing there is missing or broken."""
    said = f"answered {status}" + (f" ({told})" if told else "")
    return Permanent(
        ErrorCode.DENIED,
        f"token server {server}: it gives no token for registry {host}: {said}; check the user name and password, and "
        "that the registry names the right token server",
    )


def _proxy_fault(host: str, status: int) -> Fault:
    told = f"registry {host}: the proxy answered {status} instead of connecting to it"
    if is_busy(status):
        return Temporary(ErrorCode.REGISTRY_UNAVAILABLE, told)
    return Permanent(ErrorCode.REGISTRY_UNAVAILABLE, told)


def _reason(error: aiohttp.ClientError | OSError) -> str:
    """Why a connection failed. The library's own text may quote URLs, whose queries can be signed: not shown."""
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
