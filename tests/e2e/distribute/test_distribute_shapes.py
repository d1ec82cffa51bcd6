"""Whatever an image looks like, it arrives as it was, byte for byte: skopeo is the judge."""

from collections.abc import Callable

import pytest

from harness import skopeo
from harness.distribute_box import DistributeBox, check_copied, results, source, target
from harness.images import OCI_ZSTD_LAYER, Image, put_children, put_image, put_index
from harness.registry import Registry

Mirrors = tuple[Registry, Registry, Registry]


def children(registry: Registry, path: str, *, docker: bool = False) -> list[Image]:
    platforms = ("linux/amd64", "linux/arm64", "linux/arm/v7")
    return [put_image(registry, path, platform=name, seed=name, docker=docker, layers=[900, 20]) for name in platforms]


def nested(registry: Registry, path: str) -> Image:
    inner = put_index(registry, path, None, children(registry, path))
    return put_index(registry, path, "1", [inner, put_image(registry, path, platform="linux/s390x", seed="z")])


SHAPES: dict[str, Callable[[Registry, str], Image]] = {
    "schema2": lambda registry, path: put_image(registry, path, "1", layers=[70_000, 3, 900], docker=True),
    "oci": lambda registry, path: put_image(registry, path, "1", layers=[70_000, 3, 900]),
    "same-layer-twice": lambda registry, path: put_image(registry, path, "1", layers=[0, 0, 1]),
    "no-layers": lambda registry, path: put_image(registry, path, "1", layers=[]),
    "zstd": lambda registry, path: put_image(registry, path, "1", layers=[5_000], layer_type=OCI_ZSTD_LAYER),
    "index": lambda registry, path: put_index(registry, path, "1", children(registry, path)),
    "docker-list": lambda registry, path: put_index(
        registry, path, "1", children(registry, path, docker=True), docker=True
    ),
    "nested-index": nested,
    "empty-index": lambda registry, path: put_index(registry, path, "1", []),
    "artifact": lambda registry, path: put_image(
        registry, path, "1", artifact_type="application/vnd.example.sbom", layer_type="text/spdx+json", layers=[30]
    ),
    "foreign-layer": lambda registry, path: put_image(
        registry, path, "1", docker=True, foreign_urls=["https://example.org/base-layer"]
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_arrives_unchanged(box: DistributeBox, origin: Registry, mirrors: Mirrors, path: str, shape: str) -> None:
    """Every manifest and blob is at all targets under its digest, and the tag points at the same bytes."""
    image = SHAPES[shape](origin, path)
    job = box.copy(source(origin, path), [target(registry) for registry in mirrors])
    check_copied(image, origin, path, *mirrors)
    raw = skopeo.raw_manifest(origin, path, "1")
    assert [skopeo.raw_manifest(registry, path, "1") for registry in mirrors] == [raw, raw, raw]
    assert {entry["digest"] for entry in results(job).values()} == {image.digest}
    if shape not in ("artifact", "empty-index", "foreign-layer", "zstd", "nested-index"):  # beyond skopeo 1.9
        assert skopeo.pull(mirrors[2], path, "1") == set(image.blobs)


def test_a_digest_arrives_under_its_digest(box: DistributeBox, origin: Registry, mirrors: Mirrors, path: str) -> None:
    """An image that is named by digest is there by that digest, and under no tag."""
    image = put_image(origin, path, "1")
    box.copy(source(origin, path, image.digest), [target(mirrors[0]), target(mirrors[1], ref="named")])
    assert mirrors[0].manifest(path, image.digest) == origin.manifest(path, "1")
    assert mirrors[0].tags(path) == []
    assert mirrors[1].digest(path, "named") == image.digest


def test_hundreds_of_children(box: DistributeBox, origin: Registry, mirrors: Mirrors, path: str) -> None:
    """An index of 300 images arrives whole, and its shared blobs are sent once."""
    image = put_index(origin, path, "1", put_children(origin, path, 300))
    job = box.copy(source(origin, path), [target(mirrors[0])])
    assert mirrors[0].manifest(path, "1") == origin.manifest(path, "1")
    for digest in image.manifests[::30]:
        assert mirrors[0].manifest(path, digest) == origin.manifest(path, digest)
    assert results(job)[mirrors[0].url]["sent_bytes"] < 2_000


def test_many_layers_to_four_targets(box: DistributeBox, origin: Registry, mirrors: Mirrors, path: str) -> None:
    """Many blobs and many targets at once: each target gets each blob."""
    image = put_image(origin, path, "1", layers=[20_000 + number for number in range(32)])
    with Registry() as fourth:
        job = box.copy(source(origin, path), [target(registry) for registry in (*mirrors, fourth)])
        check_copied(image, origin, path, *mirrors, fourth)
        assert [entry["sent_bytes"] for entry in results(job).values()] == [image.blobs_bytes] * 4
