"""What the engine's failures mean: the one place where aiodocker's, aiohttp's and the engine's own errors become ours.

The engine reports most failures as prose, often inside an HTTP 200 stream, and gives a registry's refusal and its own
troubles the same status 500. So each kind of call has a `Judge` that reads status and text. Nothing here does I/O.
"""

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import aiohttp
import msgspec
from aiodocker.exceptions import DockerError

from imagejobd.model.errors import ENGINE, ErrorCode, Fault, NotFound, Permanent, Temporary

# status (200 for an error inside a stream) and the engine's text → what it means for the caller
Judge = Callable[[int, str], Fault]

IN_BAND = 200
# aiodocker's own status for "no connection".
_NO_CONNECTION = 900
MESSAGE_MAX_CHARS = 4096
# What decoding an answer raises that is cut, of another shape, or not UTF-8, which msgspec has no error of its own for.
UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError)
# What reading an answer raises when its connection breaks.
BROKEN = (TimeoutError, aiohttp.ClientError, ConnectionError)

_GOING_AWAY = re.compile(
    r"engine is shutting down|daemon is shutting down|server is shutting down|Cannot connect to (?:the )?Docker"
    r"|grpc: the client connection is closing|transport is closing|connection error: desc"
    r"|code = Unavailable|http: Server closed|containerd.*connection refused",
    re.IGNORECASE,
)
_DISK_FULL = re.compile(r"no space left on device|disk quota exceeded", re.IGNORECASE)
_DENIED = re.compile(
    r"no basic auth credentials|authentication required|unauthorized|access denied|denied:|insufficient_scope"
    r"|incorrect username or password|40[13] (?:Forbidden|Unauthorized)|status: 40[13]|resource is denied",
    re.IGNORECASE,
)
_UNKNOWN = re.compile(
    r"manifest unknown|name unknown|repository name not known|tag does not exist|not found: manifest"
    r"|does not exist locally|No such image|no matching manifest|does not match the specified platform"
    r"|repository does not exist",
    re.IGNORECASE,
)
_NETWORK = re.compile(
    r"dial tcp|dial unix|no such host|server misbehaving"
    r"|network is unreachable|no route to host|TLS handshake timeout|Client\.Timeout|context deadline exceeded"
    r"|request canceled|use of closed network connection|toomanyrequests|too many requests|status: 429"
    r"|(?:status|status code|response):? 5\d\d|50[0234] (?:Internal|Bad Gateway|Service|Gateway)"
    r"|blob upload (?:unknown|invalid)|error parsing HTTP (?:429|5\d\d) response body",
    re.IGNORECASE,
)
# Of a network too, where one was asked for something: files may end early as well, and be called so.
_BROKEN_OFF = re.compile(r"\bEOF\b|connection refused|connection reset|broken pipe|i/o timeout", re.IGNORECASE)
_ASKED = re.compile(r"https?://|failed to load cache key|failed to resolve source metadata", re.IGNORECASE)
# The engine answers these with 500 though only the caller can mend them (read on 20.10).
_BAD_BUILD = re.compile(
    r"Cannot locate specified Dockerfile|invalid reference format|dockerfile parse error|invalid tag", re.IGNORECASE
)
# A step that ran and failed may print anything, words of a network error too: the exit code decides.
_EXITED = re.compile(r"exit code: \d+|returned a non-zero code: \d+")
# What the engine answers, often with 500, when an image is such that no container can be made or started of it.
_BAD_IMAGE = re.compile(
    r"OCI runtime create failed|unable to find (?:user|group)|matching entries in (?:passwd|group) file"
    r"|not (?:a )?directory|too many levels of symbolic links|ids must be in range",
    re.IGNORECASE,
)
# … and when it is short of something itself, which the runtime reports in the same text.
_SHORT_OF = re.compile(
    r"resource temporarily unavailable|cannot allocate memory|too many open files|resource busy|deadline exceeded",
    re.IGNORECASE,
)
# Cut off the runtime's error: the names of the layers that passed it on.
_RUNTIME_FRAME = re.compile(
    r"^.*(?:OCI runtime create failed|runc create failed|unable to start container process"
    r"|error during container init): |: unknown$",
    re.DOTALL,
)
# BuildKit's own, when steps that builds share are cancelled and begun anew for too long.
_OVERLOADED = re.compile(r"flightcontrol: exceeded retry timeout")
# Identical builds share an image: one's was named just as another job, or somebody else, took its last name away.
_DELETED_MEANWHILE = re.compile(r"unrecognized image ID|failed to get digest sha256:[0-9a-f]{64}: .*no such file")
# Where the engine keeps roots, volumes and contexts, which is nobody's business. Tried once for each path, not at each
# of its slashes: a path may be long, and of a stranger's making.
_ENGINE_FOLDER = re.compile(
    r"""(?<![^\s:"'=(])/[^\s:"']*?/(?:overlay2/\w+(?:-init)?/(?:merged|diff)(?=/)|volumes/[^/\s:"']+/_data"""
    r"""|tmp/(?:buildkit-mount|docker-builder)\d+)"""
)
# What it says of limits and runtimes, which neither it nor the image has chosen.
_BAD_LIMIT = re.compile(
    r"(?:invalid argument: )?(?:minimum memory limit|range of CPUs|unknown(?: or invalid)? runtime)", re.IGNORECASE
)


def of_engine(status: int, message: str) -> Fault:
    """A short request that the engine refused."""
    text = public_text(message)
    if _DISK_FULL.search(message):
        return Temporary(ErrorCode.STORAGE_FULL, f"the Docker Engine's disk is full: {text}; free space there")
    is_leaving = _GOING_AWAY.search(message)
    if status >= 500 or is_leaving:
        peer = ENGINE if is_leaving else None
        return Temporary(ErrorCode.ENGINE_UNAVAILABLE, f"the Docker Engine answered {status}: {text}", peer=peer)
    if status == 404:
        return NotFound(text)
    if status == 409:
        return Temporary(ErrorCode.CONFLICT, text)
    if status in (401, 403):
        return Permanent(ErrorCode.DENIED, text)
    return Permanent(ErrorCode.INVALID, f"the Docker Engine refused the request ({status}): {text}")


def of_build(status: int, message: str) -> Fault:
    """A build that ended without an image."""
    text = public_text(message)
    if _EXITED.search(message):
        return Permanent(ErrorCode.BUILD_FAILED, text)
    if _GOING_AWAY.search(message) or (status >= 500 and not _BAD_BUILD.search(message)):
        return of_engine(max(status, 500), message)
    if _DISK_FULL.search(message):
        return of_engine(status, message)
    if _DELETED_MEANWHILE.search(message):
        return Temporary(ErrorCode.CONFLICT, f"the image was removed from the engine while it was built: {text}")
    if _OVERLOADED.search(message):
        return Temporary(ErrorCode.ENGINE_UNAVAILABLE, f"the Docker Engine is overloaded: {text}")
    is_of_network = _NETWORK.search(message) or (_BROKEN_OFF.search(message) and _ASKED.search(message))
    if is_of_network and not _DENIED.search(message) and not _BAD_BUILD.search(message):
        return Temporary(ErrorCode.REGISTRY_UNAVAILABLE, f"the build could not reach a registry: {text}")
    return Permanent(ErrorCode.BUILD_FAILED, text)


def of_container(status: int, message: str) -> Fault:
    """A container that could not be made or started: for a reason of the image's own, or of the engine's."""
    if status < 500 and _BAD_LIMIT.match(message):
        why = f"the Docker Engine refuses the limits of [kinds.run]: {public_text(message)}"
        return Permanent(ErrorCode.ENGINE_UNAVAILABLE, f"{why}; the operator has to change them")
    is_of_image = status in (400, 422) or (_BAD_IMAGE.search(message) and not _SHORT_OF.search(message))
    if not is_of_image or _GOING_AWAY.search(message) or _DISK_FULL.search(message):
        return of_engine(status, message)
    text = _RUNTIME_FRAME.sub("", message.strip())
    return Permanent(ErrorCode.RUN_FAILED, f"the image cannot be run: {public_text(text)}")


def of_registry(doing: str, otherwise: ErrorCode) -> Judge:
    """The judge of a pull or push: `doing` says which (`pushing host/app:1`), `otherwise` names what fits no rule."""

    def judge(status: int, message: str) -> Fault:
        text = f"{doing}: {public_text(message)}"
        if _GOING_AWAY.search(message) or _DISK_FULL.search(message):
            return of_engine(status, message)
        if _DENIED.search(message):
            # The containerd store, as the Hub, says both of a private repository.
            also = ", and the name" if _UNKNOWN.search(message) else ""
            advice = f"check the user name, the password and the rights they carry{also}"
            return Permanent(ErrorCode.DENIED, f"{text}; {advice}")
        if _UNKNOWN.search(message):
            return NotFound(f"{text}; check the name and tag, or log in if it is private")
        if _NETWORK.search(message) or _BROKEN_OFF.search(message) or status >= 500:
            return Temporary(ErrorCode.REGISTRY_UNAVAILABLE, text)
        return NotFound(text) if status == 404 else Permanent(otherwise, text)

    return judge


def unavailable(host: str, why: object) -> Temporary:
    """The engine is not there, or left in the middle of an answer."""
    is_forbidden = why == os.strerror(errno.EACCES)
    advice = "add the user that runs this service to the group docker" if is_forbidden else "is it running?"
    text = f"the Docker Engine at {host} is not available ({why}); {advice}"
    return Temporary(ErrorCode.ENGINE_UNAVAILABLE, text, peer=ENGINE)


def ended_early(what: str) -> Temporary:
    """A stream that stopped without an error and without the marker of success."""
    return Temporary(ErrorCode.ENGINE_UNAVAILABLE, f"the Docker Engine's answer ended early: {what}", peer=ENGINE)


def public_text(message: str) -> str:
    """The engine's text as a user may read it: bounded, and without the engine's own folders."""
    message = message.strip()
    text = _ENGINE_FOLDER.sub("", message[:MESSAGE_MAX_CHARS])
    return text if len(message) <= MESSAGE_MAX_CHARS else f"{text}…"


@contextmanager
def translated(host: str, judge: Judge) -> Iterator[None]:
    """Turn the libraries' errors of one call into ours. Cancellation and our own faults pass."""
    try:
        yield
    except DockerError as error:
        if error.status == _NO_CONNECTION:
            raise unavailable(host, _reason(error.__context__ or error)) from error
        raise judge(error.status, error.message) from error
    except TimeoutError as error:
        raise unavailable(host, "no answer in time") from error
    except (aiohttp.ClientError, ConnectionError) as error:
        raise unavailable(host, _reason(error)) from error


def _reason(error: BaseException) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.os_error.strerror or str(error.os_error)
    if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ServerDisconnectedError | ConnectionError):
        return "it closed the connection before its answer was complete"
    return str(error) or type(error).__name__
