"""A web server for contexts: what it was asked for, and answers that redirect or stall."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


class WebServer:
    """Serves `files` by path on every loopback address; `redirects` maps paths to locations.

    A file whose path is in `stalled` stops half-way until `go_on` is set.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.stalled: set[str] = set()
        self.go_on = threading.Event()
        self.requests: list[tuple[str, str, Mapping[str, str]]] = []
        self._server = ThreadingHTTPServer(("0.0.0.0", 0), self._handler())

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def url(self, path: str, *, address: str = "127.0.0.1", user: str = "") -> str:
        return f"http://{user}{address}:{self.port}{path}"

    def count(self, path: str) -> int:
        """How often a path was asked for."""
        return sum(urlsplit(asked).path == path for _, asked, _ in self.requests)

    @contextmanager
    def running(self) -> Iterator["WebServer"]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.go_on.set()
            self._server.shutdown()
            self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host = self.connection.getsockname()[0]
                site.requests.append((host, self.path, dict(self.headers)))
                path = urlsplit(self.path).path
                if path in site.redirects:
                    self.send_response(302)
                    self.send_header("Location", site.redirects[path])
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                elif path in site.files:
                    self._send(site.files[path], stalls=path in site.stalled)
                else:
                    self.send_error(404)

            def _send(self, body: bytes, *, stalls: bool) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                middle = len(body) // 2
                self.wfile.write(body[:middle])
                if stalls:
                    self.wfile.flush()
                    site.go_on.wait(30)
                self.wfile.write(body[middle:])

            def log_message(self, *_: object) -> None:
                pass

        return Handler
