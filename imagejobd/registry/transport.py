"""One HTTP exchange with a registry or its token server: bounded, redirected with care, not interpreted.

Refuses: bodies beyond the caller's bound, more than `REDIRECTS_MAX` redirects, a redirect from TLS to plain HTTP.
`Authorization` stays with the origin that it was meant for.
"""

import ssl
from collections.abc import Callable, Mapping

import aiohttp
import msgspec
from multidict import CIMultiDictProxy
from yarl import URL

from imagejobd import __version__
from imagejobd.model.egress import Egress
from imagejobd.model.errors import ErrorCode, Permanent

CONNECT_TIMEOUT_S = 10.0
IDLE_TIMEOUT_S = 30.0
REDIRECTS_MAX = 5
CHUNK_BYTES = 64 * 1024

_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class Answer(msgspec.Struct, frozen=True):
    """A response whose body has been read."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes


class Transport:
    """A session with registries; open it inside the event loop that uses it.

    `egress` decides which addresses may be reached. There is no total time limit, only idle ones (`idle_timeout_s`
    without a byte): a caller's phase has the total.
    """

    def __init__(
        self,
        tls_for: Callable[[str], ssl.SSLContext],
        egress: Egress,
        *,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
    ) -> None:
        self._tls_for = tls_for
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(happy_eyeballs_delay=None, socket_factory=egress.open_socket),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=idle_timeout_s),
            # Bytes are hashed as they come: no content coding.
            headers={"User-Agent": f"imagejobd/{__version__}", "Accept-Encoding": "identity"},
            auto_decompress=False,
        )

    async def fetch(
        self, method: str, url: URL, headers: Mapping[str, str], *, tls: ssl.SSLContext, body_max_bytes: int
    ) -> Answer:
        """Send a request without a body and read the answer, through redirects.

        Raises the HTTP library's errors (see `faults.translated`), and `Permanent` for what this module refuses.
        """
        for _ in range(REDIRECTS_MAX + 1):
            async with self._session.request(method, url, headers=headers, ssl=tls, allow_redirects=False) as response:
                if response.status not in _REDIRECTS or "Location" not in response.headers:
                    body = await _read(response, body_max_bytes)
                    return Answer(response.status, response.headers, body)
                target = _redirect_target(url, response.headers["Location"])
            if target.origin() != url.origin():
                headers = {name: value for name, value in headers.items() if name.lower() != "authorization"}
                tls = self._tls_for(host_of(target))
            url = target
        raise Permanent(ErrorCode.REGISTRY_UNAVAILABLE, f"registry {host_of(url)}: more than {REDIRECTS_MAX} redirects")

    async def close(self) -> None:
        await self._session.close()


def host_of(url: URL) -> str:
    """`name[:port]` as configuration and image references have it."""
    return url.authority.rpartition("@")[2].lower()


def http_url(text: str) -> URL | None:
    """`text` as an absolute http(s) URL with a host; None where it is not one."""
    try:
        url = URL(text)
    except ValueError:
        return None
    return url if url.scheme in ("http", "https") and url.host else None


def _redirect_target(url: URL, location: str) -> URL:
    try:
        target = http_url(str(url.join(URL(location))))
    except ValueError:
        target = None
    if target is None:
        raise Permanent(ErrorCode.REGISTRY_UNAVAILABLE, f"registry {host_of(url)}: it redirects to no usable URL")
    if url.scheme == "https" and target.scheme != "https":
        raise Permanent(
            ErrorCode.REGISTRY_UNAVAILABLE,
            f"registry {host_of(url)}: it redirects from TLS to plain HTTP at {host_of(target)}, which is refused",
        )
    return target


async def _read(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_chunked(CHUNK_BYTES):
        body += chunk
        if len(body) > max_bytes:
            raise Permanent(
                ErrorCode.TOO_LARGE,
                f"registry {host_of(response.url)}: it answered with more than {max_bytes} bytes",
            )
    return bytes(body)
