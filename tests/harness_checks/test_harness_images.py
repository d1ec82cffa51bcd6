"""Synthetic images are what a strict reader takes them for."""

import json

import pytest

from harness import skopeo
from harness.images import (
    OCI_EMPTY,
    OCI_ZSTD_LAYER,
    digest_of,
    put_children,
    put_image,
    put_index,
    random_bytes,
)
from harness.registry import Registry
from harness.services import require


@pytest.fixture(scope="module", autouse=True)
def programs() -> None:
    require("docker-registry", "skopeo")


@pytest.mark.parametrize("docker", [False, True])
def test_image_has_the_layers_told(registry: Registry, docker: bool) -> None:
    """Sizes and bytes of layers are those asked for, and skopeo reads the image whole."""
    image = put_image(registry, "images/plain", f"{docker}", layers=[10, 2_000], seed="s", docker=docker)
    assert registry.digest("images/plain", f"{docker}") == image.digest
    assert image.layers == tuple(digest_of(random_bytes(size, ("s", i))) for i, size in enumerate([10, 2_000]))
    assert skopeo.pull(registry, "images/plain", f"{docker}") == set(image.blobs)


@pytest.mark.parametrize("docker", [False, True])
def test_index_and_copy(registry: Registry, docker: bool) -> None:
    """An index of platforms is read and copied by skopeo, unchanged."""
    children = [
        put_image(registry, "images/index", platform=platform, seed=platform, docker=docker)
        for platform in ("linux/amd64", "linux/arm64", "linux/arm/v7")
    ]
    index = put_index(registry, "images/index", f"{docker}", children, docker=docker)
    assert len(index.blobs) == 6
    assert skopeo.pull(registry, "images/index", f"{docker}") == set(index.blobs)
    skopeo.copy((registry, "images/index", f"{docker}"), (registry, "images/copy", f"{docker}"))
    assert skopeo.raw_manifest(registry, "images/copy", f"{docker}") == registry.manifest("images/index", index.digest)


def test_nested_index_and_many_children(registry: Registry) -> None:
    """Children share their blobs but not their digests; an index can hold an index."""
    children = put_children(registry, "images/many", 20)
    assert len({child.digest for child in children}) == 20
    inner = put_index(registry, "images/many", None, children)
    outer = put_index(registry, "images/many", "nested", [inner])
    assert outer.manifests == (*(child.digest for child in children), inner.digest, outer.digest)


def test_artifacts_foreign_and_zstd_layers(registry: Registry) -> None:
    """An artifact names its subject and has the empty config; foreign layers keep their URL and have no blob."""
    image = put_image(registry, "images/odd", "zstd", layer_type=OCI_ZSTD_LAYER)
    artifact = put_image(registry, "images/odd", "sig", subject=image, artifact_type="application/x.sig", layers=[5])
    document = json.loads(registry.manifest("images/odd", artifact.digest))
    assert document["subject"] == image.descriptor
    assert document["config"]["mediaType"] == OCI_EMPTY
    foreign = put_image(registry, "images/odd", "foreign", docker=True, foreign_urls=["https://example.org/base"])
    layer = json.loads(registry.manifest("images/odd", foreign.digest))["layers"][-1]
    assert layer["urls"] == ["https://example.org/base"]
    assert not registry.has_blob("images/odd", layer["digest"])
