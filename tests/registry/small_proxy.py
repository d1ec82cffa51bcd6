"""A proxy that leads every name to one server: CONNECT for TLS, absolute addresses for plain HTTP."""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from raw_peer import head_of, raw_peer

USERNAME, PASSWORD = "proxy-user", "proxy-word"
LOGIN = "Basic " + base64.b64encode(f"{USERNAME}:{PASSWORD}".encode()).decode()


class SmallProxy:
    """`heads` are the requests that reached the proxy itself; `status` other than 200 is its own refusal."""

    def __init__(self, upstream: str, *, needs_login: bool) -> None:
        self.host = ""
        self.heads: list[str] = []
        self.status = 200
        self._upstream = upstream
        self._needs_login = needs_login

    async def conduct(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await head_of(reader)).decode()
        self.heads.append(head)
        status = 407 if self._needs_login and f"Proxy-Authorization: {LOGIN}\r\n" not in head else self.status
        if status != 200:
            writer.write(f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n".encode())
            await writer.drain()
            return
        name, _, port = self._upstream.partition(":")
        upstream, downstream = await asyncio.open_connection(name, int(port))
        if head.startswith("CONNECT "):
            writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
        else:
            downstream.write(_for_origin(head).encode())
        try:
            await asyncio.gather(_pipe(reader, downstream), _pipe(upstream, writer))
        finally:
            downstream.close()


@asynccontextmanager
async def small_proxy(upstream: str, *, needs_login: bool = False) -> AsyncIterator[SmallProxy]:
    proxy = SmallProxy(upstream, needs_login=needs_login)
    async with raw_peer(proxy.conduct) as host:
        proxy.host = host
        yield proxy


def _for_origin(head: str) -> str:
    """A request to a proxy as the server behind it expects it."""
    line, _, rest = head.partition("\r\n")
    method, address, version = line.split(" ")
    path = "/" + address.split("//", 1)[1].partition("/")[2]
    kept = [header for header in rest.split("\r\n") if not header.lower().startswith("proxy-")]
    return "\r\n".join([f"{method} {path} {version}", "Connection: close", *kept])


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
