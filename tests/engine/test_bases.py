"""Bases from real registries, held for builds."""

import asyncio
from pathlib import Path

import pytest
from builds import request, run

from harness.base_image import BUSYBOX, publish_busybox
from harness.engine import PrivateEngine
from harness.registry import PASSWORD, USERNAME, Registry
from imagejobd.engine import images
from imagejobd.engine.bases import Bases
from imagejobd.engine.client import Engine
from imagejobd.engine.events import Built
from imagejobd.model.errors import ErrorCode, Permanent
from imagejobd.model.ids import uuid7
from imagejobd.model.reference import ImageReference
from imagejobd.model.reserved import BASE_MARK_REPOSITORY
from imagejobd.model.secret import Credentials, Secret


def publish(engine: PrivateEngine, registry: Registry) -> ImageReference:
    """A new image in the registry that the engine does not have."""
    return ImageReference.parse(publish_busybox(engine, registry, f"base{uuid7()}", "v1"))


def credentials(registry: Registry) -> dict[str, Credentials]:
    return {registry.host: Credentials(USERNAME, Secret(PASSWORD))}


async def test_a_missing_public_base_is_pulled_and_stays(
    client: Engine, engine: PrivateEngine, registry: Registry
) -> None:
    """It is there inside the block and remains as a cache after it; the next holder pulls nothing."""
    base, bases = publish(engine, registry), Bases(client)
    async with bases.hold([(base, "")]) as pulled:
        assert pulled == [base]
        assert await images.inspect(client, base)
    async with bases.hold([(base, "")]) as pulled:
        assert pulled == []
    assert await images.remove(client, base)


async def test_both_builders_build_on_a_private_base(
    client: Engine, engine: PrivateEngine, private_registry: Registry, builder: str, tmp_path: Path
) -> None:
    """Held with credentials, a base behind htpasswd can be built on; afterwards no name of it is left."""
    base, bases = publish(engine, private_registry), Bases(client)
    async with bases.hold([(base, "")], credentials=credentials(private_registry)):
        events = await run(client, request(tmp_path, builder, f"FROM {base}\nRUN true\n"))
        assert isinstance(events[-1], Built)
    assert await images.inspect(client, base) is None
    assert await images.list_tags(client, BASE_MARK_REPOSITORY) == []


async def test_the_last_holder_takes_a_private_base_away(
    client: Engine, engine: PrivateEngine, private_registry: Registry
) -> None:
    """While one of two holders is left, the base stays."""
    base, bases, rights = publish(engine, private_registry), Bases(client), credentials(private_registry)
    async with bases.hold([(base, "")], credentials=rights):
        async with bases.hold([(base, "")], credentials=rights):
            pass
        assert await images.inspect(client, base)
    assert await images.inspect(client, base) is None


async def test_a_private_base_in_use_is_closed_to_others(
    client: Engine, engine: PrivateEngine, private_registry: Registry
) -> None:
    """Who cannot pull it cannot hold it, though it is in the engine; the one who holds it keeps it."""
    base, bases = publish(engine, private_registry), Bases(client)
    async with bases.hold([(base, "")], credentials=credentials(private_registry)):
        with pytest.raises(Permanent) as denied:
            async with bases.hold([(base, "")]):
                pass
        assert denied.value.code is ErrorCode.DENIED
        with pytest.raises(Permanent):
            async with bases.hold([(base, "")], policy="never"):
                pass
        assert await images.inspect(client, base)
    assert await images.inspect(client, base) is None


async def test_a_digest_is_held_and_given_up_like_a_tag(
    client: Engine, engine: PrivateEngine, private_registry: Registry
) -> None:
    """A private base by digest is removed by digest."""
    base, bases = publish(engine, private_registry), Bases(client)
    digest = private_registry.digest(base.path, "v1")
    by_digest = ImageReference.parse(f"{base.repository}:v1@{digest}")
    async with bases.hold([(by_digest, "")], credentials=credentials(private_registry)):
        assert await images.inspect(client, by_digest)
    assert await images.inspect(client, by_digest) is None


async def test_what_was_there_before_credentials_stays(
    client: Engine, engine: PrivateEngine, private_registry: Registry
) -> None:
    """An image that the operator put there is not taken away because a tenant refreshed it, or failed to."""
    base, bases, rights = publish(engine, private_registry), Bases(client), credentials(private_registry)
    engine.docker("tag", BUSYBOX, str(base))
    async with bases.hold([(base, "")], policy="always", credentials=rights) as pulled:
        assert pulled == [base]
    wrong = {private_registry.host: Credentials(USERNAME, Secret("wrong-password"))}
    with pytest.raises(Permanent):
        async with bases.hold([(base, "")], policy="always", credentials=wrong):
            pass
    assert await images.remove(client, base)


async def test_holders_at_once_pull_once(client: Engine, engine: PrivateEngine, registry: Registry) -> None:
    """Ten holders of one public base cause one pull."""
    base, bases = publish(engine, registry), Bases(client)

    async def hold() -> int:
        async with bases.hold([(base, "")]) as pulled:
            await asyncio.sleep(0)
            return len(pulled)

    assert sum(await asyncio.gather(*(hold() for _ in range(10)))) == 1
    assert await images.remove(client, base)


async def test_a_base_of_another_platform_is_missing(
    client: Engine, engine: PrivateEngine, registry: Registry, tmp_path: Path
) -> None:
    """What stands under the name counts only if it is for the platform that is wanted, or else for the engine's own."""
    base, bases = publish(engine, registry), Bases(client)
    own = await client.ping()
    foreign = "linux/s390x"
    built = request(tmp_path, "classic", "FROM scratch\nCOPY Dockerfile /\n", tags=(str(base),), platform=foreign)
    await run(client, built)
    with pytest.raises(Permanent, match="pulling is off"):
        async with bases.hold([(base, "")], policy="never"):
            pass
    async with bases.hold([(base, foreign)]) as pulled:
        assert pulled == []
    async with bases.hold([(base, f"{own.os}/{own.architecture}")]) as pulled:
        assert pulled == [base]
    async with bases.hold([(base, "")]) as pulled:
        assert pulled == []
    with pytest.raises(Permanent, match=f"{foreign}.* pulling is off"):
        async with bases.hold([(base, foreign)], policy="never"):
            pass
    assert await images.remove(client, base)


async def test_never_pulls_nothing(client: Engine, engine: PrivateEngine, registry: Registry) -> None:
    """With the policy `never` a missing base is not found, though the registry has it."""
    with pytest.raises(Permanent, match="pulling is off") as caught:
        async with Bases(client).hold([(publish(engine, registry), "")], policy="never"):
            pass
    assert caught.value.code is ErrorCode.NOT_FOUND


async def test_a_cancelled_holder_gives_its_private_base_up(
    client: Engine, engine: PrivateEngine, private_registry: Registry
) -> None:
    """Cancellation inside the block removes the base all the same."""
    base, bases = publish(engine, private_registry), Bases(client)
    is_held = asyncio.Event()

    async def hold() -> None:
        async with bases.hold([(base, "")], credentials=credentials(private_registry)):
            is_held.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(hold())
    await is_held.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await images.inspect(client, base) is None


async def test_a_crash_leaves_no_private_base_after_the_sweep(
    client: Engine, engine: PrivateEngine, private_registry: Registry
) -> None:
    """What a process that died held with credentials, the next one takes away; other names of the image stay."""
    base = publish(engine, private_registry)
    crashed = Bases(client).hold([(base, "")], credentials=credentials(private_registry))
    await crashed.__aenter__()
    assert await images.inspect(client, base)
    assert await Bases(client).sweep() == [str(base)]
    assert await images.inspect(client, base) is None
    assert await images.list_tags(client, BASE_MARK_REPOSITORY) == []
    assert await images.inspect(client, BUSYBOX)
    await crashed.__aexit__(None, None, None)


@pytest.mark.parametrize(
    "name", ["imagejobd/0190:1", f"{BASE_MARK_REPOSITORY}:abc", f"library/{BASE_MARK_REPOSITORY}:abc"]
)
async def test_the_services_own_names_are_no_bases(client: Engine, name: str) -> None:
    """They may stand for what another tenant built or fetched."""
    with pytest.raises(Permanent, match="reserved") as caught:
        async with Bases(client).hold([(ImageReference.parse(name), "")]):
            pass
    assert caught.value.code is ErrorCode.POLICY


async def test_the_beginning_of_an_image_id_is_no_base(client: Engine, engine: PrivateEngine) -> None:
    """The engine would take it for the image; here it counts as a name that is missing."""
    short_id = engine.docker("inspect", "--format", "{{.Id}}", BUSYBOX).removeprefix("sha256:")[:12]
    with pytest.raises(Permanent, match="not in the engine"):
        async with Bases(client).hold([(ImageReference.parse(short_id, default_tag=None), "")], policy="never"):
            pass


async def test_one_reference_for_two_platforms_is_refused(client: Engine) -> None:
    """The engine would have only one of them, and its builder would fetch the other unseen; spellings do not count."""
    base, bases = ImageReference.parse(BUSYBOX), Bases(client)
    with pytest.raises(Permanent, match="wanted for linux/arm/v7 and for linux/arm/v6"):
        async with bases.hold([(base, "linux/arm/v7"), (base, "linux/arm/v6")], policy="never"):
            pass
    async with bases.hold([(base, ""), (base, "linux/x86_64")], policy="never"):
        pass
