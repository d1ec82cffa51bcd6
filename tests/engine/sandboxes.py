"""What the tests of the sandbox share: an image of a few lines, its sandbox, all that it says; and nothing left."""

import contextlib
import hashlib
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import msgspec
from builds import FROM_BASE

from harness.engine import PrivateEngine
from imagejobd.engine.client import Engine
from imagejobd.engine.sandbox import Exit, Output, Sandbox, SandboxLimits, create, discard, leftovers
from imagejobd.model.job import uuid7

MIB = 1024**2
LIMITS = SandboxLimits(
    memory_bytes=64 * MIB,
    cpus=1.0,
    pids=64,
    files=256,
    file_max_bytes=4 * MIB,
    tmp_max_bytes=2 * MIB,
    disk_free_min_bytes=MIB,
)
OUTPUT_MAX_BYTES = MIB
TIMEOUT_S = 60.0


class Ran(NamedTuple):
    out: str
    err: str
    exit: Exit


def image_of(engine: PrivateEngine, text: str, base: str = FROM_BASE) -> str:
    """An image of the base and these lines of a Dockerfile."""
    tag = f"sandboxed:{hashlib.sha256((base + text).encode()).hexdigest()[:20]}"
    engine.docker("build", "--quiet", "--network=none", "--tag", tag, "-", input=(base + text).encode())
    return tag


@contextlib.asynccontextmanager
async def sandboxed(
    client: Engine, engine: PrivateEngine, text: str, *, base: str = FROM_BASE, probe: Any = None, **limits: Any
) -> AsyncIterator[Sandbox]:
    """The sandbox of such an image; after it the engine has nothing of it any more, labelled or named or neither."""
    uuid = uuid7()
    more = {"probe": probe} if probe else {}
    image = image_of(engine, text, base)
    before = volumes(engine)
    try:
        yield await create(
            client, uuid=uuid, attempt=1, image=image, limits=msgspec.structs.replace(LIMITS, **limits), **more
        )
    finally:
        await discard(client, uuid)
        assert uuid not in {owner.uuid for owner in await leftovers(client)}
        assert uuid not in str(engine.ask("/containers/json?all=1"))
        assert volumes(engine) == before


async def run(sandbox: Sandbox, *, output_max_bytes: int = OUTPUT_MAX_BYTES) -> Ran:
    """All that it says, by stream."""
    texts = {False: "", True: ""}
    async with contextlib.aclosing(sandbox.run(output_max_bytes=output_max_bytes, timeout_s=TIMEOUT_S)) as pieces:
        async for piece in pieces:
            if isinstance(piece, Exit):
                return Ran(texts[False], texts[True], piece)
            texts[piece.is_stderr] += piece.text
    raise AssertionError("no exit was told")


async def until_output(sandbox: Sandbox, word: str) -> None:
    """Read until the container has said `word`, and leave."""
    async with contextlib.aclosing(sandbox.run(output_max_bytes=OUTPUT_MAX_BYTES, timeout_s=TIMEOUT_S)) as pieces:
        async for piece in pieces:
            if isinstance(piece, Output) and word in piece.text:
                return


def volumes(engine: PrivateEngine) -> set[str]:
    return {volume["Name"] for volume in engine.ask("/volumes")["Volumes"] or ()}
