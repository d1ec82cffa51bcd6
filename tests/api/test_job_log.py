"""A job's log over HTTP: so far, as it grows, and what becomes of broken connections."""

import asyncio
import socket
from typing import Any

import aiohttp
import pytest
from bare_app import BareApp

from imagejobd.api import joblog, streams
from imagejobd.model.errors import ErrorCode, Temporary
from imagejobd.model.job import State
from imagejobd.store.protocol import Ending


async def test_log_and_follow(app: BareApp) -> None:
    """The log so far at once; with follow=1 what comes later too, until the job ends."""
    await app.submit()
    claim = await app.claimed()
    path = f"/api/v2/jobs/{claim.job.uuid}/log"
    await app.store.log(claim, "one é\n")
    async with app.client.get(path) as response:
        assert response.content_type == "text/plain"
        assert await response.text() == "one é\n"
    async with app.client.get(f"{path}?follow=1") as response:
        assert await response.content.readline() == "one é\n".encode()
        await app.store.log(claim, "two\n")
        assert await response.content.readline() == b"two\n"
        await app.store.log(claim, "three")
        await app.store.finish(claim, Ending(State.SUCCEEDED, result={}))
        assert await response.content.read() == b"three"


async def test_follower_that_goes_away_is_noticed(app: BareApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is kept for a client that closed its connection, even while the job is silent."""
    monkeypatch.setattr(streams, "FOLLOW_POLL_S", 0.02)
    await app.submit()
    claim = await app.claimed()
    await app.store.log(claim, "first\n")
    before = asyncio.all_tasks()
    response = await app.client.get(f"/api/v2/jobs/{claim.job.uuid}/log?follow=1")
    assert await response.content.readline() == b"first\n"
    assert asyncio.all_tasks() - before
    response.close()
    async with asyncio.timeout(5):
        while asyncio.all_tasks() - before:
            await asyncio.sleep(0.01)


async def test_answer_that_breaks_midway_is_cut(app: BareApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the store fails within a log, the client sees a broken transfer, not a complete one."""
    await app.submit()
    claim = await app.claimed()
    await app.store.log(claim, "x" * joblog.PIECE_BYTES)
    await app.store.log(claim, "last\n")
    read_log = app.store.read_log

    async def failing(job_id: Any, *, from_offset: int, **bounds: Any) -> Any:
        if from_offset > 0:
            raise Temporary(ErrorCode.STORAGE_FULL, "no space")
        return await read_log(job_id, from_offset=from_offset, **bounds)

    monkeypatch.setattr(app.store, "read_log", failing)
    for path in (f"/api/v2/jobs/{claim.job.uuid}/log", f"/api/v1/{claim.job.uuid}/logs"):
        async with app.client.get(path) as response:
            assert response.status == 200
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.read()


async def test_head_gets_no_stream(app: BareApp) -> None:
    """HEAD is not offered where the answer is a stream; elsewhere it is, and a connection serves on after it."""
    await app.submit()
    claim = await app.claimed()
    await app.store.log(claim, "first\n")
    uuid = claim.job.uuid
    for path, status in (
        (f"/api/v2/jobs/{uuid}/log", 405),
        (f"/api/v1/{uuid}/logs", 405),
        (f"/api/v1/{uuid}/status", 200),
        (f"/api/v2/jobs/{uuid}", 200),
    ):
        async with app.client.head(path) as response:
            assert (response.status, await response.read()) == (status, b"")


@pytest.mark.parametrize(
    ("path", "accept"),
    [
        ("/api/v2/jobs/{}/log?follow=1", "*/*"),
        ("/api/v2/jobs/{}/log", "*/*"),
        ("/api/v2/jobs/{}/log", "text/event-stream"),
        ("/api/v1/{}/logs", "*/*"),
    ],
    ids=["followed", "native", "events", "builder"],
)
async def test_a_client_that_stops_reading_is_cut_off(app: BareApp, path: str, accept: str) -> None:
    """It costs the daemon what it has not taken only for as long as an upload may be silent."""
    await app.submit()
    claim = await app.claimed()
    for _ in range(64):
        await app.store.log(claim, "x" * 250_000)
    before = asyncio.all_tasks()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", app.port))
        head = f"GET {path.format(claim.job.uuid)} HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n\r\n"
        client.sendall(head.encode())
        async with asyncio.timeout(20):
            while not asyncio.all_tasks() - before:
                await asyncio.sleep(0.01)
            while asyncio.all_tasks() - before:
                await asyncio.sleep(0.05)
