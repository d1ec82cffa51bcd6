"""Manifests put into a repository: at a real registry, and at those that say no in their own ways."""

import json

import pytest
from registry_content import digest_of, make_image, make_index, put_blob, put_image
from repositories import error, writer

from harness.proxy import Answer, FaultProxy
from harness.registry import Registry
from harness.services import require
from imagejobd.model.errors import ErrorCode, Permanent
from imagejobd.registry.client import RegistryClient
from imagejobd.registry.manifest import (
    OCI_MANIFEST,
)
from imagejobd.registry.repository import ERRORS_MAX, BlobUnknown

NOWHERE = "sha256:" + "0" * 64
MANIFESTS = "/v2/.*/manifests/.*"


async def test_put(registry: Registry, proxy: FaultProxy, client: RegistryClient) -> None:
    """Bytes and type arrive as they are, under a tag or a digest; this registry keeps no referrers."""
    image = make_image(b"put-layer")
    for blob in image.blobs.values():
        put_blob(registry, "put/one", blob)
    repository = writer(client, proxy.host, "put/one")
    for name in (image.manifest.digest, "1"):
        assert await repository.put_manifest(name, image.manifest) is False
        assert registry.manifest("put/one", name) == image.manifest.raw
    assert {seen.headers["Content-Type"] for seen in proxy.seen("PUT")} == {OCI_MANIFEST}


async def test_put_at_a_registry_that_keeps_referrers(proxy: FaultProxy, client: RegistryClient) -> None:
    """`OCI-Subject` says that no fallback tag is needed."""
    proxy.add("PUT", MANIFESTS, Answer(201, {"OCI-Subject": NOWHERE}))
    assert await writer(client, proxy.host, "put/one").put_manifest("1", make_image().manifest) is True


async def test_put_before_its_content(registry: Registry, client: RegistryClient) -> None:
    """The missing blobs of an image, and the missing children of an index, are named."""
    image = make_image(b"never pushed layer", config=b'{"never":1}')
    repository = writer(client, registry.host, "put/missing")
    with pytest.raises(BlobUnknown) as missing:
        await repository.put_manifest("1", image.manifest)
    assert set(missing.value.digests) == set(image.blobs)
    with pytest.raises(BlobUnknown) as missing:
        await repository.put_manifest("1", make_index(image.manifest))
    assert missing.value.digests == (image.manifest.digest,)


async def test_put_before_a_part_of_its_content(registry: Registry, client: RegistryClient) -> None:
    """Only what a real registry misses is named: one layer of many, one child of many, never the manifest itself."""
    there, absent = b"layer that is there", b"layer that is not"
    image = make_image(there, absent)
    for content in (there, b"{}"):
        put_blob(registry, "put/part", content)
    repository = writer(client, registry.host, "put/part")
    for name in ("1", image.manifest.digest):
        with pytest.raises(BlobUnknown) as missing:
            await repository.put_manifest(name, image.manifest)
        assert missing.value.digests == (digest_of(absent),)
    child = put_image(registry, "put/part", "child", make_image(there))
    index = make_index(child, image.manifest)
    for name in ("1", index.digest):
        with pytest.raises(BlobUnknown) as missing:
            await repository.put_manifest(name, index)
        assert missing.value.digests == (image.manifest.digest,)


async def test_what_else_an_answer_names(proxy: FaultProxy, client: RegistryClient) -> None:
    """Digests count where they are said to be missing: in `detail`, else in the message, and not in other errors."""
    manifest = make_image().manifest
    first, second, other = (digest_of(letter) for letter in (b"a", b"b", b"c"))
    answer = {
        "errors": [
            {"code": "MANIFEST_BLOB_UNKNOWN", "message": f"of {other}", "detail": {"digest": first}},
            {"code": "blob_unknown", "message": f"Layers with digests {second} of {manifest.digest} do not exist"},
            {"code": "UNKNOWN", "message": "", "detail": other},
        ],
        "request": other,
    }
    proxy.add("PUT", MANIFESTS, Answer(400, {}, json.dumps(answer).encode()))
    with pytest.raises(BlobUnknown) as missing:
        await writer(client, proxy.host, "put/one").put_manifest("1", manifest)
    assert missing.value.digests == (first, second)


async def test_endless_errors(proxy: FaultProxy, client: RegistryClient) -> None:
    """More errors than a manifest can cause are none of the spec's, and the status has the say."""
    missing = json.dumps({"code": "BLOB_UNKNOWN"})
    answer = f'{{"errors":[{",".join([missing] * ERRORS_MAX)}]}}'.encode()
    proxy.add("PUT", MANIFESTS, Answer(400, {}, answer))
    with pytest.raises(Permanent):
        await writer(client, proxy.host, "put/one").put_manifest("1", make_image().manifest)


@pytest.mark.parametrize("code", ["MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN", "MANIFEST_UNKNOWN"])
@pytest.mark.parametrize("status", [400, 404, 500])
async def test_content_missing_with_any_status(
    proxy: FaultProxy, client: RegistryClient, code: str, status: int
) -> None:
    """An unpushed foreign layer is a 500 that carries MANIFEST_BLOB_UNKNOWN: the body counts before the status."""
    proxy.add("PUT", MANIFESTS, Answer(status, {}, error(code, "blob unknown", {"digest": NOWHERE})), times=None)
    with pytest.raises(BlobUnknown) as missing:
        await writer(client, proxy.host, "put/one").put_manifest("1", make_image().manifest)
    assert missing.value.digests == (NOWHERE,)
    assert missing.value.code is ErrorCode.COPY_FAILED


IMMUTABLE = [
    Answer(412, {}, error("PRECONDITION", "Failed to process request due to 'app:1' configured as immutable.")),
    Answer(400, {}, error("TAG_INVALID", "The image tag '1' already exists in the 'app' repository and is immutable")),
    Answer(400, {}, error("UNKNOWN", "tag=1 cannot be overwritten because app is an immutable repository")),
    Answer(403, {}, error("DENIED", "tag is immutable")),
    Answer(409, {}, b"conflict"),
    Answer(405, {}, error("UNSUPPORTED", "The operation is disallowed on this resource: the tag is locked")),
]


@pytest.mark.parametrize("answer", IMMUTABLE, ids=lambda answer: str(answer.status))
async def test_immutable_tag(registry: Registry, proxy: FaultProxy, client: RegistryClient, answer: Answer) -> None:
    """An immutable tag that points at this very digest is success; one that points elsewhere is a clear conflict."""
    there = put_image(registry, "put/fixed", "1", make_image(b"there"))
    other = put_image(registry, "put/fixed", "2", make_image(b"other"))
    proxy.add("PUT", MANIFESTS, answer, times=None)
    repository = writer(client, proxy.host, "put/fixed")
    await repository.put_manifest("1", there)
    with pytest.raises(Permanent, match="immutable there and points elsewhere") as conflict:
        await repository.put_manifest("1", other)
    assert conflict.value.code is ErrorCode.CONFLICT


@pytest.mark.parametrize(
    ("answer", "code", "told"),
    [
        (Answer(400, {}, error("MANIFEST_INVALID", "bad layer")), ErrorCode.COPY_FAILED, "bad layer"),
        (Answer(403, {}, error("DENIED", "quota")), ErrorCode.DENIED, "quota"),
        (Answer(404, {}, error("NAME_UNKNOWN", "no repository")), ErrorCode.NOT_FOUND, "create it first"),
        (Answer(413), ErrorCode.TOO_LARGE, "too many for it"),
        (Answer(201, {"Docker-Content-Digest": NOWHERE}), ErrorCode.COPY_FAILED, "stored"),
    ],
)
async def test_manifest_not_taken(
    registry: Registry, proxy: FaultProxy, client: RegistryClient, answer: Answer, code: ErrorCode, told: str
) -> None:
    """Any other refusal ends at once with the registry's own words, though the tag exists with another digest."""
    put_image(registry, "put/fixed", "1", make_image(b"there"))
    proxy.add("PUT", MANIFESTS, answer)
    with pytest.raises(Permanent, match=told) as refused:
        await writer(client, proxy.host, "put/fixed").put_manifest("1", make_image(b"other").manifest)
    assert refused.value.code is code


async def test_read_only_registry(client: RegistryClient) -> None:
    """A registry in maintenance says 405: final, with what to do."""
    require("docker-registry")
    with Registry(read_only=True) as read_only, pytest.raises(Permanent, match="read-only") as refused:
        await writer(client, read_only.host, "put/one").put_manifest("1", make_image().manifest)
    assert refused.value.code is ErrorCode.DENIED
