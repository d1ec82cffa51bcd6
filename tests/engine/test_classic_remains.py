"""What the classic builder leaves goes, and nothing else does."""

import asyncio
from pathlib import Path

import pytest
from builds import FROM_BASE, request, run, until

from harness.base_image import BUSYBOX
from harness.engine import PrivateEngine
from harness.processes import processes, unique_seconds
from imagejobd.engine.classic import remove_remains
from imagejobd.engine.client import Engine
from imagejobd.model.errors import Permanent
from imagejobd.model.job import uuid7

# As every build of a tenant is made: without the steps of earlier ones.
OWN = {"no_cache": True}
STAGES = f"FROM {BUSYBOX} AS one\nRUN echo 1 >/1\nENV a=1\nFROM one AS two\nRUN echo 2 >/2\n{FROM_BASE}"
TIMEOUT_S = 20.0


def held(engine: PrivateEngine) -> set[str]:
    """All containers and images, those without a name too."""
    images = engine.docker("images", "--all", "--quiet", "--no-trunc").split()
    return {*images, *engine.docker("ps", "--all", "--quiet").split()}


def a_build() -> bytes:
    return f"{FROM_BASE}LABEL a={uuid7()}\n".encode()


async def test_a_failed_build_leaves_nothing(client: Engine, engine: PrivateEngine, tmp_path: Path) -> None:
    """Neither the images of its steps, in any of its stages, nor a container."""
    before = held(engine)
    with pytest.raises(Permanent, match="non-zero code: 3"):
        await run(client, request(tmp_path, "classic", STAGES + "COPY --from=two /2 /\nRUN exit 3\n", **OWN))
    assert held(engine) == before
    assert client.remains == {}


async def test_a_cancelled_build_leaves_nothing(client: Engine, engine: PrivateEngine, tmp_path: Path) -> None:
    """What the engine still uses as it stops the build is removed a moment later."""
    before, sleep = held(engine), unique_seconds()
    text = STAGES + f"COPY --from=two /2 /\nRUN sleep {sleep}\n"
    task = asyncio.create_task(run(client, request(tmp_path, "classic", text, **OWN)))
    await until(lambda: bool(processes(sleep)), timeout_s=TIMEOUT_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(TIMEOUT_S):
        while client.remains:
            await remove_remains(client)
            await asyncio.sleep(0.1)
    assert held(engine) == before


async def test_a_good_build_leaves_its_image_only(client: Engine, engine: PrivateEngine, tmp_path: Path) -> None:
    """The stages beside the last one go at once, and those that it is built on with it."""
    before, tag = held(engine), f"imagejobd/{uuid7()}:1"
    text = STAGES + "COPY --from=two /2 /\n"
    await run(client, request(tmp_path, "classic", text, tags=(tag,), **OWN))
    engine.docker("rmi", tag)
    await remove_remains(client)
    assert held(engine) == before
    assert client.remains == {}


async def test_a_step_cannot_have_others_images_removed(client: Engine, engine: PrivateEngine, tmp_path: Path) -> None:
    """Whatever ids it prints: images with a name stay, and so do those that are older than the build."""
    name = f"imagejobd-test/{uuid7()}:1"
    engine.docker("build", "--tag", name, "-", input=a_build(), buildkit=False)
    image = engine.docker("inspect", "--format", "{{.Id}}", name)
    engine.docker("build", "--tag", name, "-", input=a_build(), buildkit=False)
    for victim in (image, engine.docker("inspect", "--format", "{{.Id}}", BUSYBOX)):
        short_id = victim.removeprefix("sha256:")[:12]
        with pytest.raises(Permanent, match="non-zero code: 3"):
            await run(client, request(tmp_path, "classic", FROM_BASE + f"RUN echo ' ---> {short_id}'; exit 3\n", **OWN))
        assert engine.docker("inspect", "--format", "{{.Id}}", victim) == victim
    engine.docker("rmi", name, image)
