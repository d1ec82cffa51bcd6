"""The manifests of one image at the source: each read once, however many targets lack it.

They are what a stranger made of them, so all together are bounded too: their number, their bytes, their entries.
"""

import asyncio

from imagejobd.model.errors import ErrorCode, Fault, Permanent
from imagejobd.registry.manifest import MANIFEST_MAX_BYTES, Descriptor, Manifest
from imagejobd.registry.repository import Repository

MANIFESTS_MAX = 5_000
MANIFESTS_MAX_BYTES = 8 * 1024 * 1024
ENTRIES_MAX = 20_000


class Tree:
    """Reads manifests by digest. What failed once fails for every target: the source is not asked again by each."""

    def __init__(self, source: Repository) -> None:
        self._source = source
        self._read: dict[str, Manifest | Fault] = {}
        self._turns: dict[str, asyncio.Lock] = {}
        self._bytes = 0
        self._entries = 0

    def know(self, manifest: Manifest) -> None:
        """Take in a manifest that is at hand; a rewritten index is nowhere to be read from."""
        self._read[manifest.digest] = manifest

    async def manifest(self, descriptor: Descriptor) -> Manifest:
        """Raises what `Repository.get_manifest` raises, and `Permanent(too_large)` for an image beyond bounds."""
        async with self._turns.setdefault(descriptor.digest, asyncio.Lock()):
            if descriptor.digest not in self._read:
                self._read[descriptor.digest] = await self._fetch(descriptor)
        found = self._read[descriptor.digest]
        if isinstance(found, Fault):
            raise found
        return found

    async def _fetch(self, descriptor: Descriptor) -> Manifest | Fault:
        try:
            if descriptor.size > MANIFEST_MAX_BYTES:
                raise self._too_large(f"manifest {descriptor.digest} has {descriptor.size} bytes", MANIFEST_MAX_BYTES)
            manifest = await self._source.get_manifest(descriptor.digest)
            self._account(manifest)
        except Fault as fault:
            return fault
        return manifest

    def _account(self, manifest: Manifest) -> None:
        self._bytes += len(manifest.raw)
        self._entries += len(manifest.blobs) + len(manifest.children)
        if len(self._read) >= MANIFESTS_MAX:
            raise self._too_large("the number of the image's manifests is beyond bounds", MANIFESTS_MAX)
        if self._bytes > MANIFESTS_MAX_BYTES:
            raise self._too_large(f"the image's manifests have more than {self._bytes} bytes", MANIFESTS_MAX_BYTES)
        if self._entries > ENTRIES_MAX:
            raise self._too_large(f"the image's manifests have more than {self._entries} entries", ENTRIES_MAX)

    def _too_large(self, what: str, limit: int) -> Permanent:
        return Permanent(ErrorCode.TOO_LARGE, f"{self._source}: {what}; the limit is {limit}")
