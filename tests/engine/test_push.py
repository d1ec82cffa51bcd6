"""Pushes to real registries, and what a registry or engine may answer otherwise."""

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
from builds import fake_engine, lines

from harness.base_image import BUSYBOX
from harness.registry import PASSWORD, USERNAME, Registry
from imagejobd.engine import images
from imagejobd.engine.client import Engine
from imagejobd.engine.stream import Transfer
from imagejobd.model.errors import ErrorCode, Fault, Permanent, Temporary
from imagejobd.model.job import uuid7
from imagejobd.model.reference import ImageReference
from imagejobd.model.secrets import Credentials, Secret

GOOD = Credentials(USERNAME, Secret(PASSWORD))
BAD = Credentials(USERNAME, Secret("wrong-password"))
DIGEST = "sha256:" + "a" * 64
HERE = ImageReference.parse("127.0.0.1:1/app:v1")


async def pushed(client: Engine, reference: ImageReference, credentials: Credentials | None) -> images.Pushed:
    async with aclosing(images.push(client, reference, credentials)) as events:
        seen = [event async for event in events]
    assert isinstance(seen[-1], images.Pushed)
    assert all(isinstance(event, Transfer) for event in seen[:-1])
    return seen[-1]


@pytest.fixture
async def named(client: Engine) -> AsyncIterator[list[ImageReference]]:
    """A list whose references are removed from the engine in the end."""
    names: list[ImageReference] = []
    yield names
    for name in names:
        await images.remove(client, name)


async def test_a_push_is_proved_by_the_registrys_digest(
    client: Engine, registry: Registry, named: list[ImageReference]
) -> None:
    """The digest that is reported is the one under which the registry has the tag."""
    target = ImageReference.parse(f"{registry.host}/t{uuid7()}:v1")
    named.append(target)
    await images.tag(client, BUSYBOX, target)
    done = await pushed(client, target, None)
    assert done.digest == registry.digest(target.path, "v1")
    assert done.size > 0


async def test_a_push_tells_the_end_of_each_part(
    client: Engine, registry: Registry, named: list[ImageReference]
) -> None:
    """Parts have a short id of their own, and what was sent once is there already when it is pushed again."""
    target = ImageReference.parse(f"{registry.host}/t{uuid7()}:v1")
    named.append(target)
    await images.tag(client, BUSYBOX, target)
    first, second = [await pushed(client, target, None) for _ in range(2)]
    assert all(status == "Pushed" or status.startswith("Mounted from ") for status in first.parts.values())
    assert first.parts.keys() == second.parts.keys()
    assert all(status.lower().endswith("already exists") for status in second.parts.values())
    image = await images.inspect(client, target)
    assert image is not None
    with registry.request("GET", f"/v2/{target.path}/manifests/v1") as answer:
        layers = [layer["digest"] for layer in json.load(answer)["layers"]]
    names = {digest.removeprefix("sha256:")[:12] for digest in (*image.layers, *layers)}
    assert names & first.parts.keys()


async def test_only_the_one_tag_is_pushed(client: Engine, registry: Registry, named: list[ImageReference]) -> None:
    """Other tags of the same repository in the engine stay there."""
    target = ImageReference.parse(f"{registry.host}/t{uuid7()}:v1")
    named += [target, target.with_tag("other")]
    for name in named:
        await images.tag(client, BUSYBOX, name)
    await pushed(client, target, None)
    assert registry.tags(target.path) == ["v1"]


async def test_credentials_open_a_private_registry(
    client: Engine, private_registry: Registry, named: list[ImageReference]
) -> None:
    """With the right password the push goes through."""
    target = ImageReference.parse(f"{private_registry.host}/t{uuid7()}:v1")
    named.append(target)
    await images.tag(client, BUSYBOX, target)
    assert (await pushed(client, target, GOOD)).digest == private_registry.digest(target.path, "v1")


@pytest.mark.parametrize("credentials", [None, BAD])
async def test_a_denied_push_is_permanent_and_shows_no_secret(
    client: Engine, private_registry: Registry, named: list[ImageReference], credentials: Credentials | None
) -> None:
    """Without rights the fault is `denied`, names the image and what to look at, and holds no password."""
    target = ImageReference.parse(f"{private_registry.host}/t{uuid7()}:v1")
    named.append(target)
    await images.tag(client, BUSYBOX, target)
    with pytest.raises(Permanent, match="check the user name") as caught:
        await pushed(client, target, credentials)
    assert caught.value.code is ErrorCode.DENIED
    assert str(target) in caught.value.message
    assert "wrong-password" not in caught.value.message


async def test_an_unknown_tag_is_not_found(client: Engine, registry: Registry) -> None:
    """Pushing what the engine does not have is permanent."""
    with pytest.raises(Permanent) as caught:
        await pushed(client, ImageReference.parse(f"{registry.host}/absent:v1"), None)
    assert caught.value.code is ErrorCode.NOT_FOUND


async def test_a_registry_that_is_down_is_temporary(client: Engine, named: list[ImageReference]) -> None:
    """A refused connection may be over soon."""
    named.append(HERE)
    await images.tag(client, BUSYBOX, HERE)
    with pytest.raises(Temporary) as caught:
        await pushed(client, HERE, None)
    assert caught.value.code is ErrorCode.REGISTRY_UNAVAILABLE


async def test_a_reference_without_tag_is_refused(client: Engine) -> None:
    """The engine would push every tag of the repository."""
    with pytest.raises(Permanent, match="no tag"):
        await pushed(client, ImageReference.parse("127.0.0.1:1/app", default_tag=None), None)


@pytest.mark.parametrize(
    "line",
    [
        f'{{"status":"v1: digest: {DIGEST} size: 739"}}',
        f'{{"progressDetail":{{}},"aux":{{"Tag":"v1","Digest":"{DIGEST}","Size":739}}}}',
    ],
)
async def test_the_digest_is_read_from_either_place(tmp_path: Path, line: str) -> None:
    """The containerd image store has it in the status text only."""
    async with fake_engine(tmp_path, lines(line, '{"aux":{"manifestPushedInsteadOfIndex":true}}')) as client:
        assert await pushed(client, HERE, None) == images.Pushed(DIGEST, 739)


@pytest.mark.parametrize("line", ['{"status":"done"}', f'{{"status":"v2: digest: {DIGEST} size: 739"}}'])
async def test_no_digest_of_this_tag_is_no_success(tmp_path: Path, line: str) -> None:
    """A stream that ends quietly, or names another tag's digest, did not push this one."""
    async with fake_engine(tmp_path, lines(line)) as client:
        with pytest.raises(Temporary, match="no digest"):
            await pushed(client, HERE, None)


@pytest.mark.parametrize(
    ("text", "kind", "code"),
    [
        ("received unexpected HTTP status: 503 Service Unavailable", Temporary, ErrorCode.REGISTRY_UNAVAILABLE),
        ("toomanyrequests: slow down", Temporary, ErrorCode.REGISTRY_UNAVAILABLE),
        (
            "write tcp 10.0.0.1:1->10.0.0.2:2: write: connection reset by peer",
            Temporary,
            ErrorCode.REGISTRY_UNAVAILABLE,
        ),
        ("unexpected EOF", Temporary, ErrorCode.REGISTRY_UNAVAILABLE),
        ("denied: requested access to the resource is denied", Permanent, ErrorCode.DENIED),
        ("unauthorized: authentication required", Permanent, ErrorCode.DENIED),
        (
            "push access denied, repository does not exist or may require authorization: authorization failed: no basic"
            " auth credentials",
            Permanent,
            ErrorCode.DENIED,
        ),
        ("manifest unknown", Permanent, ErrorCode.NOT_FOUND),
        ("manifest invalid: tag is immutable", Permanent, ErrorCode.PUSH_FAILED),
    ],
)
async def test_the_engines_words_about_a_registry_are_understood(
    tmp_path: Path, text: str, kind: type[Fault], code: ErrorCode
) -> None:
    """Network, 5xx and 429 are tried again; denied and refused content are not."""
    async with fake_engine(tmp_path, lines(f'{{"errorDetail":{{"message":"{text}"}}}}')) as client:
        with pytest.raises(kind) as caught:
            await pushed(client, HERE, None)
        assert caught.value.code is code
