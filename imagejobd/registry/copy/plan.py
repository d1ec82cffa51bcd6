"""The manifests of one image, and what of it a target lacks.

Manifests are what a stranger made of them: each is bounded where it is parsed, here all of one image together. A child
that the target has ends the question there, and the manifests of the source are read once, however many targets lack
them.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from imagejobd.model.concurrency import KeyedLock, bounded
from imagejobd.model.errors import ErrorCode, Fault, NotFound, Permanent, invalid
from imagejobd.registry.copy.target import TargetState
from imagejobd.registry.manifest import MANIFEST_MAX_BYTES, Descriptor, Manifest, parse_manifest
from imagejobd.registry.repository import Repository

DEPTH_MAX = 8
MANIFESTS_MAX = 5_000
MANIFESTS_MAX_BYTES = 8 * 1024 * 1024
ENTRIES_MAX = 20_000
ASKED_AT_ONCE = 16
PLATFORMS_NAMED_MAX = 20

# BuildKit's attestations name the image that they attest (moby/buildkit, docs/attestations/attestation-storage.md).
ATTESTED = "vnd.docker.reference.digest"
# What is meant where an index names no variant (containerd, platforms/database.go).
_DEFAULT_VARIANTS = {"amd64": "v1", "arm": "v7", "arm64": "v8"}


class Tree:
    """Reads the manifests of one image by digest. What failed once fails for every target: the source is not asked
    again by each."""

    def __init__(self, source: Repository) -> None:
        self._source = source
        self._read: dict[str, Manifest | Fault] = {}
        self._locks = KeyedLock()
        self._bytes = 0
        self._entries = 0

    def add(self, manifest: Manifest) -> None:
        """Take in a manifest that is at hand; a rewritten index is nowhere to be read from."""
        self._read[manifest.digest] = manifest

    async def manifest(self, descriptor: Descriptor) -> Manifest:
        """Raises what `Repository.get_manifest` raises, and `Permanent(too_large)` for an image beyond bounds."""
        if descriptor.size > MANIFEST_MAX_BYTES:
            raise self._too_large(f"manifest {descriptor.digest} has {descriptor.size} bytes", MANIFEST_MAX_BYTES)
        return await self.named(descriptor.digest)

    async def named(self, name: str) -> Manifest:
        """The manifest under a tag or digest; raises as `manifest` does."""
        async with self._locks.take(name):
            if name not in self._read:
                try:
                    self._read[name] = manifest = await self._fetch(name)
                    self.add(manifest)
                except Fault as fault:
                    self._read[name] = fault
        result = self._read[name]
        if isinstance(result, Fault):
            raise result.with_message(result.message)  # one exception raised for many targets grows by each
        return result

    async def _fetch(self, name: str) -> Manifest:
        manifest = await self._source.get_manifest(name)
        self._bytes += len(manifest.raw)
        self._entries += len(manifest.blobs) + len(manifest.children)
        if len(self._read) >= MANIFESTS_MAX:
            raise self._too_large("the number of the image's manifests is beyond bounds", MANIFESTS_MAX)
        if self._bytes > MANIFESTS_MAX_BYTES:
            raise self._too_large(f"the image's manifests have more than {self._bytes} bytes", MANIFESTS_MAX_BYTES)
        if self._entries > ENTRIES_MAX:
            raise self._too_large(f"the image's manifests have more than {self._entries} entries", ENTRIES_MAX)
        return manifest

    def _too_large(self, what: str, limit: int) -> Permanent:
        return Permanent(ErrorCode.TOO_LARGE, f"{self._source}: {what}; the limit is {limit}")


async def plan(tree: Tree, tops: Sequence[Descriptor], state: TargetState) -> None:
    """Find out what the target lacks of `tops` and below: its `manifests`, and of their `blobs` what is `missing`.

    Raises what the target and the source raise, and `Permanent(invalid | too_large)` for a tree beyond bounds.
    """
    seen: set[str] = set()

    async def visit(descriptor: Descriptor, depth: int) -> None:
        if descriptor.digest in seen:
            return
        seen.add(descriptor.digest)
        if depth > DEPTH_MAX:
            raise invalid(f"the image's indexes are nested deeper than {DEPTH_MAX}")
        if not state.is_distrusted and await state.repository.head_manifest(descriptor.digest) is not None:
            return
        manifest = await tree.manifest(descriptor)
        state.manifests[manifest.digest] = manifest
        state.blobs |= {blob.digest: blob for blob in _blobs(manifest)}
        children = [child for child in manifest.children if _is_manifest(child)]
        await bounded(children, lambda child: visit(child, depth + 1), at_once=ASKED_AT_ONCE)

    async def ask(blob: Descriptor) -> None:
        if not state.is_distrusted and await state.repository.has_blob(blob.digest, blob.size):
            state.count(blob, "skipped_bytes")

    for top in tops:
        await visit(top, 1)
    state.missing = dict(state.blobs)
    state.tally.total_bytes = max(state.tally.total_bytes, sum(blob.size for blob in state.blobs.values()))
    await bounded(list(state.blobs.values()), ask, at_once=ASKED_AT_ONCE)


def keep_platforms(index: Manifest, platforms: Sequence[str]) -> Manifest:
    """`index` with only the children for `platforms` (`os/arch[/variant]`), and what attests those: a new index, and so
    a new digest. A platform without a variant takes every variant.

    An index of which all is wanted stays as it is. Raises `Permanent(not_found)` for a platform that it does not have,
    `Permanent(invalid)` where children do not say what they are for.
    """
    children = {child.digest: _keys(child) for child in index.children}
    wanted: set[str] = set()
    for platform in platforms:
        matches = {digest for digest, keys in children.items() if tuple(platform.split("/")) in keys}
        if not matches:
            raise _no_platform(index, platform)
        wanted |= matches
    wanted |= {child.digest for child in index.children if child.annotations.get(ATTESTED) in wanted}
    if wanted == children.keys():
        return index
    content: dict[str, Any] = msgspec.json.decode(index.raw)
    content["manifests"] = [entry for entry in content["manifests"] if entry["digest"] in wanted]
    return parse_manifest(msgspec.json.encode(content), index.media_type)


def _is_manifest(child: Descriptor) -> bool:
    """Whether an index's entry is a manifest; BuildKit's caches list layers (moby/buildkit, cache/remotecache)."""
    return not child.media_type or "manifest" in child.media_type or "index" in child.media_type


def _blobs(manifest: Manifest) -> list[Descriptor]:
    """What of a manifest has to be in the repository as a blob; foreign layers stay where their URLs say."""
    layers = (child for child in manifest.children if not _is_manifest(child))
    return [blob for blob in (*manifest.blobs, *layers) if not blob.is_foreign]


def _keys(child: Descriptor) -> set[tuple[str, ...]]:
    """All that a child answers to."""
    platform = child.platform
    if platform is None:
        raise invalid("platforms: the index has entries without a platform (an index within it, maybe); copy it whole")
    base = (platform.os, platform.architecture)
    return {base, (*base, platform.variant or _DEFAULT_VARIANTS.get(platform.architecture, ""))}


def _no_platform(index: Manifest, platform: str) -> Permanent:
    names = sorted({str(child.platform) for child in index.children if ATTESTED not in child.annotations})
    return NotFound(f"the image has no platform {platform}; it has {', '.join(names[:PLATFORMS_NAMED_MAX]) or 'none'}")
