"""What one image is made of, what a target lacks of it, and keeping some platforms of an index."""

import json
from typing import Any, cast

import pytest

from imagejobd.model.errors import ErrorCode, Fault, Permanent, Temporary
from imagejobd.registry.copy import plan as plan_module
from imagejobd.registry.copy.plan import ATTESTED, DEPTH_MAX, Tree, keep_platforms, plan
from imagejobd.registry.copy.target import Tally, Target, TargetState
from imagejobd.registry.manifest import (
    DOCKER_LIST,
    MANIFEST_MAX_BYTES,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    parse_manifest,
)
from imagejobd.registry.repository import Repository

LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


def entry(number: int, platform: str = "", **more: Any) -> dict[str, Any]:
    system, _, rest = platform.partition("/")
    architecture, _, variant = rest.partition("/")
    names = {"os": system, "architecture": architecture, "variant": variant}
    shown = {"platform": {name: value for name, value in names.items() if value}} if platform else {}
    return {"mediaType": OCI_MANIFEST, "size": 100 + number, "digest": digest(number), **shown, **more}


def attestation(number: int, of: int) -> dict[str, Any]:
    return entry(number, "unknown/unknown", annotations={ATTESTED: digest(of)})


def index(*entries: dict[str, Any], media_type: str = OCI_INDEX) -> Manifest:
    content = {"schemaVersion": 2, "mediaType": media_type, "annotations": {"a": "b"}, "manifests": list(entries)}
    return parse_manifest(json.dumps(content, indent=3).encode(), media_type)


def image(*layers: int) -> Manifest:
    config, *blobs = ({"mediaType": LAYER, "size": number, "digest": digest(number)} for number in (1, *layers))
    content = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": blobs}
    return parse_manifest(json.dumps(content).encode(), OCI_MANIFEST)


def child(manifest: Manifest) -> dict[str, Any]:
    return {"mediaType": manifest.media_type, "size": len(manifest.raw), "digest": manifest.digest}


class Place:
    """A repository as far as a plan asks it: what was asked for is in `asked`."""

    def __init__(self, *manifests: Manifest, blobs: tuple[int, ...] = ()) -> None:
        self.manifests = {manifest.digest: manifest for manifest in manifests}
        self.blobs = {digest(number) for number in blobs}
        self.fault: Fault | None = None
        self.asked: list[str] = []

    async def head_manifest(self, name: str) -> Descriptor | None:
        self.asked.append(name)
        return self.manifests[name].descriptor if name in self.manifests else None

    async def get_manifest(self, name: str) -> Manifest:
        self.asked.append(name)
        if self.fault is not None:
            raise self.fault
        return self.manifests[name]

    async def has_blob(self, name: str, _size: int) -> bool:
        self.asked.append(name)
        return name in self.blobs

    def __str__(self) -> str:
        return "source.example/app"


def state_of(place: Place) -> TargetState:
    return TargetState(Target(repository=cast(Repository, place), names=("1",)), Tally())


def tree_of(place: Place) -> Tree:
    return Tree(cast(Repository, place))


async def test_what_a_target_lacks() -> None:
    """Manifests and blobs are listed once however often they are referred to, what is there is counted, and the source
    is asked once for all targets."""
    first, second = image(10, 20), image(20, 30)
    top = index(child(first), child(second), child(first))
    source = Place(top, first, second)
    tree = tree_of(source)
    empty, partial = state_of(Place()), state_of(Place(second, blobs=(10,)))
    for state in (empty, partial):
        await plan(tree, [top.descriptor], state)
    assert set(empty.manifests) == {top.digest, first.digest, second.digest}
    assert set(empty.missing) == {digest(number) for number in (1, 10, 20, 30)}
    assert set(partial.manifests) == {top.digest, first.digest}
    assert set(partial.missing) == {digest(1), digest(20)}
    assert (partial.tally.total_bytes, partial.tally.skipped_bytes) == (31, 10)
    assert sorted(source.asked) == sorted(source.manifests)


async def test_layers_in_an_index() -> None:
    """An entry of an index that is no manifest is a blob (BuildKit's caches); a foreign one stays where it is."""
    foreign = {"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "urls": ["https://a.example"]}
    top = index({"mediaType": LAYER, "size": 10, "digest": digest(10)}, {"size": 5, "digest": digest(5), **foreign})
    state = state_of(Place())
    await plan(tree_of(Place(top)), [top.descriptor], state)
    assert list(state.missing) == [digest(10)]


async def test_distrusted_target() -> None:
    """One that said that it has what it has not is not asked again."""
    top = image(10)
    place = Place(top, blobs=(1, 10))
    state = state_of(place)
    state.distrust(set())
    await plan(tree_of(Place(top)), [top.descriptor], state)
    assert set(state.missing) == {digest(1), digest(10)}
    assert place.asked == []


async def test_fault_of_the_source() -> None:
    """What could not be read once is not asked for again by each target, and each raises a fault of its own."""
    top = image(10)
    source = Place(top)
    source.fault = Temporary(ErrorCode.REGISTRY_UNAVAILABLE, "gone", retry_after_s=7.0)
    tree, faults = tree_of(source), []
    for _ in range(2):
        with pytest.raises(Temporary, match="gone") as gone:
            await plan(tree, [top.descriptor], state_of(Place()))
        faults.append(gone.value)
    assert source.asked == [top.digest]
    assert [fault.retry_after_s for fault in faults] == [7.0, 7.0]
    assert faults[0] is not faults[1]


async def test_depth() -> None:
    """Indexes may be nested, but not without end."""
    tops = [image(10)]
    for _ in range(DEPTH_MAX):
        tops.append(index(child(tops[-1])))
    tree = tree_of(Place(*tops))
    await plan(tree, [tops[-2].descriptor], state_of(Place()))
    with pytest.raises(Permanent, match="nested deeper"):
        await plan(tree, [tops[-1].descriptor], state_of(Place()))


@pytest.mark.parametrize(
    ("bound", "limit"), [("MANIFESTS_MAX", 2), ("MANIFESTS_MAX_BYTES", 1_000), ("ENTRIES_MAX", 5)], ids=str
)
async def test_bounds_of_all_together(bound: str, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many manifests that are each within bounds are refused when all together are not."""
    children = [image(number, number + 1) for number in (10, 20, 30)]
    top = index(*map(child, children))
    await plan(tree_of(Place(top, *children)), [top.descriptor], state_of(Place()))
    monkeypatch.setattr(plan_module, bound, limit)
    with pytest.raises(Permanent) as refused:
        await plan(tree_of(Place(top, *children)), [top.descriptor], state_of(Place()))
    assert refused.value.code is ErrorCode.TOO_LARGE
    assert f"the limit is {limit}" in refused.value.message


async def test_huge_manifest() -> None:
    """A manifest whose descriptor says that it is too large is not even asked for."""
    source = Place()
    with pytest.raises(Permanent) as refused:
        await tree_of(source).manifest(Descriptor(digest=digest(1), size=MANIFEST_MAX_BYTES + 1))
    assert refused.value.code is ErrorCode.TOO_LARGE
    assert source.asked == []


ALL = index(
    entry(1, "linux/amd64"),
    entry(2, "linux/arm/v6"),
    entry(3, "linux/arm/v7"),
    attestation(4, of=1),
    attestation(5, of=3),
)


@pytest.mark.parametrize(
    ("platforms", "expected"),
    [
        (["linux/amd64"], [1, 4]),
        (["linux/amd64/v1"], [1, 4]),
        (["linux/arm"], [2, 3, 5]),
        (["linux/arm/v7"], [3, 5]),
        (["linux/arm/v6", "linux/amd64"], [1, 2, 4]),
    ],
)
def test_children_of_platforms(platforms: list[str], expected: list[int]) -> None:
    """A platform keeps its images, of every variant where none is named, and what attests them; all else stays."""
    narrowed = keep_platforms(ALL, platforms)
    assert [child.digest for child in narrowed.children] == [digest(number) for number in expected]
    before, after = json.loads(ALL.raw), json.loads(narrowed.raw)
    assert after == before | {"manifests": [m for m in before["manifests"] if m["digest"] in map(digest, expected)]}
    assert narrowed.digest != ALL.digest


def test_docker_list() -> None:
    """A list of Docker's own type stays one."""
    docker = index(entry(1, "linux/amd64"), entry(2, "linux/arm64"), media_type=DOCKER_LIST)
    assert keep_platforms(docker, ["linux/arm64"]).media_type == DOCKER_LIST


def test_all_platforms() -> None:
    """An index of which nothing is left out keeps its bytes, and so its digest."""
    assert keep_platforms(ALL, ["linux/amd64", "linux/arm"]) is ALL


def test_unknown_platform() -> None:
    """A platform that is not there is refused with those that are; attestations are none."""
    with pytest.raises(Permanent) as refused:
        keep_platforms(ALL, ["linux/amd64", "windows/amd64"])
    assert refused.value.code is ErrorCode.NOT_FOUND
    assert "windows/amd64; it has linux/amd64, linux/arm/v6, linux/arm/v7" in refused.value.message
    assert "unknown" not in refused.value.message


def test_entries_without_platform() -> None:
    """Where entries do not say what they are for, nothing can be chosen."""
    with pytest.raises(Permanent) as refused:
        keep_platforms(index(entry(1)), ["linux/amd64"])
    assert refused.value.code is ErrorCode.INVALID
