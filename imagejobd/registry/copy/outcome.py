"""What a copy is asked for and how it ended, target by target."""

from enum import StrEnum

import msgspec

from imagejobd.model.errors import Fault
from imagejobd.registry.repository import Repository


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


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """`platforms` (`os/arch[/variant]`) keeps only those of an index, which is rewritten; empty keeps all."""

    platforms: tuple[str, ...] = ()
    referrers: bool = False
    dry_run: bool = False
