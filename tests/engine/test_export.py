"""Exports of a real engine load again; one that is not whole never passes for one."""

import io
import json
import tarfile
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path

import pytest
from aiohttp import web
from builds import FROM_BASE, fake_engine, request, run

from harness.engine import PrivateEngine
from imagejobd.engine import images
from imagejobd.engine.client import Engine
from imagejobd.engine.images import export
from imagejobd.engine.stream import Built
from imagejobd.model.errors import ErrorCode, Permanent, Temporary
from imagejobd.model.job import uuid7
from imagejobd.model.reference import ImageReference

END = bytes(1024)


async def exported(client: Engine, image_id: str) -> bytes:
    async with aclosing(export(client, image_id)) as blocks:
        return b"".join([block async for block in blocks])


async def test_an_exported_image_loads_again(client: Engine, engine: PrivateEngine, tmp_path: Path) -> None:
    """The tar of an image has all of it and none of its names; loading it gives the same id."""
    name = ImageReference.parse(f"imagejobd/{uuid7()}:1")
    events = await run(client, request(tmp_path, "buildkit", f"{FROM_BASE}RUN echo {name} > /id\n", tags=(str(name),)))
    built = events[-1]
    assert isinstance(built, Built)
    archive = await exported(client, built.image_id)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        manifest = tar.extractfile("manifest.json")
        assert manifest is not None
        assert json.load(manifest)[0]["RepoTags"] is None
    await images.remove(client, name)
    assert await images.inspect(client, built.image_id) is None
    assert built.image_id in engine.docker("load", "--quiet", input=archive)
    engine.docker("rmi", built.image_id)


async def test_an_image_that_is_not_there(client: Engine) -> None:
    """Permanent, by id and by name."""
    for absent in ("sha256:" + "0" * 64, "imagejobd/absent:1"):
        with pytest.raises(Permanent) as caught:
            await exported(client, absent)
        assert caught.value.code is ErrorCode.NOT_FOUND


def sends(*blocks: bytes, is_cut: bool = False) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """An answer of these blocks, after which the connection is cut, or the answer is ended as if all was well."""

    async def answer(asked: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(asked)
        for block in blocks:
            await response.write(block)
        if is_cut:
            assert asked.transport is not None
            asked.transport.close()
        return response

    return answer


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (sends(b"x" * 5000, is_cut=True), "closed the connection"),
        (sends(b"x" * 5000, END, is_cut=True), "closed the connection"),
        (sends(b"x" * 5000), "has no end$"),
        (sends(END[1:]), "has no end$"),
        (sends(), "has no end$"),
        (
            sends(b"x" * 512 + bytes(512), b'{"errorDetail":{"message":"m"},"error":"disk \xc3\xa4"}\r\n'),
            "no end: disk ä",
        ),
        (sends(b'{"errorDetail"'), "has no end$"),
    ],
)
async def test_half_an_export_is_temporary(
    tmp_path: Path, answer: Callable[[web.Request], Awaitable[web.StreamResponse]], why: str
) -> None:
    """An answer that is cut, or ends well without the end of a tar, is tried again; the engine's reason is given."""
    async with fake_engine(tmp_path, answer) as client:
        with pytest.raises(Temporary, match=why) as caught:
            await exported(client, "sha256:1")
        assert caught.value.code is ErrorCode.ENGINE_UNAVAILABLE


async def test_blocks_of_any_size(tmp_path: Path) -> None:
    """The end is found however the blocks fall."""
    async with fake_engine(tmp_path, sends(b"x" * 700, *([b"\0"] * 1024))) as client:
        assert await exported(client, "sha256:1") == b"x" * 700 + END
