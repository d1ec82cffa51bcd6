"""Planning and asking at once: which manifests a target lacks, and so which blobs.

A child that the target has ends the question there.
"""

from imagejobd.model.concurrency import bounded
from imagejobd.model.errors import ErrorCode, Permanent
from imagejobd.registry.copy.leg import Leg
from imagejobd.registry.copy.tree import Tree
from imagejobd.registry.manifest import Descriptor, Manifest

DEPTH_MAX = 8
ASKING_MAX = 16


async def survey(tree: Tree, top: Descriptor, leg: Leg) -> None:
    """Add what the leg lacks of `top` and below to its `lacking` and `blobs`.

    Raises what the target and the source raise, and `Permanent(invalid | too_large)` for a tree beyond bounds.
    """
    await _Survey(tree, leg).visit(top, depth=1)


class _Survey:
    def __init__(self, tree: Tree, leg: Leg) -> None:
        self._tree = tree
        self._leg = leg
        self._seen: set[str] = set()

    async def visit(self, descriptor: Descriptor, *, depth: int) -> None:
        if descriptor.digest in self._seen:
            return
        self._seen.add(descriptor.digest)
        if depth > DEPTH_MAX:
            raise Permanent(ErrorCode.INVALID, f"the image's indexes are nested deeper than {DEPTH_MAX}")
        if await self._is_there(descriptor.digest):
            return
        manifest = await self._tree.manifest(descriptor)
        self._leg.lacking[manifest.digest] = manifest
        self._leg.blobs |= {blob.digest: blob for blob in _blobs(manifest)}
        children = [child for child in manifest.children if _is_manifest(child)]
        await bounded(children, lambda child: self.visit(child, depth=depth + 1), at_once=ASKING_MAX)

    async def _is_there(self, digest: str) -> bool:
        return not self._leg.is_distrusted and await self._leg.repository.head_manifest(digest) is not None


def _is_manifest(child: Descriptor) -> bool:
    """Whether an index's entry is a manifest; BuildKit's caches list layers (moby/buildkit, cache/remotecache)."""
    return not child.media_type or "manifest" in child.media_type or "index" in child.media_type


def _blobs(manifest: Manifest) -> list[Descriptor]:
    """What of a manifest has to be in the repository as a blob; foreign layers stay where their URLs say."""
    odd = (child for child in manifest.children if not _is_manifest(child))
    return [blob for blob in (*manifest.blobs, *odd) if not blob.is_foreign]
