"""No request takes the event loop, or the threads, for itself alone."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import StreamReader
from aiohttp.base_protocol import BaseProtocol
from aiohttp.test_utils import make_mocked_request
from asking_kind import AskingKind
from bare_app import SERVER, BareApp, bare_app

from imagejobd.api.bodies import base64_chunks, body_chunks, is_multipart
from imagejobd.api.intake import LONG_PARSES_MAX, PARSED_AT_ONCE_MAX_CHARS
from imagejobd.model.job import Json
from imagejobd.model.kind import Accepted, Upload

LONG = "x" * (PARSED_AT_ONCE_MAX_CHARS + 1)


class EndlessStream(StreamReader):
    """Whose sender is always ahead of its reader."""

    async def readany(self) -> bytes:
        return b"x"


class SlowKind(AskingKind):
    """Reads a long spec only when told to, and counts how many it reads at once."""

    def __init__(self) -> None:
        super().__init__("slow")
        self.go = threading.Event()
        self.under_way = self.most_under_way = self.parsed = 0
        self._counting = threading.Lock()

    def parse(self, spec: Json, upload: Upload | None = None) -> Accepted:
        if spec["text"] == LONG:
            with self._counting:
                self.under_way += 1
                self.most_under_way = max(self.most_under_way, self.under_way)
            self.go.wait(10)
            with self._counting:
                self.under_way -= 1
                self.parsed += 1
        return Accepted({})


@pytest.fixture
def kind() -> SlowKind:
    return SlowKind()


@pytest.fixture
async def app(tmp_path: Path, kind: SlowKind) -> AsyncIterator[BareApp]:
    async with bare_app(tmp_path, kinds={"slow": kind}) as app:
        yield app


async def turns_of_others(chunks: AsyncIterator[bytes], count: int) -> int:
    """How often another task has its turn while `count` chunks are read."""
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    for _ in range(count):
        await anext(chunks)
    task.cancel()
    return turns


async def test_a_sender_that_is_always_ahead() -> None:
    """Every chunk of a body that is there already leaves all others a turn."""
    stream = EndlessStream(BaseProtocol(asyncio.get_running_loop()), 2**16)
    request = make_mocked_request("POST", "/", payload=stream)
    assert await turns_of_others(body_chunks(request, SERVER), 100) >= 99


async def test_large_base64() -> None:
    """So does every piece of a text that is decoded."""
    assert await turns_of_others(base64_chunks("QUJD" * 2**20, "x"), 16) >= 15


@pytest.mark.parametrize("content_type", ["multipart/form-data" + "; " * 4000, "Multipart/Mixed;" + "a=b;" * 2000])
def test_long_content_types(content_type: str) -> None:
    """What sort of body it is takes no time to tell."""
    request = make_mocked_request("POST", "/", headers={"Content-Type": content_type})
    began = time.process_time()
    assert all(is_multipart(request) for _ in range(100))
    assert time.process_time() - began < 0.5


async def test_long_specs_take_turns(app: BareApp, kind: SlowKind) -> None:
    """Two long ones are parsed at a time, the others wait; short ones are answered meanwhile."""

    async def submit(text: str) -> int:
        job: dict[str, Any] = {"kind": "slow", "spec": {"text": text}}
        async with app.client.post("/api/v2/jobs", json=job) as response:
            return response.status

    async with asyncio.TaskGroup() as group:
        long_ones = [group.create_task(submit(LONG)) for _ in range(6)]
        try:
            async with asyncio.timeout(5):
                while kind.under_way < LONG_PARSES_MAX:
                    await asyncio.sleep(0.001)
            assert await submit("x" * PARSED_AT_ONCE_MAX_CHARS) == 201
        finally:
            kind.go.set()
    assert [task.result() for task in long_ones] == [201] * 6
    assert (kind.parsed, kind.most_under_way) == (6, LONG_PARSES_MAX)
