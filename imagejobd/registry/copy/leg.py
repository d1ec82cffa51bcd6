"""One target on its way to the image: what it still lacks, and what became of it."""

from typing import Literal

from imagejobd.model.errors import Fault
from imagejobd.registry.copy.outcome import TagState, Tally, Target
from imagejobd.registry.manifest import Descriptor, Manifest
from imagejobd.registry.repository import Repository

How = Literal["sent_bytes", "mounted_bytes", "skipped_bytes"]


class Leg:
    """The state of one target during a copy. A fault ends this leg and no other.

    `lacking` are the manifests to put, by digest; `blobs` what these refer to.
    """

    def __init__(self, target: Target, tally: Tally) -> None:
        self.target = target
        self.tally = tally
        self.tags: dict[str, TagState] = {}
        self.fault: Fault | None = None
        self.lacking: dict[str, Manifest] = {}
        self.blobs: dict[str, Descriptor] = {}
        # Set when the target said that it has what it has not: then everything is sent, whatever it answers.
        self.is_distrusted = False
        self._counted: dict[str, How] = {}

    @property
    def repository(self) -> Repository:
        return self.target.repository

    @property
    def wanted(self) -> list[str]:
        """The names that are still to be put."""
        return [name for name, state in self.tags.items() if state is TagState.WANTED]

    def count(self, blob: Descriptor, how: How) -> None:
        """The target has `blob` now. Bytes that are sent count as they go."""
        self._counted[blob.digest] = how
        if how != "sent_bytes":
            self._add(how, blob.size)

    def distrust(self, digests: set[str]) -> None:
        """Forget that these blobs are there, or all where there are none; only they are to be brought then."""
        self.is_distrusted = True
        if digests:
            self.blobs = {digest: blob for digest, blob in self.blobs.items() if digest in digests}
        for digest, blob in self.blobs.items():
            if how := self._counted.pop(digest, None):
                self._add(how, -blob.size)

    def _add(self, how: How, size_bytes: int) -> None:
        setattr(self.tally, how, getattr(self.tally, how) + size_bytes)
