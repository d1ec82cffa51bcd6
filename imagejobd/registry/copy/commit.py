"""Putting manifests, children before the index that names them, and tags last: none ever points at half an image."""

from imagejobd.model.concurrency import KeyedLock, bounded
from imagejobd.model.failpoint import failpoint
from imagejobd.model.reference import is_digest
from imagejobd.registry.copy.leg import Leg
from imagejobd.registry.copy.outcome import TagState
from imagejobd.registry.manifest import Manifest

PUTTING_MAX = 8


async def put_below(leg: Leg, top: str) -> None:
    """Put by digest all that the leg lacks, but for the manifest `top`, which its tags bring.

    Raises what `Repository.put_manifest` raises: `BlobUnknown` where the target has less than it said.
    """
    repository = leg.repository
    for level in _levels(leg.lacking):
        below = [manifest for manifest in level if manifest.digest != top]
        await bounded(below, lambda manifest: repository.put_manifest(manifest.digest, manifest), at_once=PUTTING_MAX)


async def put_tags(leg: Leg, manifest: Manifest, turns: KeyedLock) -> None:
    """Put the image's own manifest under every name that is wanted. Raises as `put_below` does."""
    failpoint("before_tag")
    for name in leg.wanted:
        async with turns.take((leg.repository.connection.identity, leg.repository.path, name)):
            leg.tags[name] = await _put_tag(leg, name, manifest)


async def _put_tag(leg: Leg, name: str, manifest: Manifest) -> TagState:
    """Somebody may have been quicker since the target was first asked: what may not be overwritten is asked again."""
    if not leg.target.overwrite and not is_digest(name):
        there = await leg.repository.head_manifest(name)
        if there is not None:
            return TagState.IDENTICAL if there.digest == manifest.digest else TagState.SKIPPED
    await leg.repository.put_manifest(name, manifest)
    return TagState.COPIED


def _levels(manifests: dict[str, Manifest]) -> list[list[Manifest]]:
    """The manifests in levels, each of which refers only to those before it."""
    heights: dict[str, int] = {}

    def height(digest: str) -> int:
        if digest not in manifests:
            return -1
        if digest not in heights:
            heights[digest] = 1 + max((height(child.digest) for child in manifests[digest].children), default=-1)
        return heights[digest]

    levels: list[list[Manifest]] = [[] for _ in range(1 + max(map(height, manifests), default=-1))]
    for digest, manifest in manifests.items():
        levels[heights[digest]].append(manifest)
    return levels
