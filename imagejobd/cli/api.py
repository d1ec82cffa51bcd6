"""The daemon's native API as its client asks it: over TCP, TLS or a unix socket, one connection for each request.

With `http.client`, because importing aiohttp takes longer than most commands. What answers may be anything: nothing but
JSON of the expected shape within a bound gets past this module.
"""

import http
import http.client
import select
import socket
import ssl
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit

import msgspec

from imagejobd.cli.errors import Refused, Unreachable

DEFAULT_URL = "http://127.0.0.1:8080"
API = "/api/v2"
CONNECT_TIMEOUT_S = 10.0
# Of silence. A daemon under load, or one that commits to a slow disk, may take some seconds.
TIMEOUT_S = 60.0
ANSWER_MAX_BYTES = 64 * 1024 * 1024
DETAIL_MAX_CHARS = 2000
_BLOCK_BYTES = 64 * 1024
_UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

Query = Mapping[str, object]
T = TypeVar("T")


class Problem(msgspec.Struct, frozen=True):
    """A problem document (RFC 9457) as the daemon writes it."""

    code: str
    detail: str


class Answer(msgspec.Struct, frozen=True):
    """The body of an answer that is not a refusal."""

    body: bytes
    url: str

    def read(self, kind: type[T]) -> T:
        """The body from JSON. Raises `Unreachable` for what no imagejobd says."""
        try:
            return msgspec.json.decode(self.body, type=kind)
        except _UNDECODABLE as error:
            raise Unreachable(f"what answers at {self.url} is not imagejobd, or another version: {error}") from None


class Stream:
    """An answer that is read while it comes."""

    def __init__(self, response: http.client.HTTPResponse, url: str) -> None:
        self._response = response
        self._url = url
        self.content_type = (response.getheader("Content-Type") or "").partition(";")[0].strip().lower()

    def blocks(self) -> Iterator[bytes]:
        """The bytes as they arrive, until the end that the server has marked as such. Raises `Unreachable` where they
        break off."""
        while True:
            with _translated(self._url):
                block = self._response.read1(_BLOCK_BYTES)
            if not block:
                break
            yield block
        if self._response.length:
            raise Unreachable(f"{self._url} broke off its answer")


class Api:
    """One daemon. `url` is `http[s]://host[:port]` or `unix:/path`; `token` goes with every request."""

    def __init__(self, url: str, token: str = "") -> None:
        """Raises `Unreachable` for a URL that is none, and a token that cannot be one."""
        self.url = url
        self._headers = {"Accept": "application/json", "User-Agent": "imagejobd"}
        if token:
            if not (token.isascii() and token.isprintable() and " " not in token):
                raise Unreachable("the token is not one: it holds a space, or what does not print")
            self._headers["Authorization"] = f"Bearer {token}"
        self._path, self._make_connection = _parsed(url)

    def ask(
        self,
        path: str,
        *,
        method: str = "GET",
        query: Query | None = None,
        body: object = None,
        headers: Mapping[str, str] = {},
        timeout_s: float = TIMEOUT_S,
    ) -> Answer:
        """One request below `/api/v2`; `body` goes as JSON. Raises `Unreachable` and `Refused`."""
        data = b"" if body is None else msgspec.json.encode(body)
        if method != "GET":
            headers = {**headers, "Content-Type": "application/json", "Content-Length": str(len(data))}
        with self._exchange(method, API + path, query, headers, timeout_s) as connection, _translated(self.url):
            if data:
                connection.send(data)
            response = self._accepted(connection.getresponse())
            return Answer(self._whole(response), self.url)

    def get(self, path: str, *, timeout_s: float = TIMEOUT_S) -> tuple[int, bytes, Mapping[str, str]]:
        """Status, body and headers of a GET outside of the API, whatever the status is."""
        with self._exchange("GET", path, None, {}, timeout_s) as connection, _translated(self.url):
            response = connection.getresponse()
            headers = {name.lower(): value for name, value in response.getheaders()}
            return response.status, self._whole(response), headers

    @contextmanager
    def stream(
        self, path: str, *, query: Query | None = None, headers: Mapping[str, str] = {}, timeout_s: float
    ) -> Iterator[Stream]:
        """A GET whose answer is read while it comes; `timeout_s` bounds the silence. Raises as `ask`."""
        with self._exchange("GET", API + path, query, headers, timeout_s) as connection:
            with _translated(self.url):
                response = self._accepted(connection.getresponse())
            yield Stream(response, self.url)

    def send(self, path: str, content_type: str, pieces: Iterable[bytes], *, headers: Mapping[str, str] = {}) -> Answer:
        """POST a body of unknown length, piece by piece. A daemon that has answered before all of it was sent is sent
        no more. Raises as `ask`, and what `pieces` raises."""
        headers = {**headers, "Content-Type": content_type, "Transfer-Encoding": "chunked"}
        with self._exchange("POST", API + path, None, headers, TIMEOUT_S) as connection, _translated(self.url):
            with suppress(BrokenPipeError, ConnectionResetError):  # its answer says why
                if all(_sent(connection, piece) for piece in pieces if piece):
                    connection.send(b"0\r\n\r\n")
            response = self._accepted(connection.getresponse())
            return Answer(self._whole(response), self.url)

    @contextmanager
    def _exchange(
        self, method: str, path: str, query: Query | None, headers: Mapping[str, str], timeout_s: float
    ) -> Iterator[http.client.HTTPConnection]:
        """A connection on which the head of the request has been sent."""
        target = self._path + path + (f"?{urlencode(query)}" if query else "")
        connection = self._make_connection()
        try:
            with _translated(self.url):
                connection.timeout = CONNECT_TIMEOUT_S
                connection.connect()
                connection.sock.settimeout(timeout_s)
                connection.putrequest(method, target)
                for name, value in {**self._headers, **headers}.items():
                    connection.putheader(name, value)
                connection.endheaders()
            yield connection
        finally:
            connection.close()

    def _accepted(self, response: http.client.HTTPResponse) -> http.client.HTTPResponse:
        """The response. Raises `Refused` for an error, in the daemon's words where it has some."""
        if 200 <= response.status < 300:
            return response
        body = self._whole(response)
        try:
            problem = msgspec.json.decode(body, type=Problem)
        except _UNDECODABLE:
            if response.status in (502, 503, 504):
                raise Unreachable(f"{self.url} answers {response.status}: what stands before the daemon does") from None
            raise Unreachable(f"{self.url} answers {response.status}, and not as imagejobd does") from None
        detail = problem.detail[:DETAIL_MAX_CHARS]
        if response.status == http.HTTPStatus.UNAUTHORIZED:
            detail += " ($IMAGEJOBD_TOKEN, or --token-file)"
        raise Refused(response.status, problem.code, detail)

    def _whole(self, response: http.client.HTTPResponse) -> bytes:
        body = response.read(ANSWER_MAX_BYTES + 1)
        if len(body) > ANSWER_MAX_BYTES:
            raise Unreachable(f"the answer of {self.url} is larger than {ANSWER_MAX_BYTES} bytes")
        return body


@contextmanager
def _translated(url: str) -> Iterator[None]:
    """What a connection, or what is spoken over it, fails with, as `Unreachable`."""
    try:
        yield
    except TimeoutError:
        raise Unreachable(f"{url} does not answer") from None
    except ssl.SSLError as error:
        raise Unreachable(f"no TLS with {url}: {error.reason or error}") from None
    except http.client.HTTPException as error:
        raise Unreachable(f"{url} broke off, or does not speak HTTP ({type(error).__name__})") from None
    except OSError as error:
        hint = "; is the daemon running? (imagejobd doctor)" if isinstance(error, ConnectionError) else ""
        raise Unreachable(f"{url} cannot be reached: {error.strerror or error}{hint}") from None
    except ValueError as error:  # of http.client, for a chunk whose size is none
        raise Unreachable(f"{url} does not speak HTTP: {error}") from None


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._socket_path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._socket_path)


def _parsed(url: str) -> tuple[str, Any]:
    """The path before every request's, and what makes a connection."""
    if url.startswith("unix:"):
        path = url.removeprefix("unix:")
        path = path.removeprefix("//") if path.startswith("///") else path
        return "", lambda: _UnixConnection(path)
    if "@" in url.partition("://")[2].partition("/")[0]:  # what stands before it is not shown
        raise Unreachable("the address holds a user or password; use http://host:port, and a token ($IMAGEJOBD_TOKEN)")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = urlsplit(""), None, None
    if parts.scheme not in ("http", "https") or not host or parts.query:
        raise Unreachable(f"{url!r} is no address of a daemon; use http://host:port or unix:/path")
    kind = http.client.HTTPConnection if parts.scheme == "http" else http.client.HTTPSConnection
    return parts.path.rstrip("/"), lambda: kind(host, port)


def _sent(connection: http.client.HTTPConnection, piece: bytes) -> bool:
    """Send a chunk, unless the daemon has answered already."""
    if select.select([connection.sock], [], [], 0)[0]:
        return False
    connection.send(b"%x\r\n%b\r\n" % (len(piece), piece))
    return True
