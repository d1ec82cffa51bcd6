"""Repositories of peers, as jobs open them, without waits between tries."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from imagejobd.registry.client import RegistryClient
from imagejobd.registry.hosts import RegistryTarget
from imagejobd.registry.limits import Timing
from imagejobd.registry.repository import Repository


async def no_wait(_: float) -> None:
    """Let others run, and go on."""
    await asyncio.sleep(0)


HASTE = Timing(sleep=no_wait)


def reader(client: RegistryClient, host: str, path: str, **site: Any) -> Repository:
    """The repository `path` at a host with plain HTTP, to read from."""
    return Repository(connection=client.connect(RegistryTarget(host=host, **{"scheme": "http"} | site)), path=path)


def writer(client: RegistryClient, host: str, path: str, **site: Any) -> Repository:
    """The same, to push to."""
    return Repository(connection=reader(client, host, path, **site).connection, path=path, may_push=True)


async def drained(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


def error(code: str, message: str = "", detail: Any = None) -> bytes:
    """An error body of the distribution spec."""
    return json.dumps({"errors": [{"code": code, "message": message, "detail": detail}]}).encode()


PIECE_BYTES = 64 * 1024


async def pieces(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), PIECE_BYTES):
        yield content[start : start + PIECE_BYTES]


def body(content: bytes) -> Callable[[], AsyncIterator[bytes]]:
    """What `put_blob` calls when it wants the bytes."""
    return lambda: pieces(content)
