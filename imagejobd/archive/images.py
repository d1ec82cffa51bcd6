"""Checking an image archive, as `docker save`, skopeo or a builder writes it, to the last byte.

An OCI image layout (image-spec v1.1, image-layout.md) has `oci-layout`, `index.json`, and the blobs below it. Every
blob is what its descriptor says, in size and digest, and every layer what its configuration says. A nested index may
name images that the archive leaves out, as `docker save` of one platform of several does, but not all of them; layers
with URLs of their own may be elsewhere.

What `docker save` writes (Docker image specification 1.2) has a `manifest.json` that names configurations and their
layers: tars whose SHA-256, uncompressed, is the `diff_id` at their place in the configuration. Older engines wrote a
layer that two images share once, and a symbolic link for the second.

An archive may be of both sorts: Docker writes an OCI layout with a `manifest.json` beside it since version 25. Then it
has to be right as both, because nobody knows which of them its readers look at.
"""

import re
from typing import Annotated, BinaryIO

import msgspec

from imagejobd.archive.contents import Contents, Digest, File, decoded, survey
from imagejobd.archive.inflate import Stop, over_limit
from imagejobd.model.errors import invalid
from imagejobd.model.text import quoted

LAYOUT = "oci-layout"
INDEX = "index.json"
MANIFEST = "manifest.json"
# Real ones have two: an index of platforms in the index of the layout. All on the way down are held in memory.
DEPTH_MAX = 4

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_BLOB = re.compile(rb"blobs/sha256/([0-9a-f]{64})")
_INDEX_TYPES = frozenset(
    {"application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"}
)
_MANIFEST_TYPES = frozenset(
    {"application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"}
)
_CONFIG_TYPES = frozenset(
    {"application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"}
)
# What is none of these (encrypted, say) cannot be unpacked here.
_LAYER_TYPE = re.compile(r".*\.tar(?:[.+](?:gzip|zstd))?")
# `<hex>.json`, `blobs/sha256/<hex>`, and `sha256:<hex>` of go-containerregistry.
_NAMED_BY_DIGEST = re.compile(r"(?:.*[/:])?([0-9a-f]{64})(?:\.json)?")


class _Layout(msgspec.Struct, frozen=True, rename="camel"):
    image_layout_version: str


class _Descriptor(msgspec.Struct, frozen=True, rename="camel"):
    digest: Digest
    size: int
    media_type: str = ""
    urls: list[Annotated[str, msgspec.Meta(min_length=len("http://x"))]] | None = None


class _Index(msgspec.Struct, frozen=True):
    manifests: list[_Descriptor]


class _Manifest(msgspec.Struct, frozen=True):
    config: _Descriptor
    layers: list[_Descriptor]


class _Saved(msgspec.Struct, frozen=True):
    """One image of `manifest.json`; names are paths within the archive."""

    config: str = msgspec.field(name="Config")
    layers: list[str] | None = msgspec.field(name="Layers", default=None)


def check_image_archive(source: BinaryIO, *, max_bytes: int, stop: Stop) -> int:
    """Check the image archive in `source`, compressed or not; how many images it holds.

    `max_bytes` bounds what it unpacks to, and what its layers unpack to. Raises `Permanent(invalid | too_large)` that
    says what is wrong where, and `Stopped`.
    """
    contents = survey(source, max_bytes=max_bytes, stop=stop)
    counts = [
        check(contents)
        for name, check in ((LAYOUT, _check_layout), (MANIFEST, _check_saved))
        if contents.find(name.encode()) is not None
    ]
    if not counts:
        raise invalid(f"the image archive has neither {LAYOUT!r} nor {MANIFEST!r}")
    return counts[0]


def _check_layout(contents: Contents) -> int:
    """Check every blob; how many manifests there are. Raises `Permanent(invalid | too_large)` naming what is wrong."""
    version = decoded(contents.document(LAYOUT, named_by="the archive"), _Layout, LAYOUT).image_layout_version
    if not version.startswith("1."):
        raise invalid(f"{LAYOUT} has version {quoted(version)}; only 1 is known here")
    for path, file in contents.files.items():
        blob = _BLOB.fullmatch(path)
        if blob and file.digest != f"sha256:{blob[1].decode()}":
            raise invalid(f"the image archive is damaged: the blob {blob[1].decode()} has the digest {file.digest}")
    index = decoded(contents.document(INDEX, named_by=LAYOUT), _Index, INDEX)
    walk = _Walk(contents)
    for descriptor in index.manifests:
        walk.go(descriptor, INDEX, depth=1)
    if not walk.manifests:
        raise invalid(f"the image archive holds no image: {INDEX} leads to none")
    return walk.manifests


class _Walk:
    """From descriptor to descriptor; what several name is read once."""

    def __init__(self, contents: Contents) -> None:
        self._contents = contents
        self._seen: set[str] = set()
        self.manifests = 0

    def go(self, descriptor: _Descriptor, named_by: str, *, depth: int) -> None:
        """Check a blob and all below it."""
        self._checked(descriptor, named_by)
        if descriptor.digest in self._seen:
            return
        self._seen.add(descriptor.digest)
        if depth > DEPTH_MAX:
            raise over_limit(f"{INDEX} nests indexes deeper than {DEPTH_MAX}")
        if descriptor.media_type in _INDEX_TYPES:
            self._index(descriptor, depth)
        elif descriptor.media_type in _MANIFEST_TYPES:
            self._manifest(descriptor)

    def _index(self, descriptor: _Descriptor, depth: int) -> None:
        name = descriptor.digest
        children = decoded(self._document(descriptor), _Index, name).manifests
        present = [child for child in children if self._find(child) is not None]
        if children and not present:
            raise invalid(f"the image archive is damaged: it has none of the images that {name} names")
        for child in present:
            self.go(child, name, depth=depth + 1)

    def _manifest(self, descriptor: _Descriptor) -> None:
        name = descriptor.digest
        manifest = decoded(self._document(descriptor), _Manifest, name)
        self.manifests += 1
        self._checked(manifest.config, name)
        layers = [
            self._checked(layer, name) if self._find(layer) is not None or not layer.urls else None
            for layer in manifest.layers
        ]
        if manifest.config.media_type in _CONFIG_TYPES:
            diff_ids = self._contents.diff_ids(_path(manifest.config), named_by=name)
            _check_diff_ids(name, manifest.layers, layers, diff_ids)

    def _find(self, descriptor: _Descriptor) -> File | None:
        return self._contents.find(_path(descriptor).encode())

    def _checked(self, descriptor: _Descriptor, named_by: str) -> File:
        file = self._find(descriptor)
        if file is None:
            raise invalid(
                f"the image archive is damaged: {named_by} names the blob {descriptor.digest}, which is not in it"
            )
        if (file.digest, file.size) != (descriptor.digest, descriptor.size):
            what = f"{named_by} names the blob {descriptor.digest} of {descriptor.size} bytes"
            raise invalid(f"the image archive is damaged: {what}, which has {file.digest} and {file.size} bytes")
        return file

    def _document(self, descriptor: _Descriptor) -> bytes:
        return self._contents.document(_path(descriptor), named_by=INDEX)


def _check_diff_ids(name: str, descriptors: list[_Descriptor], layers: list[File | None], diff_ids: list[str]) -> None:
    """The layers that a manifest names, and their files, None where a layer is elsewhere."""
    if len(layers) != len(diff_ids):
        what = f"{name} has {len(layers)} layers, and its configuration {len(diff_ids)}"
        raise invalid(f"the image archive is damaged: {what}")
    for descriptor, layer, diff_id in zip(descriptors, layers, diff_ids, strict=True):
        if layer is not None and _LAYER_TYPE.fullmatch(descriptor.media_type) and layer.unpacked_digest != diff_id:
            what = f"the layer {descriptor.digest} unpacks to {layer.unpacked_digest}; {quoted(diff_id)} is expected"
            raise invalid(f"the image archive is damaged: {what}")


def _path(descriptor: _Descriptor) -> str:
    match = _DIGEST.fullmatch(descriptor.digest)
    if match is None:
        raise invalid(
            f"the image archive has a descriptor with {quoted(descriptor.digest)}; only sha256 digests are known"
        )
    return f"blobs/sha256/{match[1]}"


def _check_saved(contents: Contents) -> int:
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
        raise invalid(f"the image archive is damaged: {quoted(image.config)} has the digest {digest}")
    layers = image.layers or []
    if len(layers) != len(diff_ids):
        what = f"{MANIFEST} names {len(layers)} layers for {quoted(image.config)}, which has {len(diff_ids)}"
        raise invalid(f"the image archive is damaged: {what}")
    for name, diff_id in zip(layers, diff_ids, strict=True):
        layer_digest = contents.file(name, named_by=MANIFEST).unpacked_digest
        if layer_digest != diff_id:
            what = f"layer {quoted(name)} has the digest {layer_digest}; {quoted(diff_id)} is expected"
            raise invalid(f"the image archive is damaged: {what}")
