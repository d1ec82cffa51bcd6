"""Manifests and blobs of one repository: at a real registry, and at those that misbehave in their own ways."""

import json
import threading
from typing import Any

import pytest
from registry_content import described, digest_of, make_image, make_index, put_blob, put_image, put_manifest
from repositories import error, reader, writer

from harness.proxy import Answer, DropResponseHeader, FaultProxy, FlipByte
from harness.registry import Registry
from harness.services import require
from imagejobd.model.errors import ErrorCode, Permanent, Temporary
from imagejobd.registry import repository as repository_module
from imagejobd.registry.client import RegistryClient
from imagejobd.registry.errors import ERRORS_MAX
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
from imagejobd.registry.repository import IN_PLACE_MAX_BYTES, BlobUnknown

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
        Answer(400),
        Answer(405),
        Answer(501),
    ],
)
async def test_head_answered_wrongly(
    registry: Registry, proxy: FaultProxy, client: RegistryClient, fault: Answer | DropResponseHeader
) -> None:
    """A server that leaves the digest out, or knows no HEAD (400, 404, 405, 501), is asked with GET and its bytes are
    hashed."""
    manifest = put_image(registry, "head/one", "1", make_image(b"layer"))
    proxy.add("HEAD", MANIFESTS, fault)
    assert await reader(client, proxy.host, "head/one").head_manifest("1") == manifest.descriptor
    assert [seen.method for seen in proxy.requests] == ["HEAD", "GET"]


async def test_head_that_breaks_the_server(registry: Registry, proxy: FaultProxy, client: RegistryClient) -> None:
    """Where HEAD always ends in a 500, GET still finds the manifest; overload (429, 503) stays what it is."""
    manifest = put_image(registry, "head/one", "1", make_image(b"layer"))
    proxy.add("HEAD", MANIFESTS, Answer(500), times=None)
    repository = reader(client, proxy.host, "head/one")
    assert await repository.head_manifest("1") == manifest.descriptor
    for status in (429, 503):
        proxy.reset()
        proxy.add("HEAD", MANIFESTS, Answer(status), times=None)
        with pytest.raises(Temporary):
            await repository.head_manifest("1")
        assert proxy.count("GET", MANIFESTS) == 0


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
    assert not await writer(client, proxy.host, "not/yet").has_blob(NOWHERE, 6)
    for asked in (
        reader(client, proxy.host, "not/yet").head_manifest("1"),
        reader(client, proxy.host, "n").has_blob("x", 6),
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


async def test_wrong_digest_in_the_header(registry: Registry, proxy: FaultProxy, client: RegistryClient) -> None:
    """Where the header of a tag names another digest than its bytes have, and the registry has these very bytes under
    their own, what was hashed counts."""
    image = put_image(registry, "get/lie", "1", make_image(b"layer")).raw
    manifest = parse_manifest(image, OCI_MANIFEST)
    headers = {"Content-Type": OCI_MANIFEST, "Docker-Content-Digest": NOWHERE}
    proxy.add("GET", MANIFESTS, Answer(200, headers, image))
    assert await reader(client, proxy.host, "get/lie").get_manifest("1") == manifest
    assert [seen.path.rpartition("/")[2] for seen in proxy.requests] == ["1", manifest.digest]


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
        blob = put_blob(registry, "blobs/one", content)
        assert await repository.has_blob(blob.digest, blob.size)
        for status in (405, 501):
            proxy.add("HEAD", BLOBS, Answer(status))
            assert await repository.has_blob(blob.digest, blob.size)
    assert not await repository.has_blob(NOWHERE, 6)
    proxy.add("HEAD", BLOBS, Answer(405))
    assert not await repository.has_blob(NOWHERE, 6)


PAGE = b"<html>please log in</html>"


@pytest.mark.parametrize("content", [b"a blob that is there", b""])
@pytest.mark.parametrize("answer", [Answer(200, {}, PAGE), DropResponseHeader("Content-Length")])
async def test_blob_head_of_another_length(
    registry: Registry,
    proxy: FaultProxy,
    client: RegistryClient,
    content: bytes,
    answer: Answer | DropResponseHeader,
) -> None:
    """A HEAD that says another length, or none, is checked with GET of one byte."""
    repository = reader(client, proxy.host, "blobs/page")
    blob = put_blob(registry, "blobs/page", content)
    proxy.add("HEAD", BLOBS, answer)
    assert await repository.has_blob(blob.digest, blob.size)
    assert proxy.seen("GET", BLOBS)[0].headers["Range"] == "bytes=0-0"


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, {}, PAGE),
        Answer(206, {"Content-Range": f"bytes 0-0/{len(PAGE)}"}, b"<"),
        Answer(206, {"Content-Range": "bytes 0-0/*"}, b"<"),
        Answer(404),
        Answer(416),
    ],
    ids=lambda answer: str(answer.status),
)
async def test_blob_that_ends_on_a_page(proxy: FaultProxy, client: RegistryClient, answer: Answer) -> None:
    """Where a redirect ends on a page of a login, no blob is there: it is sent."""
    target = f"http://{proxy.host}/login"
    proxy.add("HEAD|GET", BLOBS, Answer(307, {"Location": target}), times=None)
    proxy.add("HEAD", "/login", Answer(200, {}, PAGE), times=None)
    proxy.add("GET", "/login", answer, times=None)
    blob = described(b"a blob that is not there")
    assert not await reader(client, proxy.host, "blobs/page").has_blob(blob.digest, blob.size)


async def test_server_without_head_that_is_not_well(proxy: FaultProxy, client: RegistryClient) -> None:
    """Where HEAD is not known, what GET answers is judged: 503 may be over in a moment."""
    for path in (MANIFESTS, BLOBS):
        proxy.add("HEAD", path, Answer(405), times=None)
        proxy.add("GET", path, Answer(503, {"Retry-After": "600"}), times=None)
    repository = reader(client, proxy.host, "head/one")
    for asked in (repository.head_manifest("1"), repository.has_blob(NOWHERE, 6)):
        with pytest.raises(Temporary, match="answered 503") as fault:
            await asked
        assert fault.value.retry_after_s == 600


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
        (Answer(413), ErrorCode.TOO_LARGE, "too large for it"),
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


async def test_put_at_a_read_only_registry(client: RegistryClient) -> None:
    """A registry in maintenance says 405: final, with what to do."""
    require("docker-registry")
    with Registry(read_only=True) as read_only, pytest.raises(Permanent, match="read-only") as refused:
        await writer(client, read_only.host, "put/one").put_manifest("1", make_image().manifest)
    assert refused.value.code is ErrorCode.DENIED
