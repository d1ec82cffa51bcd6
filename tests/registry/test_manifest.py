"""What manifests say, and what is refused of those that lie, do not end, or are of a bygone age."""

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagejobd.model.errors import ErrorCode, Permanent
from imagejobd.registry.manifest import (
    ANNOTATIONS_MAX,
    COMMAS_MAX,
    DESCRIPTORS_MAX,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    MANIFEST_MAX_BYTES,
    OCI_INDEX,
    OCI_MANIFEST,
    QUOTE_MAX_CHARS,
    SCHEMA1,
    SCHEMA1_SIGNED,
    SIZE_MAX_BYTES,
    Descriptor,
    Manifest,
    Platform,
    parse_manifest,
)

A, B, C = (f"sha256:{letter * 64}" for letter in "abc")
EMPTY = "application/vnd.oci.empty.v1+json"
GENERIC = "application/json"


def entry(digest: str, size: int = 5, **more: Any) -> dict[str, Any]:
    return {"digest": digest, "size": size} | more


def parse(content: Any, content_type: str = "", **more: Any) -> Manifest:
    return parse_manifest(json.dumps(content).encode(), content_type, **more)


def refused(raw: bytes, content_type: str = "", **more: Any) -> Permanent:
    with pytest.raises(Permanent) as caught:
        parse_manifest(raw, content_type, **more)
    assert len(caught.value.message) < 500
    return caught.value


def test_a_platform_fits_a_message() -> None:
    """What a stranger calls a platform stays on one line that prints and ends."""
    child = entry(A, platform={"os": "x" * 100_000, "architecture": "\x1b[31m\n", "variant": "v7"})
    name = str(parse({"manifests": [child]}, OCI_INDEX).children[0].platform)
    assert name.isprintable()
    assert len(name) <= QUOTE_MAX_CHARS
    assert str(Platform("linux", "arm", "v7")) == "linux/arm/v7"


@pytest.mark.parametrize("media_type", [DOCKER_MANIFEST, OCI_MANIFEST])
@pytest.mark.parametrize("says_it_itself", [True, False])
def test_image(media_type: str, says_it_itself: bool) -> None:
    """An image names its config first, then its layers in their order; its type comes from the body or the header."""
    content = {"schemaVersion": 2, "config": entry(A, mediaType="x/config"), "layers": [entry(B, 7), entry(C, 9)]}
    if says_it_itself:
        content["mediaType"] = media_type
    manifest = parse(content, "" if says_it_itself else f"{media_type}; charset=utf-8")
    assert manifest.media_type == media_type
    assert [(blob.digest, blob.size) for blob in manifest.blobs] == [(A, 5), (B, 7), (C, 9)]
    assert manifest.blobs[0].media_type == "x/config"
    assert manifest.children == ()
    assert manifest.digest == f"sha256:{hashlib.sha256(manifest.raw).hexdigest()}"
    assert manifest.descriptor == Descriptor(digest=manifest.digest, size=len(manifest.raw), media_type=media_type)


@pytest.mark.parametrize("media_type", [DOCKER_LIST, OCI_INDEX])
def test_index(media_type: str) -> None:
    """An index names its children with their platforms; what nobody knows is ignored."""
    arm = {"os": "linux", "architecture": "arm", "variant": "v7", "os.version": "1", "features": ["x"]}
    content = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "manifests": [entry(A, mediaType=OCI_MANIFEST, platform=arm), entry(B, annotations={"k": "v"})],
        "annotations": {"a": "b"},
        "future": {"deep": [1, None]},
    }
    manifest = parse(content, media_type)
    assert manifest.blobs == ()
    assert [child.digest for child in manifest.children] == [A, B]
    assert manifest.children[0].platform == Platform("linux", "arm", "v7")
    assert manifest.children[1].annotations == {"k": "v"}


def test_artifact() -> None:
    """An artifact, of a type of its own and with a subject, has an empty config and layers of any type; inline data is
    ignored."""
    content = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": "application/vnd.example.sbom",
        "config": entry(A, 2, mediaType=EMPTY, data="e30="),
        "layers": [entry(B, mediaType="text/spdx+json"), entry(B, mediaType="text/spdx+json")],
        "subject": entry(C, mediaType=OCI_MANIFEST),
    }
    manifest = parse(content, OCI_MANIFEST)
    assert manifest.media_type == OCI_MANIFEST
    assert [blob.digest for blob in manifest.blobs] == [A, B, B]


@pytest.mark.parametrize(
    ("content", "children", "blobs"),
    [
        ({"blobs": [entry(A)], "artifactType": "x/y", "subject": entry(C)}, 0, 1),
        ({"artifactType": "x/y", "subject": entry(C)}, 0, 0),
        ({"layers": [entry(A), entry(B)]}, 0, 2),
        ({"manifests": [entry(A)]}, 1, 0),
        ({"manifests": []}, 0, 0),
        ({"config": entry(A), "layers": None, "manifests": None, "annotations": None, "subject": None}, 0, 1),
    ],
)
def test_future_type_is_decided_by_content(content: dict[str, Any], children: int, blobs: int) -> None:
    """A media type that is not known yet is kept, and the content says what it is."""
    future = "application/vnd.example.manifest.v9+json"
    manifest = parse(content, future)
    assert (len(manifest.children), len(manifest.blobs), manifest.media_type) == (children, blobs, future)
    assert parse(content | {"mediaType": future}).media_type == future


@pytest.mark.parametrize("content_type", ["", GENERIC, "text/plain; charset=utf-8", "application/octet-stream", ";;\n"])
def test_server_that_knows_no_types(content_type: str) -> None:
    """A server of plain files sends OCI content, which need not name itself, as anything."""
    assert parse({"config": entry(A), "layers": []}, content_type).media_type == OCI_MANIFEST
    assert parse({"manifests": []}, content_type).media_type == OCI_INDEX
    assert parse({"mediaType": DOCKER_MANIFEST, "config": entry(A)}, content_type).media_type == DOCKER_MANIFEST


@pytest.mark.parametrize(
    ("content", "content_type"),
    [
        ({"mediaType": OCI_INDEX, "config": entry(A), "layers": []}, OCI_INDEX),
        ({"mediaType": DOCKER_MANIFEST, "manifests": [entry(A)]}, DOCKER_MANIFEST),
        ({"manifests": [entry(A)]}, OCI_MANIFEST),
        ({"mediaType": OCI_INDEX, "manifests": [entry(A)]}, OCI_MANIFEST),
        ({"mediaType": OCI_MANIFEST, "layers": [entry(A)]}, DOCKER_LIST),
        ({"mediaType": OCI_INDEX, "manifests": [entry(A)], "layers": [entry(B)]}, OCI_INDEX),
        ({"manifests": [], "config": entry(B)}, ""),
    ],
)
def test_media_type_lie(content: dict[str, Any], content_type: str) -> None:
    """A media type, in the body or the header, that says another kind than the content is refused."""
    fault = refused(json.dumps(content).encode(), content_type)
    assert fault.code is ErrorCode.INVALID
    assert "lie" in fault.message


def test_body_counts_before_the_header() -> None:
    """Types of the same kind may differ: what the body says of itself is what it is pushed as."""
    assert parse({"mediaType": OCI_MANIFEST, "config": entry(A)}, DOCKER_MANIFEST).media_type == OCI_MANIFEST


@pytest.mark.parametrize(
    ("content", "content_type"),
    [
        ({"schemaVersion": 1, "fsLayers": [{"blobSum": A}], "history": []}, SCHEMA1_SIGNED),
        ({"schemaVersion": 1, "fsLayers": [{"blobSum": A}]}, GENERIC),
        ({"layers": []}, SCHEMA1),
    ],
)
def test_schema_1(content: dict[str, Any], content_type: str) -> None:
    """Schema 1 is refused by name, with what to do about it."""
    fault = refused(json.dumps(content).encode(), content_type)
    assert "schema 1" in fault.message
    assert "push the image again" in fault.message


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "not valid JSON"),
        (b"<html>", "not valid JSON"),
        (b"[]", "Expected `object`"),
        (b'{"config":', "not valid JSON"),
        (b'{"x":"\x00"}', "not valid JSON"),
        (b'{"mediaType":"\xff"}', "not valid JSON"),
        (b"\xef\xbb\xbf{}", "not valid JSON"),
        (b'{"x":' + b"[" * 10_000, "nested too deeply"),
        (b'{"layers":' + b'[{"x":' * 10_000, "nested too deeply"),
        (b'{"layers":' + b"[" * 2_000_000, "Expected `object`"),
        (b"{}", "neither a config nor layers"),
        (b'{"layers":{}}', "$.layers"),
        (b'{"layers":[{}]}', "digest"),
        (b'{"layers":[1]}', "$.layers"),
    ],
)
def test_no_manifest_at_all(raw: bytes, reason: str) -> None:
    """What is no manifest is refused with the reason, whatever its depth."""
    fault = refused(raw, OCI_MANIFEST)
    assert fault.code is ErrorCode.INVALID
    assert reason in fault.message


@pytest.mark.parametrize("digest", ["", "sha256:abc", "md5:" + "a" * 32, "sha256:" + "A" * 64, A + "\n", "x" * 10_000])
def test_digest_that_cannot_be_verified(digest: str) -> None:
    """Content that nobody can prove is not copied; what is quoted of it is bounded."""
    assert "not a digest" in refused(json.dumps({"layers": [entry(digest)]}).encode()).message


@pytest.mark.parametrize("size", ["-1", "1.5", "1e3", '"7"', "null", "true", str(SIZE_MAX_BYTES + 1), "9" * 100])
def test_size_that_is_none(size: str) -> None:
    """A size is a whole number, not negative, and one that JSON can hold exactly."""
    fault = refused(f'{{"layers":[{{"digest":"{A}","size":{size}}}]}}'.encode())
    assert "size" in fault.message


def test_largest_size() -> None:
    """The bound itself is allowed, and so is nothing."""
    sizes = [blob.size for blob in parse({"layers": [entry(A, 0), entry(B, SIZE_MAX_BYTES)]}).blobs]
    assert sizes == [0, SIZE_MAX_BYTES]


def test_too_large() -> None:
    """More bytes than registries take are refused before they are read."""
    fault = refused(b" " * (MANIFEST_MAX_BYTES + 1))
    assert fault.code is ErrorCode.TOO_LARGE


@pytest.mark.parametrize("key", ["manifests", "layers"])
def test_too_many_entries(key: str) -> None:
    """The number of entries is bounded, whatever they are."""
    small = {"digest": A, "size": 1}
    assert parse({key: [small] * DESCRIPTORS_MAX})
    assert str(DESCRIPTORS_MAX) in refused(json.dumps({key: [small] * (DESCRIPTORS_MAX + 1)}).encode()).message


@pytest.mark.parametrize(
    "members",
    [
        '"annotations":{' + ",".join(f'"{number:x}":""' for number in range(384_000)) + "}",
        '"x":[' + "{}," * 1_000_000 + "0]",
        f'"layers":[{{"digest":"{A}","size":1,"urls":[' + '"ab",' * 500_000 + '"ab"]}]',
    ],
    ids=["annotations", "unknown", "urls"],
)
def test_too_many_members(members: str) -> None:
    """Members are counted before they are decoded: a small body would be a large object, and hold up everybody."""
    fault = refused(f'{{"manifests":[],{members}}}'.encode())
    assert fault.code is ErrorCode.TOO_LARGE
    assert str(COMMAS_MAX) in fault.message


def test_too_many_annotations() -> None:
    """What is kept of an index's entries is bounded over all of them; what nobody reads is not kept, nor bounded."""
    half = dict.fromkeys(map(str, range(ANNOTATIONS_MAX // 2)), "")
    most = parse({"manifests": [entry(A, annotations=half), entry(B, annotations=half)]})
    assert sum(len(child.annotations) for child in most.children) == ANNOTATIONS_MAX
    one_more = {"manifests": [entry(A, annotations=half), entry(B, annotations=half | {"x": ""})]}
    assert str(ANNOTATIONS_MAX) in refused(json.dumps(one_more).encode()).message
    unread = half | {"x": ""}
    manifest = parse({"layers": [entry(A, annotations=unread), entry(B, annotations=unread)], "annotations": unread})
    assert [blob.annotations for blob in manifest.blobs] == [{}, {}]


@pytest.mark.parametrize("media_type", ["x", "a/b\r\nX-Injected: 1", "a/b; c=d", "a/" + "b" * 500])
def test_media_type_that_cannot_be_a_header(media_type: str) -> None:
    """The body's media type becomes a header at the target: only one that may."""
    fault = refused(json.dumps({"mediaType": media_type, "layers": []}).encode())
    assert "no media type" in fault.message
    assert "\r" not in fault.message


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_expected_digest(algorithm: str) -> None:
    """The digest that was asked for decides the algorithm, and a single other byte is corruption."""
    raw = json.dumps({"layers": []}).encode()
    digest = f"{algorithm}:{hashlib.new(algorithm, raw).hexdigest()}"
    assert parse_manifest(raw, OCI_MANIFEST, expected_digest=digest).digest == digest
    fault = refused(raw + b" ", OCI_MANIFEST, expected_digest=digest)
    assert fault.code is ErrorCode.COPY_FAILED


def test_foreign_layer() -> None:
    """A layer that registries do not hold keeps its addresses."""
    foreign = entry(A, mediaType="application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", urls=["https://e.com/x"])
    layer, plain = parse({"layers": [foreign, entry(B, urls=["https://e.com/y"])]}).blobs
    assert layer.is_foreign
    assert layer.urls == ("https://e.com/x",)
    assert not plain.is_foreign


def test_key_that_comes_twice() -> None:
    """The last of two equal keys counts, as for the registries, so both see the same image."""
    raw = f'{{"layers":[{json.dumps(entry(A))}],"layers":[{json.dumps(entry(B))}]}}'.encode()
    assert [blob.digest for blob in parse_manifest(raw, OCI_MANIFEST).blobs] == [B]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20) | st.just(A),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
KEYS = ["schemaVersion", "mediaType", "config", "layers", "manifests", "blobs", "subject", "annotations", "fsLayers"]
ENTRY = st.dictionaries(st.sampled_from(["digest", "size", "mediaType", "urls", "platform", "annotations"]), JSON)
TYPES = st.sampled_from([OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST, SCHEMA1, GENERIC, ""]) | st.text()


@given(content=st.dictionaries(st.sampled_from(KEYS), JSON | ENTRY | st.lists(ENTRY, max_size=3)), content_type=TYPES)
def test_whatever_json(content: dict[str, Any], content_type: str) -> None:
    """Whatever the JSON, it is a manifest or refused in the one vocabulary."""
    try:
        manifest = parse(content, content_type)
    except Permanent:
        return
    assert not (manifest.children and manifest.blobs)
    assert manifest.media_type


@given(raw=st.binary(max_size=200), content_type=TYPES)
def test_whatever_bytes(raw: bytes, content_type: str) -> None:
    """Whatever the bytes, nothing but a refusal comes out."""
    with pytest.raises(Permanent):
        parse_manifest(raw, content_type)
