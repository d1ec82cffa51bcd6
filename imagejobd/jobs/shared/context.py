"""A build context: a tar that a user sent or named by a URL, checked, rewritten and kept under its digest.

Only rewritten bytes are kept: what is built is what was checked.

A URL is fetched in bounds, and never from where it may not be. Egress is checked on the address of each socket that is
about to connect, so neither DNS that changes its answer, nor a redirect, nor a number written oddly gets around it. No
cookies, no proxies of the environment, no decompression. Messages have only scheme, host and path of a URL, because
user and query may hold secrets.
"""

import asyncio
import base64
import datetime as dt
import hashlib
import re
import socket
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path

import aiohttp
import msgspec
from yarl import URL

from imagejobd.archive import ContextBounds, rewrite
from imagejobd.model.circuit import Circuits
from imagejobd.model.egress import Egress
from imagejobd.model.errors import ErrorCode, Fault, Permanent, Temporary, invalid, parse_retry_after
from imagejobd.model.resolver import Resolver
from imagejobd.registry.address import peer_of
from imagejobd.registry.errors import Unanswered
from imagejobd.store.content import ContentStore
from imagejobd.store.files import storage_faults

CONNECT_TIMEOUT_S = 10.0
URL_MAX_CHARS = 8192

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_BUSY = frozenset({408, 425, 429})
_HEADERS = {"User-Agent": "imagejobd", "Accept": "*/*", "Accept-Encoding": "identity"}

# RFC 3986 §3.1; anything else before `://` is part of a path or a query.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")

Progress = Callable[[int, int | None], None]


class Context(msgspec.Struct, frozen=True):
    """The text of a Dockerfile, and the checked tar around it in the content store; None when it stands alone.

    `dockerfile_path` is where in the tar it was, None for the usual names."""

    digest: str | None
    dockerfile: str
    dockerfile_path: str | None = None


async def fetch(
    url: str,
    *,
    egress: Egress,
    names: Resolver,
    circuits: Circuits,
    max_bytes: int,
    idle_s: float,
    redirects_max: int,
    progress: Progress = lambda received, total: None,
) -> AsyncGenerator[bytes, None]:
    """The body of `url`, in pieces; close the iterator to give up. No scheme means `http://`.

    A user and password in the URL are sent as Basic authentication, to its own host only. `idle_s` is the time without
    a single byte; a total is the caller's phase to keep. `progress` hears the bytes received, and in all where the
    server says so. Raises `Temporary` for what another attempt may mend: no connection (`Unanswered`, and at once where
    `circuits` say so), no answer from DNS, a stall, an end before Content-Length, 408, 425, 429 and 5xx. Raises
    `Permanent` for all other statuses, a host that does not exist, a bad certificate, too many bytes or redirects, and
    egress rules.
    """
    start = parse_url(url)
    connector = aiohttp.TCPConnector(
        resolver=names,
        use_dns_cache=False,
        force_close=True,
        happy_eyeballs_delay=None,
        socket_factory=egress.open_socket,
    )
    async with (
        aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=idle_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            headers=_HEADERS,
        ) as session,
        await _follow(session, circuits, start, redirects_max) as response,
    ):
        async for piece in _body(response, max_bytes, progress):
            yield piece


def parse_url(text: str) -> URL:
    """A URL that may be fetched. Raises `Permanent(invalid)` without showing its user or query."""
    if len(text) > URL_MAX_CHARS:
        raise invalid(f"the URL is {len(text)} characters long; the limit is {URL_MAX_CHARS}")
    text = text.strip()
    try:
        return _checked(URL(text if _SCHEME.match(text) else f"http://{text}"))
    except ValueError:
        raise invalid("the URL cannot be read; it should look like https://host/path/context.tar.gz") from None


def bare_url(url: URL) -> str:
    """Scheme, host, port and path: as much of a URL as messages and logs may have."""
    return str(url.with_user(None).with_query(None).with_fragment(None))


async def keep_context(
    blobs: ContentStore, raw: Path, bounds: ContextBounds, dockerfile_path: str | None = None
) -> Context:
    """Check the tar in the file `raw` and keep the rewritten one. The blob is pinned: the caller releases it.

    Raises `Permanent(invalid | too_large)` naming the member.
    """
    with blobs.spool_file() as checked:
        digest, dockerfile = await _rewrite(raw, checked, bounds, dockerfile_path)
        await blobs.commit(checked, digest)
    return Context(digest, dockerfile, dockerfile_path)


async def _rewrite(raw: Path, checked: Path, bounds: ContextBounds, dockerfile_path: str | None) -> tuple[str, str]:
    """Rewrite in a thread; when the caller is cancelled the thread stops at its next block."""
    is_cancelled = threading.Event()
    with storage_faults():
        # Not in the thread, which may come to it when its caller has gone, and would make a file that nobody removes.
        opened = checked.open("w+b")

    def rewrite_and_hash() -> tuple[str, str]:
        with storage_faults(), opened as file:
            dockerfile = rewrite(raw, file, bounds, is_cancelled.is_set, dockerfile_path)
            file.seek(0)
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}", dockerfile

    try:
        return await asyncio.to_thread(rewrite_and_hash)
    finally:
        is_cancelled.set()


def _checked(url: URL) -> URL:
    if url.scheme not in ("http", "https"):
        raise invalid(f"URLs of scheme {url.scheme[:32]!r} are not fetched; use http or https")
    if not url.host or not url.port:
        raise invalid("the URL names no host, or a port that does not exist")
    if " " in url.host or not url.host.isprintable():
        raise invalid("the URL's host holds a space or a control character, which no host name does")
    return url.with_fragment(None)


async def _follow(
    session: aiohttp.ClientSession, circuits: Circuits, start: URL, redirects_max: int
) -> aiohttp.ClientResponse:
    """GET `start`, then where it redirects to; the response is 200 and its body unread."""
    login = {}
    if start.user or start.password:
        pair = f"{start.user or ''}:{start.password or ''}"
        login = {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
    url = start.with_user(None)
    for _ in range(redirects_max + 1):
        response = await _get(session, circuits, url, login if url.origin() == start.origin() else {})
        if response.status == 200:
            return response
        response.close()
        if response.status not in _REDIRECTS:
            raise _refused(response, url)
        url = _redirected(url, response.headers.get("Location", ""))
    limit = "once" if redirects_max == 1 else f"{redirects_max} times"
    raise _failed(f"{bare_url(start)} redirects more than {limit}")


async def _get(
    session: aiohttp.ClientSession, circuits: Circuits, url: URL, headers: dict[str, str]
) -> aiohttp.ClientResponse:
    peer = peer_of(url)
    try:
        circuits.check(peer)
        response = await session.get(url, headers=headers, allow_redirects=False)
    except Temporary as refusal:
        why = f"no connection to {bare_url(url)}: its host does not answer (known from an earlier request)"
        raise Temporary(ErrorCode.FETCH_FAILED, why, peer=refusal.peer) from None
    except asyncio.CancelledError:
        circuits.abandoned(peer)
        raise
    except (aiohttp.ClientError, TimeoutError) as error:
        circuits.abandoned(peer)
        fault = _translated(error, url)
        if isinstance(fault, Temporary):
            raise Unanswered(fault.code, fault.message, silent=peer) from None
        raise fault from None
    circuits.answered(peer)
    return response


def _redirected(url: URL, location: str) -> URL:
    try:
        target = url.join(URL(location[:URL_MAX_CHARS])) if location else None
    except ValueError:
        target = None
    if target is None:
        raise _failed(f"{bare_url(url)} redirects, but not to a URL that can be read")
    target = _checked(target)
    if url.scheme == "https" and target.scheme == "http":
        raise _failed(f"{bare_url(url)} redirects from https to http ({bare_url(target)}), which is not followed")
    if target.user or target.password:
        raise _failed(f"{bare_url(url)} redirects to a URL with a user or password, which is not followed")
    return target


def _refused(response: aiohttp.ClientResponse, url: URL) -> Fault:
    message = f"{bare_url(url)} answered {response.status}"
    if response.status in _BUSY or response.status >= 500:
        retry_after_s = parse_retry_after(response.headers.get("Retry-After"), dt.datetime.now(dt.UTC))
        return Temporary(ErrorCode.FETCH_FAILED, message, retry_after_s=retry_after_s)
    return _failed(f"{message}; the URL must answer 200 with the tar")


async def _body(response: aiohttp.ClientResponse, max_bytes: int, progress: Progress) -> AsyncIterator[bytes]:
    too_large = Permanent(
        ErrorCode.TOO_LARGE, f"{bare_url(response.url)} is larger than {max_bytes} bytes, which is the limit"
    )
    total = response.content_length
    if total is not None and total > max_bytes:
        raise too_large
    received = 0
    while True:
        try:
            piece = await response.content.readany()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _translated(error, response.url) from None
        if not piece:
            return
        received += len(piece)
        if received > max_bytes:
            raise too_large
        progress(received, total)
        yield piece


def _translated(error: aiohttp.ClientError | TimeoutError, url: URL) -> Fault:
    """What aiohttp raises as a fault. Its own messages may hold the whole URL."""
    where = bare_url(url)
    match error:
        case aiohttp.ClientConnectorDNSError(os_error=socket.gaierror(errno=socket.EAI_NONAME)):
            # The resolver answered, and the answer was no; without any answer it is EAI_AGAIN.
            return _failed(f"the host of {where} does not exist; check its name")
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientSSLError():
            return _failed(f"the TLS certificate of {where} does not hold for that host")
        case aiohttp.InvalidURL():
            return invalid(f"{where} has a host that is no name and no address in its usual form")
        case aiohttp.ClientConnectorError(os_error=OSError(strerror=reason)):
            return Temporary(ErrorCode.FETCH_FAILED, f"no connection to {where}: {reason}")
        case aiohttp.ConnectionTimeoutError():
            return Temporary(ErrorCode.FETCH_FAILED, f"no connection to {where} within {CONNECT_TIMEOUT_S:g} s")
        case aiohttp.ServerTimeoutError() | TimeoutError():
            return Temporary(ErrorCode.FETCH_FAILED, f"{where} sent nothing for too long")
        case aiohttp.ClientPayloadError():
            return Temporary(ErrorCode.FETCH_FAILED, f"{where} ended before all of it had come")
        case _:
            return Temporary(ErrorCode.FETCH_FAILED, f"{where} broke off the answer ({type(error).__name__})")


def _failed(message: str) -> Permanent:
    return Permanent(ErrorCode.FETCH_FAILED, message)
