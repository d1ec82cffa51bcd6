"""One target of a copy: what it is asked to take, what it still lacks, and how it ended."""

from enum import StrEnum
from typing import Literal

import msgspec

from imagejobd.model.errors import Fault
from imagejobd.registry.manifest import Descriptor, Manifest
from imagejobd.registry.repository import Repository

How = Literal["sent_bytes", "mounted_bytes", "skipped_bytes"]


class TagState(StrEnum):
    """What became of one tag at one target."""

    COPIED = "copied"
    IDENTICAL = "identical"
    SKIPPED = "skipped"  # it is there with another digest, and may not be overwritten
    WANTED = "wanted"  # not copied: the copy failed, or it was a dry run


class Target(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """Where an image goes: `names` are tags, or one digest."""

    repository: Repository
    names: tuple[str, ...]
    overwrite: bool = False


class Tally(msgspec.Struct, kw_only=True):
    """Bytes of blobs at one target, counted while it goes on. Live: read it whenever progress is shown."""

    total_bytes: int = 0
    sent_bytes: int = 0
    mounted_bytes: int = 0
    skipped_bytes: int = 0


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How the copy to one target ended; `fault` None is success. `digest` is the image's, there or not."""

    tags: dict[str, TagState]
    digest: str | None
    source_digest: str | None = None
    tally: Tally
    seconds: float
    fault: Fault | None = None


class TargetState:
    """One target during a copy. A fault ends it and no other.

    `manifests` are those to put, by digest; `blobs` what these refer to, of which `missing` are not there yet.
    """

    def __init__(self, target: Target, tally: Tally) -> None:
        self.target = target
        self.tally = tally
        self.tags: dict[str, TagState] = {}
        self.fault: Fault | None = None
        self.manifests: dict[str, Manifest] = {}
        self.blobs: dict[str, Descriptor] = {}
        self.missing: dict[str, Descriptor] = {}
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
        self.missing.pop(blob.digest, None)
        self._counted[blob.digest] = how
        if how != "sent_bytes":
            self._add(how, blob.size)

    def distrust(self, digests: set[str]) -> None:
        """Forget that these blobs are there, or everything where there are none; only they are to be brought then."""
        self.is_distrusted = True
        for digest, blob in self.blobs.items():
            if (not digests or digest in digests) and (how := self._counted.pop(digest, None)):
                self._add(how, -blob.size)
        self.missing = {digest: self.blobs[digest] for digest in digests}
        if not digests:
            self.manifests.clear()
            self.blobs.clear()

    def _add(self, how: How, size_bytes: int) -> None:
        setattr(self.tally, how, getattr(self.tally, how) + size_bytes)
