"""Names of images in a real engine, pulls from real registries, and what is pruned."""

import asyncio
import io
import tarfile
from contextlib import aclosing
from pathlib import Path

import pytest
from aiohttp import web
from builds import FROM_BASE, fake_engine, lines, request, run

from harness.base_image import BUSYBOX
from harness.engine import PrivateEngine
from harness.registry import Registry
from imagejobd.engine import images
from imagejobd.engine.build import prune_build_cache
from imagejobd.engine.client import Engine
from imagejobd.engine.stream import Built
from imagejobd.model.errors import ErrorCode, Permanent, Temporary
from imagejobd.model.job import uuid7
from imagejobd.model.reference import ImageReference


def new_name() -> ImageReference:
    return ImageReference.parse(f"imagejobd/{uuid7()}:1")


async def pull(client: Engine, reference: ImageReference) -> None:
    async with aclosing(images.pull(client, reference, None)) as transfers:
        async for _ in transfers:
            pass


def tiny_tar(content: str) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        member = tarfile.TarInfo("content")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content.encode()))
    return archive.getvalue()


async def test_inspect_knows_names_and_ids(client: Engine) -> None:
    """An image is found by name and by id; what is not there is None."""
    image = await images.inspect(client, BUSYBOX)
    assert image is not None
    assert BUSYBOX in (image.tags or [])
    assert await images.inspect(client, image.id) == image
    assert await images.inspect(client, new_name()) is None


async def test_tags_come_and_go(client: Engine) -> None:
    """A name that was given is listed by its repository until it is removed; again removed, it is said to be gone."""
    name = new_name()
    await images.tag(client, BUSYBOX, name)
    assert await images.list_tags(client, name.repository) == [str(name)]
    assert await images.remove(client, name) is True
    assert await images.remove(client, name) is False
    assert await images.list_tags(client, name.repository) == []


async def test_only_names_that_fit_are_listed(client: Engine) -> None:
    """All tags of one repository, or of all below a prefix; never another name of the same image."""
    word = f"list{uuid7()}"
    names = [ImageReference.parse(name) for name in (f"{word}/a:1", f"{word}/a:2", f"{word}/ab:1", f"{word}:1")]
    for name in names:
        await images.tag(client, BUSYBOX, name)
    assert await images.list_tags(client, f"{word}/a") == [f"{word}/a:1", f"{word}/a:2"]
    assert await images.list_tags(client, f"{word}/*") == [f"{word}/a:1", f"{word}/a:2", f"{word}/ab:1"]
    for name in names:
        await images.remove(client, name)


async def test_listing_while_other_images_go(client: Engine, engine: PrivateEngine) -> None:
    """An image that is removed at that moment is nobody's failure but its own."""
    names = [new_name() for _ in range(12)]
    for name in names:
        engine.docker("import", "-", str(name), input=tiny_tar(str(name)))
    removing = asyncio.gather(*(images.remove(client, name) for name in names))
    while not removing.done():
        await images.list_tags(client, "imagejobd/*")
    assert all(await removing)


async def test_a_list_that_never_comes_is_temporary(tmp_path: Path) -> None:
    """The containerd store answers 404 for an image that went; a list has no such answer of its own."""

    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"message": "content digest sha256:x: not found"}, status=404)

    async with fake_engine(tmp_path, answer) as client:
        with pytest.raises(Temporary, match="content digest") as caught:
            await images.list_tags(client, "x")
        assert caught.value.code is ErrorCode.CONFLICT


async def test_tagging_what_is_not_there_is_not_found(client: Engine) -> None:
    """A missing source is a permanent fault."""
    with pytest.raises(Permanent) as caught:
        await images.tag(client, new_name(), new_name())
    assert caught.value.code is ErrorCode.NOT_FOUND


@pytest.mark.parametrize("is_first_removed", [True, False])
async def test_removing_one_of_two_identical_images_leaves_the_other(
    client: Engine, tmp_path: Path, builder: str, is_first_removed: bool
) -> None:
    """Two identical builds share an id; taking away either name leaves the image under the other."""
    dockerfile = FROM_BASE + "LABEL identical=yes\n"
    names = [new_name(), new_name()]
    for name in names:
        await run(client, request(tmp_path, builder, dockerfile, tags=(str(name),)))
    gone, left = names if is_first_removed else reversed(names)
    assert await images.remove(client, gone)
    assert await images.inspect(client, left) is not None
    assert await images.remove(client, left)
    assert await images.inspect(client, left) is None


async def test_an_image_that_a_container_needs_is_a_temporary_conflict(
    client: Engine, engine: PrivateEngine, tmp_path: Path
) -> None:
    """Nothing is forced: the name stays until the container is gone."""
    name = new_name()
    await run(client, request(tmp_path, "classic", FROM_BASE + f"LABEL a={uuid7()}\n", tags=(str(name),)))
    container = engine.docker("create", "--network=none", str(name))
    with pytest.raises(Temporary) as caught:
        await images.remove(client, name)
    assert caught.value.code is ErrorCode.CONFLICT
    engine.docker("rm", container)
    assert await images.remove(client, name)


async def test_a_pulled_image_is_there(client: Engine, engine: PrivateEngine, registry: Registry) -> None:
    """After a pull the engine has the image under the name, by tag as by digest."""
    name = ImageReference.parse(f"{registry.host}/t{uuid7()}:v1")
    engine.docker("tag", BUSYBOX, str(name))
    engine.docker("push", str(name))
    engine.docker("rmi", str(name))
    await pull(client, name)
    assert await images.inspect(client, name) is not None
    by_digest = ImageReference(name.host, name.path, digest=registry.digest(name.path, "v1"))
    await pull(client, by_digest)
    assert await images.inspect(client, by_digest) is not None
    await images.remove(client, name)


async def test_pull_faults_tell_absent_from_unreachable(
    client: Engine, registry: Registry, private_registry: Registry
) -> None:
    """A missing image and missing rights are permanent, a registry that is down is temporary."""
    with pytest.raises(Permanent) as absent:
        await pull(client, ImageReference.parse(f"{registry.host}/absent:v1"))
    assert absent.value.code is ErrorCode.NOT_FOUND
    with pytest.raises(Permanent) as denied:
        await pull(client, ImageReference.parse(f"{private_registry.host}/any:v1"))
    assert denied.value.code is ErrorCode.DENIED
    with pytest.raises(Temporary) as down:
        await pull(client, ImageReference.parse("127.0.0.1:1/any:v1"))
    assert down.value.code is ErrorCode.REGISTRY_UNAVAILABLE


async def test_a_pull_that_just_ends_is_no_success(tmp_path: Path) -> None:
    """Without its closing status the image may not be there."""
    async with fake_engine(tmp_path, lines('{"status":"Pulling from x","id":"v1"}')) as client:
        with pytest.raises(Temporary, match="did not say"):
            await pull(client, new_name())


@pytest.mark.parametrize("body", [b"", b'{"Id":', b'{"Id":7,"SpaceReclaimed":"x"}', b'"\xff"', b"<html>"])
async def test_an_odd_answer_is_temporary(tmp_path: Path, body: bytes) -> None:
    """Status 200 with something else than an engine says, as a proxy before it may send, is no defect of ours."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=body)

    async with fake_engine(tmp_path, answer) as client:
        for asked in (images.inspect(client, "x"), images.list_tags(client, "x"), prune_build_cache(client, 1)):
            with pytest.raises(Temporary, match="not what an engine says") as caught:
                await asked
            assert caught.value.code is ErrorCode.ENGINE_UNAVAILABLE


@pytest.mark.parametrize(
    ("platform", "fits"),
    [
        ("arm64", True),
        ("linux/arm64", True),
        ("linux/aarch64", True),
        ("linux/arm64/v8", True),
        ("linux/amd64", False),
        ("linux/arm64/v9", False),
        ("windows/arm64", False),
    ],
)
def test_the_platform_of_an_image(platform: str, fits: bool) -> None:
    """Operating system, architecture and variant count, in the engine's spelling or uname's."""
    assert images.ImageInfo("sha256:x", os="linux", architecture="arm64").is_for(platform) is fits


async def test_pruning_empties_the_build_cache(client: Engine, engine: PrivateEngine, tmp_path: Path) -> None:
    """What is to be kept is; down to 0 bytes nothing is. A second pruning finds nothing, and builds go on working."""
    await run(client, request(tmp_path, "buildkit", FROM_BASE + f"RUN echo {uuid7()} > /unique\n"))
    assert await prune_build_cache(client, 1 << 40) == 0
    assert await prune_build_cache(client, 0) > 0
    assert await prune_build_cache(client, 0) == 0
    events = await run(client, request(tmp_path, "buildkit", FROM_BASE + "RUN true\n"))
    assert isinstance(events[-1], Built)
