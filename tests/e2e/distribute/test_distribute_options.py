"""What the native API can ask for beyond one tag: platforms, referrers, filters, several tags, a rehearsal."""

import json
from typing import Any

import pytest

from harness.distribute_box import DistributeBox, check_copied, registry_of, results, source, target
from harness.images import OCI_INDEX, Image, put_image, put_index, put_manifest
from harness.registry import Registry

Mirrors = tuple[Registry, Registry, Registry]

PLATFORMS = ("linux/amd64", "linux/arm64", "linux/arm/v7", "linux/arm/v6")


def multi_platform(origin: Registry, path: str, tag: str = "1") -> Image:
    children = [put_image(origin, path, platform=name, seed=name, layers=[500, 50]) for name in PLATFORMS]
    return put_index(origin, path, tag, children)


def document(registry: Registry, path: str, name: str) -> Any:
    return json.loads(registry.manifest(path, name))


@pytest.mark.parametrize(
    ("wanted", "kept"),
    [
        (["linux/arm64"], ["linux/arm64"]),
        (["linux/arm"], ["linux/arm/v7", "linux/arm/v6"]),
        (["linux/amd64", "linux/arm/v7"], ["linux/amd64", "linux/arm/v7"]),
    ],
)
def test_platforms(
    box: DistributeBox, origin: Registry, mirror: Registry, path: str, wanted: list[str], kept: list[str]
) -> None:
    """Only the platforms that are wanted arrive, in an index of their own; nothing of the others does."""
    multi_platform(origin, path)
    full = document(origin, path, "1")
    job = box.copy(source(origin, path), [target(mirror)], platforms=wanted)
    index = document(mirror, path, "1")
    chosen = [full["manifests"][PLATFORMS.index(name)] for name in kept]
    assert index == full | {"manifests": chosen}
    assert results(job)[mirror.url]["digest"] == mirror.digest(path, "1")
    assert job["result"]["platforms"] == wanted
    for name, child in zip(PLATFORMS, full["manifests"], strict=True):
        assert (mirror.digest(path, child["digest"]) is not None) is (name in kept)
        layers = document(origin, path, child["digest"])["layers"]
        assert {mirror.has_blob(path, layer["digest"]) for layer in layers} == {name in kept}


def test_all_platforms_change_nothing(box: DistributeBox, origin: Registry, mirror: Registry, path: str) -> None:
    """When all platforms are kept, so is the digest."""
    image = multi_platform(origin, path)
    box.copy(source(origin, path), [target(mirror)], platforms=list(PLATFORMS))
    check_copied(image, origin, path, mirror)


def test_absent_platform(box: DistributeBox, origin: Registry, mirror: Registry, path: str) -> None:
    """A platform that the image does not have fails the job and says which there are."""
    multi_platform(origin, path)
    job = box.failed(box.distribute(source(origin, path), [target(mirror)], platforms=["windows/amd64"]))
    assert "windows/amd64" in job["error"]["message"]
    assert "linux/arm64" in job["error"]["message"]
    assert mirror.tags(path) == []


def put_referrers(origin: Registry, path: str, image: Image) -> tuple[Image, Image, str]:
    """An SBOM and its signature listed by fallback tags, and a cosign signature by its tag."""
    sbom = put_image(origin, path, subject=image, artifact_type="application/spdx+json", layers=[40], seed="sbom")
    put_fallback(origin, path, image, sbom, "application/spdx+json")
    signature = put_image(origin, path, subject=sbom, artifact_type="application/x.sig", layers=[20], seed="sig")
    put_fallback(origin, path, sbom, signature, "application/x.sig")
    cosign_tag = f"{image.digest.replace(':', '-')}.sig"
    put_image(origin, path, cosign_tag, layers=[30], seed="cosign")
    return sbom, signature, cosign_tag


def put_fallback(origin: Registry, path: str, subject: Image, referrer: Image, artifact_type: str) -> None:
    entry = referrer.descriptor | {"artifactType": artifact_type}
    listed = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}
    put_manifest(origin, path, listed, subject.digest.replace(":", "-"))


def test_referrers(box: DistributeBox, origin: Registry, mirrors: Mirrors, path: str) -> None:
    """With `referrers` all that refers to the image, and to that in turn, is findable at the target; without, none."""
    image = put_image(origin, path, "1")
    sbom, signature, cosign_tag = put_referrers(origin, path, image)
    box.copy(source(origin, path), [target(mirrors[0])], referrers=True)
    box.copy(source(origin, path), [target(mirrors[1])])
    for artifact in (sbom, signature):
        assert mirrors[0].manifest(path, artifact.digest) == origin.manifest(path, artifact.digest)
        assert all(mirrors[0].has_blob(path, blob) for blob in artifact.blobs)
    for subject, referrer in ((image, sbom), (sbom, signature)):
        listed = document(mirrors[0], path, subject.digest.replace(":", "-"))["manifests"]
        assert [entry["digest"] for entry in listed] == [referrer.digest]
    assert mirrors[0].digest(path, cosign_tag) == origin.digest(path, cosign_tag)
    assert mirrors[1].tags(path) == ["1"]


def test_referrers_are_added_to_those_that_are_there(
    box: DistributeBox, origin: Registry, mirror: Registry, path: str
) -> None:
    """A list of referrers at the target is extended, not replaced."""
    image = put_image(origin, path, "1")
    sbom, *_ = put_referrers(origin, path, image)
    put_image(mirror, path, "old")
    own = put_image(mirror, path, subject=image, artifact_type="application/own", layers=[], seed="own")
    put_fallback(mirror, path, image, own, "application/own")
    box.copy(source(origin, path), [target(mirror)], referrers=True)
    listed = document(mirror, path, image.digest.replace(":", "-"))["manifests"]
    assert [entry["digest"] for entry in listed] == [own.digest, sbom.digest]


def test_dry_run_changes_nothing(box: DistributeBox, origin: Registry, mirrors: Mirrors, path: str) -> None:
    """A rehearsal says what would be copied and what is there, and sends nothing."""
    image = put_image(origin, path, "1", layers=[2_000], seed="new")
    put_image(mirrors[1], path, "1", seed="old")
    put_image(mirrors[2], path, "1", layers=[2_000], seed="new")
    job = box.copy(source(origin, path), [target(registry) for registry in mirrors], dry_run=True)
    told = results(job)
    assert [told[registry.url]["tags"]["1"] for registry in mirrors] == ["wanted", "skipped", "identical"]
    assert [told[registry.url]["sent_bytes"] for registry in mirrors] == [0, 0, 0]
    assert mirrors[0].tags(path) == []
    assert not any(mirrors[0].has_blob(path, blob) for blob in image.blobs)


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ({"regex": "v?1[.].*"}, ["1.0.0", "1.10.0", "1.9.3", "v1.2.0"]),
        ({"semver": ">=1.2 <2"}, ["1.10.0", "1.9.3", "v1.2.0"]),
        ({"semver": "1.x", "newest": 2}, ["1.10.0", "1.9.3"]),
        ({"regex": "[a-z]+"}, ["edge"]),
    ],
)
def test_tag_filters(
    box: DistributeBox, origin: Registry, mirror: Registry, path: str, tags: dict[str, Any], found: list[str]
) -> None:
    """All tags of a repository that a filter finds are copied, each to its own name; no other is."""
    for tag in ("1.0.0", "v1.2.0", "1.9.3", "1.10.0", "2.0.0", "edge", "2024-01"):
        put_image(origin, path, tag, seed=tag)
    job = box.copy(registry_of(origin, image=path, tags=tags), [target(mirror)])
    assert mirror.tags(path) == found
    for tag in found:
        assert mirror.digest(path, tag) == origin.digest(path, tag)
    assert len(job["result"]["images"]) == len(found)


def test_a_filter_that_finds_nothing(box: DistributeBox, origin: Registry, mirror: Registry, path: str) -> None:
    """A filter that no tag passes is said, in whichever way the job ends, and nothing is copied."""
    put_image(origin, path, "1")
    job = box.ended(box.distribute(registry_of(origin, image=path, tags={"regex": "never"}), [target(mirror)]))
    assert "never" in json.dumps(job) or job["result"]["images"] == []
    assert mirror.tags(path) == []


def test_several_target_tags(box: DistributeBox, origin: Registry, mirrors: Mirrors, path: str) -> None:
    """One image goes under several tags at a target, with each tag's own result, and elsewhere under another name."""
    image = put_image(origin, path, "1", seed="new")
    old = put_image(mirrors[0], path, "stable", seed="old")
    there = f"{path}/renamed"
    targets = [target(mirrors[0], tags=["1", "1.0", "stable"]), target(mirrors[1], image=there, ref="9")]
    told = results(box.copy(source(origin, path), targets))[mirrors[0].url]
    assert told["tags"] == {"1": "copied", "1.0": "copied", "stable": "skipped"}
    assert [mirrors[0].digest(path, tag) for tag in ("1", "1.0", "stable")] == [image.digest, image.digest, old.digest]
    assert mirrors[1].digest(there, "9") == image.digest


def test_several_images(box: DistributeBox, origin: Registry, mirrors: Mirrors, path: str) -> None:
    """Images of several repositories, by tag and digest, go to all targets in one job."""
    one = put_image(origin, f"{path}/a", "1", seed="a")
    two = put_image(origin, f"{path}/b", "2", seed="b")
    images = [f"{path}/a:1", f"{path}/b@{two.digest}"]
    job = box.copy(registry_of(origin, images=images), [target(registry) for registry in mirrors])
    assert [entry["digest"] for entry in job["result"]["images"]] == [one.digest, two.digest]
    for registry in mirrors:
        assert registry.digest(f"{path}/a", "1") == one.digest
        assert registry.digest(f"{path}/b", two.digest) == two.digest


def test_progress_in_bytes(box: DistributeBox, origin: Registry, mirrors: Mirrors, path: str) -> None:
    """At the end the progress says that all bytes of each target are accounted for."""
    image = put_image(origin, path, "1", layers=[300_000, 5_000], seed=path)
    job = box.copy(source(origin, path), [target(registry) for registry in mirrors[:2]])
    for standing in job["progress"]["targets"]:
        assert standing["total_bytes"] == image.blobs_bytes
        assert standing["sent_bytes"] + standing["mounted_bytes"] + standing["skipped_bytes"] == image.blobs_bytes
        assert (standing["done"], standing["failed"]) == (1, 0)
