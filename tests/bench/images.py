"""Images that no tool can make smaller, put straight into a registry.

A layer is gzip around random bytes, which nobody unpacks on the way: what looked uncompressed would be compressed anew
by some of the tools, and the measurement would be one of gzip.
"""

import hashlib
import json
import os
import zlib
from typing import Any, NamedTuple

from harness.registry import CONFIG_TYPE, MANIFEST_TYPE, Registry

REPOSITORY, TAG = "team/app", "1"
LAYER_TYPE = "application/vnd.docker.image.rootfs.diff.tar.gzip"
PIECE_BYTES = 1024 * 1024
GZIP_WINDOW_BITS = 31
NO_COMPRESSION = 0


class Image(NamedTuple):
    """`size_bytes` is what one reading takes: manifest, config and layers."""

    digest: str
    size_bytes: int


def publish(registry: Registry, *, layers: int, layer_bytes: int, repository: str = REPOSITORY) -> Image:
    """Put a new image of `layers` layers under `TAG`; each layer is a little larger than `layer_bytes`."""
    descriptors = [_put_blob(registry, repository, _layer(layer_bytes), LAYER_TYPE) for _ in range(layers)]
    rootfs = {"type": "layers", "diff_ids": [layer["digest"] for layer in descriptors]}
    config = json.dumps({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}).encode()
    blobs = [_put_blob(registry, repository, config, CONFIG_TYPE), *descriptors]
    document = {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": blobs[0], "layers": descriptors}
    manifest = json.dumps(document).encode()
    registry.request("PUT", f"/v2/{repository}/manifests/{TAG}", manifest, MANIFEST_TYPE).close()
    return Image(_digest(manifest), len(manifest) + sum(blob["size"] for blob in blobs))


def _layer(size_bytes: int) -> bytes:
    gzip = zlib.compressobj(NO_COMPRESSION, zlib.DEFLATED, GZIP_WINDOW_BITS)
    pieces = [min(PIECE_BYTES, size_bytes - at) for at in range(0, size_bytes, PIECE_BYTES)]
    return b"".join([*(gzip.compress(os.urandom(piece)) for piece in pieces), gzip.flush()])


def _put_blob(registry: Registry, repository: str, content: bytes, media_type: str) -> dict[str, Any]:
    digest = _digest(content)
    with registry.request("POST", f"/v2/{repository}/blobs/uploads/") as response:
        upload = response.headers["Location"].removeprefix(registry.url)
    registry.request("PUT", f"{upload}&digest={digest}", content, "application/octet-stream").close()
    return {"mediaType": media_type, "size": len(content), "digest": digest}


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
