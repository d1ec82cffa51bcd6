"""An engine that hangs holds up nobody who is cancelled; what could not be cleaned up then, a later look finds."""

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Any

import pytest
from builds import request, run, until
from sandboxes import LIMITS, image_of

from harness.base_image import BUSYBOX, publish_busybox
from harness.building import RememberedBases, nobody_known
from harness.engine import PrivateEngine
from harness.processes import processes, unique_seconds
from harness.proxy import FaultProxy, StallResponse
from harness.registry import PASSWORD, USERNAME, Registry
from imagejobd.engine import images, sandbox
from imagejobd.engine.base_images import BaseImages
from imagejobd.engine.classic import remove_remains
from imagejobd.engine.client import Engine
from imagejobd.engine.leases import TagLeases
from imagejobd.engine.settings import EngineSettings
from imagejobd.model.errors import ErrorCode, Permanent
from imagejobd.model.job import uuid7
from imagejobd.model.ownership import NO_INSTALLATION, pin_repository
from imagejobd.model.reference import ImageReference
from imagejobd.model.secrets import Credentials, Secret

START_S = 20.0
# Of the 2 s in which a cancelled job ends, what its clean-up in engine and building may take of it.
CLEANED_UP_S = 1.5


async def cancelled(task: asyncio.Task[Any]) -> float:
    """Seconds from the cancellation to the end."""
    began = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return time.monotonic() - began


async def test_a_build_is_cancelled(client: Engine, engine: PrivateEngine, builder: str, tmp_path: Path) -> None:
    """Its bases are released later, too."""
    sleep, bases = unique_seconds(), BaseImages(client, TagLeases(client, nobody_known), RememberedBases())
    repository = pin_repository(NO_INSTALLATION, uuid7())

    async def build() -> None:
        async with bases.pin([(ImageReference.parse(BUSYBOX), "")], repository=repository) as pinned:
            text = f"FROM {pinned.names[0]}\nRUN sleep {sleep}\n"
            await run(client, request(tmp_path, builder, text, bases={pinned.names[0]: BUSYBOX}))

    task = asyncio.create_task(build())
    await until(lambda: bool(processes(sleep)), timeout_s=START_S)
    with engine.frozen():
        assert await cancelled(task) < CLEANED_UP_S
    await until(lambda: not processes(sleep), timeout_s=START_S)
    for name in await images.list_tags(client, repository):
        await images.remove(client, ImageReference.parse(name))
    async with asyncio.timeout(START_S):
        while client.remains:
            await remove_remains(client)
            await asyncio.sleep(0.1)


async def test_a_pull_with_a_login_is_cancelled(
    client: Engine, engine: PrivateEngine, private_registry: Registry
) -> None:
    """The tag is restored by the next sweep, if the engine has not carried out what it was asked before."""
    leases = TagLeases(client, nobody_known)
    bases = BaseImages(client, leases, RememberedBases())
    login = {private_registry.host: Credentials(USERNAME, Secret(PASSWORD))}
    base = ImageReference.parse(publish_busybox(engine, private_registry, f"hang{uuid7()}", "v1"))
    is_leased = asyncio.Event()

    async def lease() -> None:
        async with leases.turn(base), leases.lease(base):
            await images.tag(client, BUSYBOX, base)
            is_leased.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(lease())
    await is_leased.wait()
    with engine.frozen():
        assert await cancelled(task) < CLEANED_UP_S
    await leases.sweep()
    assert await images.find(client, base) is None
    repository = pin_repository(NO_INSTALLATION, uuid7())
    async with bases.pin([(base, "")], repository=repository, credentials=login) as pinned:
        assert pinned.pulled == [base]


async def test_a_container_is_cancelled(client: Engine, engine: PrivateEngine) -> None:
    """It is killed and removed once the engine answers."""
    uuid, sleep = uuid7(), unique_seconds()
    image = image_of(engine, f'CMD ["sleep", "{sleep}"]\n')

    async def sandboxed() -> None:
        container = await sandbox.create(client, uuid=uuid, attempt=1, image=image, limits=LIMITS)
        async with contextlib.aclosing(container.run(output_max_bytes=1000, timeout_s=60)) as events:
            async for _ in events:
                pass

    task = asyncio.create_task(sandboxed())
    await until(lambda: bool(processes(sleep)), timeout_s=START_S)
    with engine.frozen():
        assert await cancelled(task) < CLEANED_UP_S
    await sandbox.discard(client, uuid)
    assert processes(sleep) == []


async def test_who_waits_for_anothers_pull_is_cancelled(
    client: Engine, engine: PrivateEngine, registry: Registry
) -> None:
    """The pull itself goes on for the one who makes it."""
    bases = BaseImages(client, TagLeases(client, nobody_known), RememberedBases())
    with FaultProxy(registry.host) as proxy:
        proxy.add("GET|HEAD", ".*/manifests/.*", StallResponse(), times=1)
        published = ImageReference.parse(publish_busybox(engine, registry, f"hang{uuid7()}", "v1"))
        base = ImageReference.parse(f"{proxy.host}/{published.path}:v1")

        async def pulls() -> int:
            async with bases.pin([(base, "")], repository=pin_repository(NO_INSTALLATION, uuid7())) as pinned:
                return len(pinned.pulled)

        first, second = asyncio.create_task(pulls()), asyncio.create_task(pulls())
        await asyncio.to_thread(proxy.wait_for, "GET|HEAD", ".*/manifests/.*", timeout_s=START_S)
        assert await cancelled(second) < CLEANED_UP_S
        proxy.release()
        assert await first == 1
    assert await images.remove(client, base)


async def test_a_denied_push_stays_denied(engine: PrivateEngine, private_registry: Registry) -> None:
    """Also where the tag cannot be restored: that comes later, and the refusal is what the user hears."""
    target = ImageReference.parse(f"{private_registry.host}/hang{uuid7()}:v1")
    async with Engine(EngineSettings(host=engine.host, request_timeout_s=2)) as client:
        leases = TagLeases(client, nobody_known)
        with contextlib.ExitStack() as stack:

            async def pushed() -> None:
                async with leases.turn(target), leases.lease(target):
                    await images.tag(client, BUSYBOX, target)
                    try:
                        async with contextlib.aclosing(images.push(client, target, None)) as events:
                            async for _ in events:
                                pass
                    finally:
                        stack.enter_context(engine.frozen())

            with pytest.raises(Permanent) as denied:
                await pushed()
            assert denied.value.code is ErrorCode.DENIED
        await leases.sweep()
        assert await images.find(client, target) is None
