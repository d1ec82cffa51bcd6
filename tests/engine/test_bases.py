"""Bases from real registries, pinned for builds under names of their own."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import msgspec
import pytest
from builds import request, run

from harness.base_image import BUSYBOX, publish_busybox
from harness.building import RememberedBases, nobody_known
from harness.engine import PrivateEngine
from harness.holdings import holdings
from harness.registry import PASSWORD, USERNAME, Registry
from imagejobd.engine import images
from imagejobd.engine.base_images import BaseImages, PinnedBases, PullPolicy
from imagejobd.engine.client import Engine
from imagejobd.engine.leases import Presence, TagLeases
from imagejobd.engine.settings import EngineSettings
from imagejobd.engine.stream import Built
from imagejobd.model.errors import ErrorCode, Permanent, Temporary
from imagejobd.model.job import uuid7
from imagejobd.model.ownership import NO_INSTALLATION, pin_repository
from imagejobd.model.reference import ImageReference
from imagejobd.model.secrets import Credentials, Secret


class Pins:
    """Pins bases for the builds of one process."""

    def __init__(self, engine: Engine) -> None:
        self.leases = TagLeases(engine, nobody_known)
        self.records = RememberedBases()
        self.bases = BaseImages(engine, self.leases, self.records)

    def pin(
        self,
        reference: ImageReference,
        platform: str = "",
        *,
        policy: PullPolicy = "missing",
        credentials: Mapping[str, Credentials] | None = None,
    ) -> AbstractAsyncContextManager[PinnedBases]:
        return self.bases.pin(
            [(reference, platform)],
            repository=pin_repository(NO_INSTALLATION, uuid7()),
            policy=policy,
            credentials=credentials,
        )


@pytest.fixture
def pins(client: Engine) -> Pins:
    return Pins(client)


def publish(engine: PrivateEngine, registry: Registry) -> ImageReference:
    """A new image in the registry that the engine does not have."""
    return ImageReference.parse(publish_busybox(engine, registry, f"base{uuid7()}", "v1"))


def rights(registry: Registry) -> dict[str, Credentials]:
    return {registry.host: Credentials(USERNAME, Secret(PASSWORD))}


async def is_there(client: Engine, *names: str | ImageReference) -> bool:
    return all([await images.inspect(client, name) is not None for name in names])


async def test_a_missing_public_base_is_pulled_and_stays(
    client: Engine, pins: Pins, engine: PrivateEngine, registry: Registry
) -> None:
    """It is there inside the block and remains as a cache after it, but not under the job's name; the next build pulls
    nothing."""
    base = publish(engine, registry)
    async with pins.pin(base) as pinned:
        assert pinned.pulled == [base]
        assert await is_there(client, base, *pinned.names)
    assert not await is_there(client, *pinned.names)
    async with pins.pin(base) as again:
        assert again.pulled == []
        assert again.names != pinned.names
    assert await images.remove(client, base)


async def test_both_builders_build_on_a_private_base(
    client: Engine, pins: Pins, engine: PrivateEngine, private_registry: Registry, builder: str, tmp_path: Path
) -> None:
    """Pinned with credentials, a base behind htpasswd can be built on by its pin; its own name is never left."""
    base, before = publish(engine, private_registry), holdings(engine)
    async with pins.pin(base, credentials=rights(private_registry)) as pinned:
        assert not await is_there(client, base)
        names = {pinned.names[0]: str(base)}
        events = await run(client, request(tmp_path, builder, f"FROM {pinned.names[0]}\nRUN true\n", bases=names))
        assert isinstance(events[-1], Built)
    assert [one for one in holdings(engine) - before if str(base) in one.name or "imagejobd" in one.name] == []


async def test_builds_at_once_have_pins_of_their_own(
    client: Engine, pins: Pins, engine: PrivateEngine, private_registry: Registry
) -> None:
    """When one of two releases a private base, the other still has it."""
    base, login = publish(engine, private_registry), rights(private_registry)
    async with pins.pin(base, credentials=login) as first:
        async with pins.pin(base, credentials=login) as second:
            assert await is_there(client, *first.names, *second.names)
        assert await is_there(client, *first.names)
        assert not await is_there(client, *second.names)
    assert not await is_there(client, *first.names)


async def test_a_private_base_in_use_is_closed_to_others(
    client: Engine, pins: Pins, engine: PrivateEngine, private_registry: Registry
) -> None:
    """Who cannot pull it cannot pin it, though it is in the engine, now and afterwards."""
    base = publish(engine, private_registry)

    async def is_refused() -> None:
        with pytest.raises(Permanent) as denied:
            async with pins.pin(base):
                pass
        assert denied.value.code is ErrorCode.DENIED
        with pytest.raises(Permanent, match="pulling is off"):
            async with pins.pin(base, policy="never"):
                pass

    async with pins.pin(base, credentials=rights(private_registry)) as pinned:
        await is_refused()
        assert await is_there(client, *pinned.names)
    await is_refused()


async def test_a_digest_is_pinned_and_released_like_a_tag(
    client: Engine, pins: Pins, engine: PrivateEngine, private_registry: Registry
) -> None:
    """A tag beside it counts for nothing, and the digest is no name of the image afterwards."""
    base = publish(engine, private_registry)
    by_digest = ImageReference.parse(f"{base}@{private_registry.digest(base.path, 'v1')}")
    async with pins.pin(by_digest, credentials=rights(private_registry)) as pinned:
        assert await is_there(client, *pinned.names)
        assert await images.find(client, by_digest) is None
    assert not await is_there(client, by_digest)


async def test_what_was_there_before_credentials_stays(
    client: Engine, pins: Pins, engine: PrivateEngine, private_registry: Registry, tmp_path: Path
) -> None:
    """An image that the operator put there is not taken away because a tenant refreshed it, or failed to."""
    base = publish(engine, private_registry)
    own = request(tmp_path, "classic", "FROM scratch\nCOPY Dockerfile /\n", tags=(str(base),))
    before = (await run(client, own))[-1]
    assert isinstance(before, Built)
    async with pins.pin(base, policy="always", credentials=rights(private_registry)) as pinned:
        assert pinned.pulled == [base]
        pulled = await images.inspect(client, pinned.names[0])
        assert pulled is not None
        assert pulled.id != before.image_id
    wrong = {private_registry.host: Credentials(USERNAME, Secret("wrong-password"))}
    with pytest.raises(Permanent):
        async with pins.pin(base, policy="always", credentials=wrong):
            pass
    now = await images.find(client, base)
    assert now is not None
    assert now.id == before.image_id
    assert await images.remove(client, base)


async def test_builds_at_once_pull_once(client: Engine, pins: Pins, engine: PrivateEngine, registry: Registry) -> None:
    """Ten builds on one public base cause one pull."""
    base = publish(engine, registry)

    async def pulls() -> int:
        async with pins.pin(base) as pinned:
            await asyncio.sleep(0)
            return len(pinned.pulled)

    assert sum(await asyncio.gather(*(pulls() for _ in range(10)))) == 1
    assert await images.remove(client, base)


async def test_a_tag_that_is_leased_is_nobodys_base(client: Engine, pins: Pins, registry: Registry) -> None:
    """Whoever pushes another image under it has it for himself: the base is what it names before or after."""
    base = ImageReference.parse(f"{registry.host}/leased{uuid7()}:v1")
    other = await images.inspect(client, BUSYBOX)
    assert other is not None
    async with asyncio.timeout(30):
        async with pins.leases.turn(base), pins.leases.lease(base, image_id=other.id):
            await images.tag(client, other.id, base)
            entering = asyncio.create_task(pins.pin(base, policy="never").__aenter__())
            await asyncio.sleep(0)
            assert pins.leases.is_leased(base.repository)
        with pytest.raises(Permanent, match="pulling is off"):
            await entering
    assert not pins.leases.is_leased(base.repository)
    assert await images.find(client, base) is None


async def test_a_base_of_another_platform_is_missing(
    client: Engine, pins: Pins, engine: PrivateEngine, registry: Registry, tmp_path: Path
) -> None:
    """What stands under the name counts only if it is for the platform that is wanted, or else for the engine's own."""
    base = publish(engine, registry)
    own = await client.ping()
    foreign = "linux/s390x"
    built = request(tmp_path, "classic", "FROM scratch\nCOPY Dockerfile /\n", tags=(str(base),), platform=foreign)
    await run(client, built)
    with pytest.raises(Permanent, match="pulling is off"):
        async with pins.pin(base, policy="never"):
            pass
    async with pins.pin(base, foreign) as first:
        assert first.pulled == []
        async with pins.pin(base, f"{own.os}/{own.architecture}") as second:
            assert second.pulled == [base]
            assert await is_there(client, *first.names, *second.names)
    assert await images.remove(client, base)


async def test_never_pulls_nothing(pins: Pins, engine: PrivateEngine, registry: Registry) -> None:
    """With the policy `never` a missing base is not found, though the registry has it."""
    with pytest.raises(Permanent, match="pulling is off") as caught:
        async with pins.pin(publish(engine, registry), policy="never"):
            pass
    assert caught.value.code is ErrorCode.NOT_FOUND


async def test_a_cancelled_build_releases_its_base(
    client: Engine, pins: Pins, engine: PrivateEngine, private_registry: Registry
) -> None:
    """Cancellation inside the block removes the name all the same."""
    base = publish(engine, private_registry)
    names: list[str] = []
    is_pinned = asyncio.Event()

    async def pin() -> None:
        async with pins.pin(base, credentials=rights(private_registry)) as bases:
            names.extend(bases.names)
            is_pinned.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(pin())
    await is_pinned.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert names
    assert not await is_there(client, *names)


@pytest.mark.parametrize("stood_there", [True, False])
async def test_a_crash_leaves_no_leased_tag(
    client: Engine, engine: PrivateEngine, registry: Registry, tmp_path: Path, stood_there: bool
) -> None:
    """What a process that died left under a tag, the next one takes away before it pins anything, and restores what
    stood there; the note of it goes, too."""
    base = ImageReference.parse(f"{registry.host}/crashed{uuid7()}:v1")
    before = ""
    if stood_there:
        built = (await run(client, request(tmp_path, "classic", "FROM scratch\nCOPY Dockerfile /\n")))[-1]
        assert isinstance(built, Built)
        before = built.image_id
        await images.tag(client, before, base)
    found = await images.inspect(client, BUSYBOX)
    assert found is not None
    volumes = {one for one in holdings(engine) if one.sort == "volume"}
    crashed = TagLeases(client, nobody_known).lease(base, image_id=found.id)
    await crashed.__aenter__()
    await images.tag(client, found.id, base)
    assert {one for one in holdings(engine) if one.sort == "volume"} != volumes
    with pytest.raises(Permanent):
        async with Pins(client).pin(ImageReference.parse("nobody/has:this"), policy="never"):
            pass
    now = await images.find(client, base)
    assert (now.id if now else "") == before
    assert {one for one in holdings(engine) if one.sort == "volume"} == volumes
    assert await images.inspect(client, BUSYBOX)
    await crashed.__aexit__(None, None, None)
    await images.remove(client, base)


@pytest.mark.parametrize("is_known", [True, False])
async def test_a_lease_of_an_earlier_version(
    client: Engine, engine: PrivateEngine, registry: Registry, is_known: bool
) -> None:
    """Its note names no installation: the tag is restored where the image under it was built for a job of ours."""
    base, uuid = ImageReference.parse(f"{registry.host}/earlier{uuid7()}:v1"), uuid7()
    for name in (str(base), f"imagejobd/{uuid}:1"):
        engine.docker("tag", BUSYBOX, name)
    note = f"imagejobd-tag-{hashlib.sha256(str(base).encode()).hexdigest()[:40]}"
    labels = {"imagejobd.tag": str(base), "imagejobd.tag-before": "", "imagejobd.tag-image": ""}
    engine.docker("volume", "create", *(f"--label={name}={value}" for name, value in labels.items()), note)

    async def known(uuids: Collection[str]) -> set[str]:
        return {uuid}.intersection(uuids) if is_known else set()

    await TagLeases(client, known).sweep()
    assert (await images.find(client, base) is None) == is_known
    assert (note in engine.docker("volume", "ls", "--quiet")) != is_known
    for left in (base, ImageReference.parse(f"imagejobd/{uuid}:1")):
        await images.remove(client, left)
    engine.docker("volume", "rm", note, check=False)


async def test_two_daemons_lease_a_tag_one_at_a_time(engine: PrivateEngine, registry: Registry) -> None:
    """The other gives way while the first one works, and moves nothing; the note of one that died holds up nobody."""
    base = ImageReference.parse(f"{registry.host}/both{uuid7()}:v1")
    settings = EngineSettings(host=engine.host)
    async with Engine(settings, "1" * 12) as one, Engine(settings, "2" * 12) as two:
        presence = Presence(one)
        await presence.renew()
        second = TagLeases(two, nobody_known)
        async with TagLeases(one, nobody_known).lease(base):
            await images.tag(one, BUSYBOX, base)
            for entering in (second.turn(base), second.lease(base)):
                with pytest.raises(Temporary, match="another daemon") as caught:
                    await entering.__aenter__()
                assert caught.value.code is ErrorCode.CONFLICT
            assert await images.find(one, base)
            await presence.withdraw()
            async with second.turn(base), second.lease(base):
                pass
            assert await images.find(one, base)
        assert await images.find(one, base) is None


async def test_a_tag_that_somebody_else_moved_is_left_alone(
    client: Engine, pins: Pins, registry: Registry, tmp_path: Path
) -> None:
    """An operator who tags another image meanwhile means it."""
    base = ImageReference.parse(f"{registry.host}/moved{uuid7()}:v1")
    found = await images.inspect(client, BUSYBOX)
    built = (await run(client, request(tmp_path, "classic", "FROM scratch\nCOPY Dockerfile /\n")))[-1]
    assert found is not None
    assert isinstance(built, Built)
    async with pins.leases.turn(base), pins.leases.lease(base, image_id=found.id):
        await images.tag(client, built.image_id, base)
    now = await images.find(client, base)
    assert now is not None
    assert now.id == built.image_id
    await images.remove(client, base)


async def test_the_services_own_names_are_no_bases(pins: Pins) -> None:
    """They may stand for what another tenant built or fetched."""
    with pytest.raises(Permanent, match="reserved") as caught:
        async with pins.pin(ImageReference.parse("imagejobd/0190:1")):
            pass
    assert caught.value.code is ErrorCode.POLICY


async def test_the_beginning_of_an_image_id_is_no_base(pins: Pins, engine: PrivateEngine) -> None:
    """The engine would take it for the image; here it counts as a name that is missing."""
    short_id = engine.docker("inspect", "--format", "{{.Id}}", BUSYBOX).removeprefix("sha256:")[:12]
    with pytest.raises(Permanent, match="not in the engine"):
        async with pins.pin(ImageReference.parse(short_id, default_tag=None), policy="never"):
            pass


@pytest.fixture
async def frugal(engine: PrivateEngine) -> AsyncIterator[Pins]:
    """Pins bases, of which pruning keeps nothing."""
    async with Engine(EngineSettings(host=engine.host, bases_keep_bytes=1)) as client:
        yield Pins(client)


async def pulled(pins: Pins, base: ImageReference) -> None:
    async with pins.pin(base):
        pass


async def test_bases_that_nobody_uses_are_removed(
    client: Engine, pins: Pins, engine: PrivateEngine, registry: Registry
) -> None:
    """After `bases_keep_days`, each by its name; one that was pinned since stays."""
    old, used = publish(engine, registry), publish(engine, registry)
    for base in (old, used):
        await pulled(pins, base)
    for record in await pins.records.bases():
        pins.records.by_name[record.name] = msgspec.structs.replace(record, used_ms=1)
    await pulled(pins, used)
    await pins.bases.prune()
    assert not await is_there(client, old)
    assert await is_there(client, used, BUSYBOX)
    assert [record.name for record in await pins.records.bases()] == [str(used)]
    assert await images.remove(client, used)


async def test_bases_in_use_are_not_removed(
    client: Engine, frugal: Pins, engine: PrivateEngine, registry: Registry
) -> None:
    """Neither what a build has pinned nor what a container was made of; both go once nobody needs them."""
    base = ImageReference.parse(f"{registry.host}/base{uuid7()}:v1")
    # An image of its own: of another's, which has further names, the engine would take this one away.
    engine.docker("build", "--tag", str(base), "-", input=f"FROM {BUSYBOX}\nLABEL a={uuid7()}\n".encode())
    engine.docker("push", str(base))
    engine.docker("rmi", str(base))
    async with frugal.pin(base):
        await frugal.bases.prune()
        assert await is_there(client, base)
    container = engine.docker("create", "--network=none", str(base), "true")
    try:
        await frugal.bases.prune()
        assert await is_there(client, base)
    finally:
        engine.docker("rm", container)
    await frugal.bases.prune()
    assert not await is_there(client, base)
    assert await frugal.records.bases() == []


async def test_a_base_whose_tag_is_leased_is_not_forgotten(
    client: Engine, frugal: Pins, engine: PrivateEngine, registry: Registry
) -> None:
    """What the tag names meanwhile says nothing about the base: the next pruning removes it."""
    base = publish(engine, registry)
    await pulled(frugal, base)
    async with frugal.leases.turn(base), frugal.leases.lease(base):
        engine.docker("build", "--tag", str(base), "-", input=f"FROM {BUSYBOX}\nLABEL a={uuid7()}\n".encode())
        await frugal.bases.prune()
    assert await is_there(client, base)
    await frugal.bases.prune()
    assert not await is_there(client, base)


async def test_what_the_operator_has_put_there_is_not_removed(
    client: Engine, frugal: Pins, engine: PrivateEngine, registry: Registry, tmp_path: Path
) -> None:
    """What was there before the first build, however often it is used, and a name that means another image now."""
    before, moved = publish(engine, registry), publish(engine, registry)
    engine.docker("pull", str(before))
    async with frugal.pin(before, policy="always"):
        pass
    await pulled(frugal, moved)
    await run(client, request(tmp_path, "classic", "FROM scratch\nCOPY Dockerfile /\n", tags=(str(moved),)))
    await frugal.bases.prune()
    assert await is_there(client, before, moved)
    assert await frugal.records.bases() == []
    assert await images.remove(client, before)
    assert await images.remove(client, moved)


async def test_a_base_whose_tag_moved_on_is_removed_by_its_digest(
    client: Engine, frugal: Pins, engine: PrivateEngine, registry: Registry
) -> None:
    """A refreshed base leaves the old image without a tag, which is counted and removed too."""
    base = publish(engine, registry)
    await pulled(frugal, base)
    old = ImageReference.parse(f"{base.repository}@{registry.digest(base.path, 'v1')}")
    engine.docker("build", "--tag", str(base), "-", input=f"FROM {BUSYBOX}\nLABEL a={uuid7()}\n".encode())
    engine.docker("push", str(base))
    engine.docker("tag", BUSYBOX, str(base))
    engine.docker("pull", f"{old}")
    async with frugal.pin(base, policy="always") as pinned:
        assert pinned.pulled == [base]
    assert await images.find(client, old)
    await frugal.bases.prune()
    assert await frugal.records.bases() == []
    assert not await images.find(client, old)
    assert not await is_there(client, base)
