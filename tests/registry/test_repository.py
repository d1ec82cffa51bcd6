"""Manifests and blobs of one repository, asked of a real registry and of one that misbehaves."""

import threading
from typing import Any

import pytest
from registry_content import make_image, make_index, put_blob, put_image, put_manifest
from repositories import error, reader, writer

from harness.proxy import Answer, DropResponseHeader, FaultProxy, FlipByte
from harness.registry import Registry
from imagejobd.model.errors import ErrorCode, Permanent, Temporary
from imagejobd.registry import repository as repository_module
from imagejobd.registry.client import RegistryClient
from imagejobd.registry.manifest import (
    ACCEPT,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    MANIFEST_MAX_BYTES,
    OCI_INDEX,
    OCI_MANIFEST,
    SCHEMA1_SIGNED,
    Manifest,
    parse_manifest,
)
from imagejobd.registry.repository import IN_PLACE_MAX_BYTES

MANIFESTS = "/v2/.*/manifests/.*"
BLOBS = "/v2/.*/blobs/sha.*"
NOWHERE = "sha256:" + "0" * 64


@pytest.mark.parametrize("media_type", [OCI_MANIFEST, DOCKER_MANIFEST])
async def test_head(registry: Registry, proxy: FaultProxy, client: RegistryClient, media_type: str) -> None:
    """Tag and digest lead to digest, size and type in one request, which accepts every type."""
    manifest = put_image(registry, "head/one", "1", make_image(b"layer", media_type=media_type))
    repository = reader(client, proxy.host, "head/one")
    assert await repository.head_manifest("1") == manifest.descriptor
    assert await repository.head_manifest(manifest.digest) == manifest.descriptor
    assert [(seen.method, seen.headers["Accept"]) for seen in proxy.requests] == [("HEAD", ACCEPT)] * 2


@pytest.mark.parametrize("name", ["none", NOWHERE])
async def test_head_of_nothing(registry: Registry, proxy: FaultProxy, client: RegistryClient, name: str) -> None:
    """What is not there is None, in one request at a registry that knows HEAD."""
    put_image(registry, "head/one", "1", make_image(b"layer"))
    assert await reader(client, proxy.host, "head/one").head_manifest(name) is None
    assert await reader(client, proxy.host, "head/nowhere").head_manifest(name) is None
    assert [seen.method for seen in proxy.requests] == ["HEAD", "HEAD"]


@pytest.mark.parametrize(
    "fault",
    [
        DropResponseHeader("Docker-Content-Digest"),
        DropResponseHeader("Content-Length"),
        Answer(200, {"Docker-Content-Digest": "sha256:short", "Content-Length": "7"}),
        Answer(404),
        Answer(404, {"Content-Type": "text/html"}),
        Answer(405),
    ],
)
async def test_head_answered_wrongly(
    registry: Registry, proxy: FaultProxy, client: RegistryClient, fault: Answer | DropResponseHeader
) -> None:
    """A server that leaves the digest out, or knows no HEAD (404, 405), is asked with GET and its bytes are hashed."""
    manifest = put_image(registry, "head/one", "1", make_image(b"layer"))
    proxy.add("HEAD", MANIFESTS, fault)
    assert await reader(client, proxy.host, "head/one").head_manifest("1") == manifest.descriptor


async def test_head_and_get_without_a_manifest(proxy: FaultProxy, client: RegistryClient) -> None:
    """What even GET does not find is not there."""
    proxy.add("HEAD|GET", MANIFESTS, Answer(404), times=None)
    assert await reader(client, proxy.host, "head/one").head_manifest("1") is None
    assert [seen.method for seen in proxy.requests] == ["HEAD", "GET"]


async def test_head_of_a_corrupt_child(registry: Registry, proxy: FaultProxy, client: RegistryClient) -> None:
    """Bytes that are not what their digest names are not there: a push replaces them."""
    manifest = put_image(registry, "head/one", "1", make_image(b"layer"))
    proxy.add("HEAD", MANIFESTS, Answer(405))
    proxy.add("GET", MANIFESTS, FlipByte(5))
    assert await writer(client, proxy.host, "head/one").head_manifest(manifest.digest) is None


async def test_forbidden_head(proxy: FaultProxy, client: RegistryClient) -> None:
    """403 on a target's manifest is "absent": the push will make the repository. For a reader it is final."""
    proxy.add("HEAD|GET", "/v2/.*", Answer(403, {}, error("DENIED")), times=None)
    assert await writer(client, proxy.host, "not/yet").head_manifest("1") is None
    assert not await writer(client, proxy.host, "not/yet").has_blob(NOWHERE)
    for asked in (
        reader(client, proxy.host, "not/yet").head_manifest("1"),
        reader(client, proxy.host, "n").has_blob("x"),
    ):
        with pytest.raises(Permanent) as denied:
            await asked
        assert denied.value.code is ErrorCode.DENIED


async def test_get(registry: Registry, client: RegistryClient) -> None:
    """Images and indexes of both families come back byte for byte, by tag and by digest."""
    for image_type, index_type in ((OCI_MANIFEST, OCI_INDEX), (DOCKER_MANIFEST, DOCKER_LIST)):
        image = put_image(registry, "get/one", "image", make_image(b"layer", media_type=image_type))
        index = make_index(image, media_type=index_type)
        put_manifest(registry, "get/one", "index", index)
        repository = reader(client, registry.host, "get/one")
        assert await repository.get_manifest("image") == image
        assert await repository.get_manifest("index") == index
        assert await repository.get_manifest(index.digest) == index


async def test_large_manifest_is_read_aside(
    proxy: FaultProxy, client: RegistryClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others go on while a large manifest is hashed and parsed; a small one is not worth a thread."""
    threads: list[int] = []

    def watched(raw: bytes, content_type: str, **more: Any) -> Manifest:
        threads.append(threading.get_ident())
        return parse_manifest(raw, content_type, **more)

    monkeypatch.setattr(repository_module, "parse_manifest", watched)
    for padding in (0, IN_PLACE_MAX_BYTES):
        raw = b'{"layers":[]}' + b" " * padding
        proxy.add("GET", MANIFESTS, Answer(200, {"Content-Type": OCI_MANIFEST}, raw))
        assert (await reader(client, proxy.host, "get/one").get_manifest("1")).raw == raw
    assert threads[0] == threading.get_ident() != threads[1]


async def test_corrupt_manifest(registry: Registry, proxy: FaultProxy, client: RegistryClient) -> None:
    """One wrong byte is noticed, by the digest asked for or by the one that the registry names for its tag."""
    manifest = put_image(registry, "get/one", "1", make_image(b"layer"))
    proxy.add("GET", MANIFESTS, FlipByte(40), times=None)
    for name in ("1", manifest.digest):
        with pytest.raises(Permanent, match="corrupt") as corrupt:
            await reader(client, proxy.host, "get/one").get_manifest(name)
        assert corrupt.value.code is ErrorCode.COPY_FAILED


async def test_get_of_nothing(registry: Registry, client: RegistryClient) -> None:
    """A manifest that is not there is said to be so, by its name."""
    with pytest.raises(Permanent, match=r"get/nowhere:1") as absent:
        await reader(client, registry.host, "get/nowhere").get_manifest("1")
    assert absent.value.code is ErrorCode.NOT_FOUND


@pytest.mark.parametrize(
    ("content_type", "body", "code"),
    [
        (SCHEMA1_SIGNED, b'{"schemaVersion":1,"fsLayers":[]}', ErrorCode.INVALID),
        (OCI_MANIFEST, b'{"manifests":[]}', ErrorCode.INVALID),
        (OCI_MANIFEST, b"{" * 10_000, ErrorCode.INVALID),
        (OCI_MANIFEST, b" " * (MANIFEST_MAX_BYTES + 1), ErrorCode.TOO_LARGE),
    ],
)
async def test_manifest_that_is_refused(
    proxy: FaultProxy, client: RegistryClient, content_type: str, body: bytes, code: ErrorCode
) -> None:
    """Schema 1, lies, endless nesting and endless bytes are refused with the reason."""
    proxy.add("GET", MANIFESTS, Answer(200, {"Content-Type": content_type}, body))
    with pytest.raises(Permanent, match=proxy.host) as refused:
        await reader(client, proxy.host, "get/one").get_manifest("1")
    assert refused.value.code is code


async def test_blobs(registry: Registry, proxy: FaultProxy, client: RegistryClient) -> None:
    """A blob is there or not, at servers without HEAD too, and an empty one as well."""
    repository = reader(client, proxy.host, "blobs/one")
    for content in (b"a blob", b""):
        digest = put_blob(registry, "blobs/one", content).digest
        assert await repository.has_blob(digest)
        proxy.add("HEAD", BLOBS, Answer(405))
        assert await repository.has_blob(digest)
    assert not await repository.has_blob(NOWHERE)
    proxy.add("HEAD", BLOBS, Answer(405))
    assert not await repository.has_blob(NOWHERE)


async def test_server_without_head_that_is_not_well(proxy: FaultProxy, client: RegistryClient) -> None:
    """Where HEAD is not known, what GET answers is judged: 503 may be over in a moment."""
    for path in (MANIFESTS, BLOBS):
        proxy.add("HEAD", path, Answer(405), times=None)
        proxy.add("GET", path, Answer(503, {"Retry-After": "600"}), times=None)
    repository = reader(client, proxy.host, "head/one")
    for asked in (repository.head_manifest("1"), repository.has_blob(NOWHERE)):
        with pytest.raises(Temporary, match="answered 503") as fault:
            await asked
        assert fault.value.retry_after_s == 600
