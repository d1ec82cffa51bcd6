"""Keeping some platforms of an index."""

import json
from typing import Any

import pytest
from imagejobd.registry.copy.platforms import ATTESTED, keep_platforms

from imagejobd.model.errors import ErrorCode, Permanent
from imagejobd.registry.manifest import DOCKER_LIST, OCI_INDEX, OCI_MANIFEST, Manifest, parse_manifest


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


def entry(number: int, platform: str = "", **more: Any) -> dict[str, Any]:
    system, _, rest = platform.partition("/")
    architecture, _, variant = rest.partition("/")
    named = {"os": system, "architecture": architecture, "variant": variant}
    shown = {"platform": {name: value for name, value in named.items() if value}} if platform else {}
    return {"mediaType": OCI_MANIFEST, "size": 100 + number, "digest": digest(number), **shown, **more}


def attestation(number: int, of: int) -> dict[str, Any]:
    return entry(number, "unknown/unknown", annotations={ATTESTED: digest(of)})


def index(*entries: dict[str, Any], media_type: str = OCI_INDEX) -> Manifest:
    content = {"schemaVersion": 2, "mediaType": media_type, "annotations": {"a": "b"}, "manifests": list(entries)}
    return parse_manifest(json.dumps(content, indent=3).encode(), media_type)


ALL = index(
    entry(1, "linux/amd64"),
    entry(2, "linux/arm/v6"),
    entry(3, "linux/arm/v7"),
    attestation(4, of=1),
    attestation(5, of=3),
)


@pytest.mark.parametrize(
    ("platforms", "kept"),
    [
        (["linux/amd64"], [1, 4]),
        (["linux/arm"], [2, 3, 5]),
        (["linux/arm/v7"], [3, 5]),
        (["linux/arm/v6", "linux/amd64"], [1, 2, 4]),
    ],
)
def test_kept_children(platforms: list[str], kept: list[int]) -> None:
    """A platform keeps its images, of every variant where none is named, and what attests them; all else stays."""
    narrowed = keep_platforms(ALL, platforms)
    assert [child.digest for child in narrowed.children] == [digest(number) for number in kept]
    before, after = json.loads(ALL.raw), json.loads(narrowed.raw)
    assert after == before | {"manifests": [m for m in before["manifests"] if m["digest"] in map(digest, kept)]}
    assert narrowed.digest != ALL.digest


def test_docker_list() -> None:
    """A list of Docker's own type stays one."""
    docker = index(entry(1, "linux/amd64"), entry(2, "linux/arm64"), media_type=DOCKER_LIST)
    assert keep_platforms(docker, ["linux/arm64"]).media_type == DOCKER_LIST


def test_everything_kept() -> None:
    """An index of which nothing is left out keeps its bytes, and so its digest."""
    assert keep_platforms(ALL, ["linux/amd64", "linux/arm"]) is ALL


def test_unknown_platform() -> None:
    """A platform that is not there is refused with those that are; attestations are none."""
    with pytest.raises(Permanent) as refused:
        keep_platforms(ALL, ["linux/amd64", "windows/amd64"])
    assert refused.value.code is ErrorCode.NOT_FOUND
    assert "windows/amd64; it has linux/amd64, linux/arm/v6, linux/arm/v7" in refused.value.message
    assert "unknown" not in refused.value.message
