"""Small image archives made by hand: dictionaries from names to contents, so that a test can damage what it likes."""

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"

# Contents by name; a string is the target of a symbolic link.
Files = dict[str, bytes | str]


def hex_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def tar_of(files: Mapping[str, bytes | str], *more: tarfile.TarInfo) -> bytes:
    """A tar of `files` in that order, then members without content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        for info in more:
            archive.addfile(info)
    return buffer.getvalue()


def layer_of(text: str) -> bytes:
    """A layer with one file."""
    return tar_of({text: text.encode()})


def config_of(*layers: bytes) -> bytes:
    diff_ids = [f"sha256:{hex_of(layer)}" for layer in layers]
    rootfs = {"type": "layers", "diff_ids": diff_ids}
    return json.dumps({"architecture": "amd64", "os": "linux", "rootfs": rootfs}).encode()


def saved_of(*layers: bytes, config: bytes | None = None) -> Files:
    """What `docker save` before version 25 writes of one image."""
    config = config or config_of(*layers)
    files: Files = {f"{hex_of(layer)}/layer.tar": layer for layer in layers}
    names = list(files)
    files[f"{hex_of(config)}.json"] = config
    saved = [{"Config": f"{hex_of(config)}.json", "RepoTags": None, "Layers": names}]
    return files | {"manifest.json": json.dumps(saved).encode()}


def layout_of(*layers: bytes, packed: Sequence[bytes] | None = None, layer_type: str = OCI_LAYER) -> Files:
    """An OCI layout of one image; `packed` are the layers as they stand in it."""
    config = config_of(*layers)
    packed = packed or layers
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": described(config, OCI_CONFIG),
        "layers": [described(layer, layer_type) for layer in packed],
    }
    manifest = json.dumps(document).encode()
    blobs = blobs_of(config, *packed, manifest)
    return blobs | tops_of(described(manifest, OCI_MANIFEST))


def blobs_of(*contents: bytes) -> Files:
    return {f"blobs/sha256/{hex_of(content)}": content for content in contents}


def tops_of(*descriptors: dict[str, Any]) -> Files:
    """The two files at the top of a layout."""
    return {
        "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
        "index.json": index_of(*descriptors),
    }


def index_of(*descriptors: dict[str, Any]) -> bytes:
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": descriptors}).encode()


def described(content: bytes, media_type: str) -> dict[str, Any]:
    return {"mediaType": media_type, "size": len(content), "digest": f"sha256:{hex_of(content)}"}


def sparse_of(name: str, size: int) -> bytes:
    """An old GNU sparse member that is one hole of `size` bytes, without the end of a tar."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    block[156:157] = b"S"
    block[483:495] = b"\x80" + size.to_bytes(11)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)
