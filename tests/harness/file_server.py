"""Web servers for files: one whose answers redirect or stall, and the object storage behind a registry."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from aiohttp import web

from harness.web_server import WebServer

OTHER_ADDRESS = "127.0.0.2"


class Asked(NamedTuple):
    """A request that came in at `address`; its query is part of `path`."""

    address: str
    path: str
    headers: Mapping[str, str]


class FileServer(WebServer):
    """Serves `files` by path; `redirects` maps paths to locations, and anything else is 404.

    A file whose path is in `stalled` stops half-way until `release`.
    """

    def __init__(self, files: Mapping[str, bytes] | None = None, *, address: str = "127.0.0.1") -> None:
        super().__init__(address)
        self.files = dict(files or {})
        self.redirects: dict[str, str] = {}
        self.stalled: set[str] = set()
        self.requests: list[Asked] = []
        self._released = asyncio.Event()

    def count(self, path: str) -> int:
        """How often a path was asked for."""
        return sum(asked.path.partition("?")[0] == path for asked in self.requests)

    def release(self) -> None:
        """Let all that is stalled go on, and stall nothing more."""
        self._loop.call_soon_threadsafe(self._released.set)

    async def _close(self) -> None:
        self._released.set()
        await super()._close()

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        address = request.transport.get_extra_info("sockname")[0] if request.transport else ""
        self.requests.append(Asked(address, request.path_qs, dict(request.headers)))
        if request.path in self.redirects:
            return web.Response(status=302, headers={"Location": self.redirects[request.path]})
        if request.path not in self.files:
            return web.Response(status=404)
        body = self.files[request.path]
        response = web.StreamResponse(headers={"Content-Length": str(len(body))})
        await response.prepare(request)
        middle = len(body) // 2
        await response.write(body[:middle])
        if request.path in self.stalled:
            await self._released.wait()
        await response.write(body[middle:])
        return response


class Fetched(NamedTuple):
    """A request for a file."""

    method: str
    path: str
    headers: Mapping[str, str]


class BlobStore(WebServer):
    """Storage that a registry redirects to: another host that serves the files below `root`, with ranges.

    `root` is set once the registry has a folder.
    """

    def __init__(self, *, address: str = OTHER_ADDRESS) -> None:
        super().__init__(address)
        self.root: Path | None = None
        self.requests: list[Fetched] = []

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requests.append(Fetched(request.method, request.path, dict(request.headers)))
        if "Authorization" in request.headers:  # as S3 does for a signed URL
            return web.Response(status=400, text="only one auth mechanism allowed")
        file = self.root / request.path.lstrip("/") if self.root else None
        if file is None or not file.is_file():
            return web.Response(status=404)
        return web.FileResponse(file)
