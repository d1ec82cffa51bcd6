"""The page at `/` for who comes with a browser; a program that asks there is told where things are.

The page is the plain files of this folder, in memory since the start, and knows no secret: it is open to everybody, and
asks the native API with the token that its user gives it. Its Content-Security-Policy says what it may load and where
it may send anything: the daemon itself and nothing else, no script within markup, no markup made from strings.
"""

import gzip
import hashlib
from importlib.resources import files
from importlib.resources.abc import Traversable

import msgspec
from aiohttp import ETag, hdrs, web

from imagejobd import __version__
from imagejobd.api.wire import json_response, takes_gzip

ROOT = "/"
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "require-trusted-types-for 'script'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Asked for again each time, and sent only where it has changed: the files of one version belong together.
    "Cache-Control": "no-cache",
    "Vary": "Accept, Accept-Encoding",
}
# Where a program finds things, as far as this daemon has them.
LINKS = {
    "jobs": "/api/v2/jobs",
    "queue": "/api/v2/queue",
    "events": "/api/v2/events",
    "openapi": "/api/v2/openapi.json",
    "version": "/version",
    "healthz": "/healthz",
    "readyz": "/readyz",
    "metrics": "/metrics",
}


class Asset(msgspec.Struct, frozen=True):
    """A file of the page, as it is sent; `etag` is of `body`, and with `-gz` of `packed`."""

    media_type: str
    body: bytes
    packed: bytes
    etag: str

    @classmethod
    def read(cls, file: Traversable) -> "Asset":
        body = file.read_bytes()
        packed = gzip.compress(body, mtime=0)
        return cls(MEDIA_TYPES[_suffix(file.name)], body, packed, hashlib.sha256(body).hexdigest()[:32])

    def response(self, request: web.Request) -> web.Response:
        """The file, packed for who takes that; 304 for who has it."""
        is_packed = takes_gzip(request)
        etag = f"{self.etag}-gz" if is_packed else self.etag
        if any(known.value in (etag, "*") for known in request.if_none_match or ()):
            response = web.Response(status=304, headers=HEADERS)
        else:
            body = self.packed if is_packed else self.body
            response = web.Response(body=body, content_type=self.media_type, charset="utf-8", headers=HEADERS)
            if is_packed:
                response.headers[hdrs.CONTENT_ENCODING] = "gzip"
        response.etag = ETag(etag)
        return response


def _files() -> dict[str, Traversable]:
    """What the page is made of, by path; the one that browsers ask for first is at `ROOT`."""
    names = {file.name: file for file in files(__package__).iterdir() if _suffix(file.name) in MEDIA_TYPES}
    return {ROOT: names.pop("index.html")} | {f"/page/{name}": file for name, file in names.items()}


def _suffix(name: str) -> str:
    return name[name.rfind(".") :]


# Read by everybody, also where tokens are required.
PATHS = frozenset(_files())


def routes() -> list[web.RouteDef]:
    assets = {path: Asset.read(file) for path, file in _files().items()}

    def get(path: str, asset: Asset) -> web.RouteDef:
        async def send(request: web.Request) -> web.Response:
            return asset.response(request)

        return web.get(path, send)

    async def root(request: web.Request) -> web.Response:
        """The page for a browser, else what this is and where its parts are."""
        if "text/html" in request.headers.get(hdrs.ACCEPT, ""):
            return assets[ROOT].response(request)
        paths = {resource.canonical for resource in request.app.router.resources()}
        links = {name: path for name, path in LINKS.items() if path in paths}
        value = {"name": "imagejobd", "version": __version__, "links": links}
        return json_response(value, headers={hdrs.VARY: hdrs.ACCEPT})

    return [web.get(ROOT, root), *(get(path, asset) for path, asset in assets.items() if path != ROOT)]
