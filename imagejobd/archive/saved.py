"""Checking what `docker save` wrote: `manifest.json`, the configurations it names, and their layers.

Docker image specification 1.2: a layer is a tar whose SHA-256, uncompressed, is the `diff_id` at its place in the
configuration. Older engines wrote a layer that two images share once, and a symbolic link for the second.
"""

import re

import msgspec

from imagejobd.archive.document import decoded
from imagejobd.archive.members import shown
from imagejobd.archive.survey import Contents
from imagejobd.model.errors import invalid

MANIFEST = "manifest.json"

# `<hex>.json`, `blobs/sha256/<hex>`, and `sha256:<hex>` of go-containerregistry.
_NAMED_BY_DIGEST = re.compile(r"(?:.*[/:])?([0-9a-f]{64})(?:\.json)?")


class _Saved(msgspec.Struct, frozen=True):
    """One image of `manifest.json`; names are paths within the archive."""

    config: str = msgspec.field(name="Config")
    layers: list[str] | None = msgspec.field(name="Layers", default=None)


def check_saved(contents: Contents) -> int:
    """Check every image; how many there are. Raises `Permanent(invalid | too_large)` that says what is wrong where."""
    images = decoded(contents.document(MANIFEST, named_by="the archive"), list[_Saved], MANIFEST)
    if not images:
        raise invalid(f"the image archive holds no image: {MANIFEST} is empty")
    for image in images:
        _check_image(contents, image)
    return len(images)


def _check_image(contents: Contents, image: _Saved) -> None:
    diff_ids = contents.diff_ids(image.config, named_by=MANIFEST)
    digest = contents.file(image.config, named_by=MANIFEST).digest
    named = _NAMED_BY_DIGEST.fullmatch(image.config)
    if named and digest != f"sha256:{named[1]}":
        raise invalid(f"the image archive is damaged: {shown(image.config)} has the digest {digest}")
    layers = image.layers or []
    if len(layers) != len(diff_ids):
        what = f"{MANIFEST} names {len(layers)} layers for {shown(image.config)}, which has {len(diff_ids)}"
        raise invalid(f"the image archive is damaged: {what}")
    for name, diff_id in zip(layers, diff_ids, strict=True):
        found = contents.file(name, named_by=MANIFEST).unpacked_digest
        if found != diff_id:
            what = f"layer {shown(name)} has the digest {found}; {shown(diff_id)} is expected"
            raise invalid(f"the image archive is damaged: {what}")
