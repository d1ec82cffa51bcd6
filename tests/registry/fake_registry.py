"""A registry whose every answer a test decides, with a token server beside it."""

import ssl
from collections.abc import Callable
from typing import Self

from aiohttp import web
from aiohttp.test_utils import TestServer

from harness.tls import Certificate

Handler = Callable[[web.Request], web.StreamResponse]

TOKEN = "the-token"
DIGEST = "sha256:" + "a" * 64


class FakeRegistry:
    """One server for `/v2/…` (`on_manifest`) and `/token` (`on_token`); requests are kept in `seen`."""

    def __init__(self, certificate: Certificate | None = None) -> None:
        self._certificate = certificate
        self.seen: list[web.Request] = []
        self.on_manifest: Handler = self.guarded
        self.on_token: Handler = lambda _: web.json_response({"token": TOKEN})
        app = web.Application()
        app.router.add_route("*", "/v2/{path:.*}", self._manifest)
        app.router.add_route("*", "/elsewhere", self._manifest)
        app.router.add_get("/token", self._token)
        self._server = TestServer(app, scheme="https" if certificate else "http")

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._server.port}"

    @property
    def challenge(self) -> str:
        return f'Bearer realm="http://{self.host}/token?fixed=1",service="fake registry",scope="ignored"'

    def guarded(self, request: web.Request) -> web.StreamResponse:
        """A manifest for who holds the token, a challenge for the others."""
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return web.Response(status=401, headers={"WWW-Authenticate": self.challenge})
        return web.Response(headers={"Docker-Content-Digest": DIGEST})

    async def __aenter__(self) -> Self:
        if self._certificate is None:
            await self._server.start_server()
        else:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(self._certificate.certificate_file, self._certificate.key_file)
            await self._server.start_server(ssl=context)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.close()

    async def _manifest(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(request)
        return self.on_manifest(request)

    async def _token(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(request)
        return self.on_token(request)
