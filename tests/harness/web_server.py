"""An aiohttp server on a thread of its own, so that blocking callers and event loops can both use it."""

import asyncio
import socket
import threading
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

from aiohttp import web

START_TIMEOUT_S = 5.0


class WebServer(ABC):
    """Answers on `address` and a free port for as long as a `with` block lasts."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        self.address = address
        # Bound from now on, so that nobody else gets the port before it is served.
        self._socket = socket.socket()
        self._socket.bind((address, 0))
        self.port: int = self._socket.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=type(self).__name__, daemon=True)

    @property
    def host(self) -> str:
        """`address:port`, as image references have it."""
        return f"{self.address}:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    @abstractmethod
    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse: ...

    async def _open(self) -> None:
        server = web.Server(self._serve)
        self._runner = web.ServerRunner(server, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.SockSite(self._runner, self._socket).start()

    async def _close(self) -> None:
        await self._runner.cleanup()

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result(START_TIMEOUT_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(START_TIMEOUT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
