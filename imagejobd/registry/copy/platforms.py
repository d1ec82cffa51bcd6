"""Keeping some platforms of an index: a new index, and so a new digest, of the children that stay as they are."""

from collections.abc import Sequence
from typing import Any

import msgspec

from imagejobd.model.errors import NotFound, Permanent, invalid
from imagejobd.registry.manifest import Descriptor, Manifest, Platform, parse_manifest

# BuildKit's attestations name the image that they attest (moby/buildkit, docs/attestations/attestation-storage.md).
ATTESTED = "vnd.docker.reference.digest"
SHOWN_MAX = 20

# What is meant where an index names no variant (containerd, platforms/database.go).
_DEFAULT_VARIANTS = {"amd64": "v1", "arm": "v7", "arm64": "v8"}


def keep_platforms(index: Manifest, platforms: Sequence[str]) -> Manifest:
    """`index` with only the children for `platforms` (`os/arch[/variant]`), and what attests those.

    An index of which all is kept stays as it is. Raises `Permanent(not_found)` for a platform that it does not have,
    `Permanent(invalid)` where children do not say what they are for.
    """
    wanted = {_wanted(platform): platform for platform in platforms}
    kept: set[str] = set()
    found: set[str] = set()
    for child in index.children:
        for key in _keys(child):
            if key in wanted:
                kept.add(child.digest)
                found.add(wanted[key])
    for platform in platforms:
        if platform not in found:
            raise _missing(index, platform)
    kept |= {child.digest for child in index.children if child.annotations.get(ATTESTED) in kept}
    if all(child.digest in kept for child in index.children):
        return index
    content: dict[str, Any] = msgspec.json.decode(index.raw)
    content["manifests"] = [entry for entry in content["manifests"] if entry["digest"] in kept]
    return parse_manifest(msgspec.json.encode(content), index.media_type)


def _wanted(platform: str) -> tuple[str, ...]:
    """A wanted platform without a variant takes every variant."""
    return tuple(platform.split("/"))


def _keys(child: Descriptor) -> list[tuple[str, ...]]:
    """All that a child answers to."""
    platform = child.platform
    if platform is None:
        raise invalid("platforms: the index has entries without a platform (an index within it, maybe); copy it whole")
    base = (platform.os, platform.architecture)
    return [base, (*base, _variant(platform))]


def _variant(platform: Platform) -> str:
    return platform.variant or _DEFAULT_VARIANTS.get(platform.architecture, "")


def _missing(index: Manifest, platform: str) -> Permanent:
    shown = sorted({str(child.platform) for child in index.children if ATTESTED not in child.annotations})
    return NotFound(f"the image has no platform {platform}; it has {', '.join(shown[:SHOWN_MAX]) or 'none'}")
