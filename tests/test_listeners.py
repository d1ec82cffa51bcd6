"""Connections as the daemon serves them."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from aiohttp import web

from harness.process import free_port
from imagejobd import listeners
from imagejobd.api.intake import Intake, QueueBounds, Server
from imagejobd.config import Config
from imagejobd.store.sqlite.store import SqliteStore
from imagejobd.store.vault import KEY_BYTES, Vault


@pytest.mark.parametrize("sent", [b"", b"GET / HT"], ids=["nothing", "half a head"])
async def test_a_silent_connection_is_closed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sent: bytes) -> None:
    """Who connects and sends no request does not hold a descriptor for long."""
    monkeypatch.setattr(listeners, "IDLE_CONNECTION_S", 1.0)
    port = free_port()
    async with AsyncExitStack() as stack:
        config = Config(server=Server(listen=(f"127.0.0.1:{port}",)))
        opening = SqliteStore.open(tmp_path / "imagejobd.db", vault=Vault(b"k" * KEY_BYTES))
        intake = Intake(await stack.enter_async_context(opening), {}, config.server, bounds=QueueBounds(1))
        await listeners.open_listeners(stack, config, web.Application(), intake, umask=0o022)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        async with asyncio.timeout(20):
            assert await reader.read() == b""
        writer.close()
