"""A registry whose every answer a test decides, with a token server beside it."""

import inspect
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Self

from aiohttp import web
from aiohttp.test_utils import TestServer

from harness.tls import Certificate
from imagejobd.registry.proxies import Proxies

Handler = Callable[[web.Request], web.StreamResponse | Awaitable[web.StreamResponse]]

# The environment of whoever runs the tests is no part of them.
NO_PROXIES = Proxies({})
TOKEN = "the-token"
DIGEST = "sha256:" + "a" * 64


def manifest() -> web.Response:
    """What HEAD tells of a manifest."""
    return web.Response(body=b"{}", headers={"Docker-Content-Digest": DIGEST})


class FakeRegistry:
    """One server for `/v2/…` (`on_manifest`) and `/token` (`on_token`); requests are kept in `seen`."""

    def __init__(self, certificate: Certificate | None = None, *, client_ca_file: Path | None = None) -> None:
        """`client_ca_file` makes it ask for a client's certificate of that authority."""
        self._certificate = certificate
        self._client_ca_file = client_ca_file
        self.seen: list[web.Request] = []
        self.on_manifest: Handler = self.guarded
        self.on_token: Handler = lambda _: web.json_response({"token": TOKEN})
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_route("*", "/v2/{path:.*}", self._manifest)
        app.router.add_route("*", "/elsewhere", self._manifest)
        app.router.add_route("*", "/token", self._token)
        self._server = TestServer(app, scheme="https" if certificate else "http")

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._server.port}"

    @property
    def challenge(self) -> str:
        return f'Bearer realm="{self.url}/token?fixed=1",service="fake registry",scope="ignored"'

    @property
    def url(self) -> str:
        return f"{'https' if self._certificate else 'http'}://{self.host}"

    @property
    def tokens_asked(self) -> list[web.Request]:
        """The requests to the token server."""
        return [request for request in self.seen if request.path == "/token"]

    def guarded(self, request: web.Request) -> web.StreamResponse:
        """A manifest for who holds the token, a challenge for the others."""
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return web.Response(status=401, headers={"WWW-Authenticate": self.challenge})
        return manifest()

    async def __aenter__(self) -> Self:
        if self._certificate is None:
            await self._server.start_server()
        else:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(self._certificate.certificate_file, self._certificate.key_file)
            if self._client_ca_file is not None:
                context.load_verify_locations(cafile=self._client_ca_file)
                context.verify_mode = ssl.CERT_REQUIRED
            await self._server.start_server(ssl=context)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.close()

    async def _manifest(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(request)
        return await _done(self.on_manifest(request))

    async def _token(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(request)
        return await _done(self.on_token(request))


async def _done(answer: web.StreamResponse | Awaitable[web.StreamResponse]) -> web.StreamResponse:
    return await answer if inspect.isawaitable(answer) else answer
