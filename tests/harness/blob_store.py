"""The object storage behind a registry that redirects: another host that serves the registry's files, with ranges."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from aiohttp import web

from harness.web_server import WebServer

OTHER_ADDRESS = "127.0.0.2"


class Fetched(NamedTuple):
    """A request for a file."""

    method: str
    path: str
    headers: Mapping[str, str]


class BlobStore(WebServer):
    """Serves the files below `root` (set it once the registry has a folder) on 127.0.0.2."""

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
