"""Content for registries, made without any tool: blobs, images, indexes, artifacts. Put there as plain HTTP has it."""

import hashlib
import json
import random
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from harness.registry import Registry
from imagejobd.registry.manifest import OCI_INDEX, OCI_MANIFEST, Descriptor, Manifest, parse_manifest

CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
OCTETS = "application/octet-stream"


def digest_of(content: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"


def noise(size_bytes: int, seed: int = 0) -> bytes:
    """Incompressible bytes, the same for the same seed."""
    return random.Random(seed).randbytes(size_bytes)


def described(content: bytes, media_type: str = LAYER_TYPE) -> Descriptor:
    return Descriptor(digest=digest_of(content), size=len(content), media_type=media_type)


def wire(descriptor: Descriptor, **more: Any) -> dict[str, Any]:
    """A descriptor as manifests have it."""
    return {"mediaType": descriptor.media_type, "digest": descriptor.digest, "size": descriptor.size} | more


@dataclass(frozen=True)
class Image:
    """An image that can be put anywhere: its manifest and the content of its blobs by digest."""

    manifest: Manifest
    blobs: dict[str, bytes] = field(default_factory=dict)


def make_image(*layers: bytes, media_type: str = OCI_MANIFEST, config: bytes = b"{}", **more: Any) -> Image:
    """An image of these layers; `more` are further keys of its manifest (`subject`, `artifactType`, …)."""
    content = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": wire(described(config, CONFIG_TYPE)),
        "layers": [wire(described(layer)) for layer in layers],
    }
    manifest = parse_manifest(json.dumps(content | more).encode(), media_type)
    return Image(manifest, {digest_of(blob): blob for blob in (config, *layers)})


def make_index(*children: Manifest, media_type: str = OCI_INDEX, **more: Any) -> Manifest:
    """An index of these manifests."""
    entries = [wire(child.descriptor) for child in children]
    content = {"schemaVersion": 2, "mediaType": media_type, "manifests": entries}
    return parse_manifest(json.dumps(content | more).encode(), media_type)


def put_blob(registry: Registry, path: str, content: bytes) -> Descriptor:
    """Put a blob into the repository `path`."""
    with registry.request("POST", f"/v2/{path}/blobs/uploads/") as response:
        upload = urlsplit(response.headers["Location"])
    registry.request("PUT", f"{upload.path}?{upload.query}&digest={digest_of(content)}", content, OCTETS).close()
    return described(content)


def put_manifest(registry: Registry, path: str, name: str, manifest: Manifest) -> None:
    """Put a manifest whose content is there already under a tag or digest."""
    registry.request("PUT", f"/v2/{path}/manifests/{name}", manifest.raw, manifest.media_type).close()


def put_image(registry: Registry, path: str, name: str, image: Image) -> Manifest:
    """Put an image whole."""
    for blob in image.blobs.values():
        put_blob(registry, path, blob)
    put_manifest(registry, path, name, image.manifest)
    return image.manifest


def get_blob(registry: Registry, path: str, digest: str) -> bytes:
    """The bytes of a blob. Raises `urllib.error.HTTPError` where it is not there."""
    with registry.request("GET", f"/v2/{path}/blobs/{digest}") as response:
        content: bytes = response.read()
        return content
