"""Base images that tell themselves apart: `/mark` says which one it is, also in all that is built on it.

They are put straight into a registry, and may bring along any ONBUILD triggers, also those that no engine would make.
"""

import functools
import gzip
import hashlib
import io
import json
import tarfile
import uuid
from collections.abc import Sequence

from harness.base_image import busybox_root
from harness.engine import PrivateEngine
from harness.images import DOCKER_CONFIG, DOCKER_LAYER, DOCKER_MANIFEST, put_blob, put_manifest
from harness.registry import Registry


def show_mark() -> str:
    """A step that tells the mark; no other build has the same one, so it is never answered from a cache."""
    return f"RUN : {uuid.uuid4()}; echo mark-is-$(cat /mark)"


def put_marked(registry: Registry, repository: str, mark: str, *, triggers: Sequence[str] = (), tag: str = "1") -> str:
    """Put busybox with this mark; its name in the registry."""
    layers = [_busybox(), _tar({"mark": mark.encode()})]
    config = {
        "os": "linux",
        "architecture": "amd64",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/sh"], "OnBuild": list(triggers)},
        "rootfs": {"type": "layers", "diff_ids": [_digest(layer) for layer in layers]},
    }
    blobs = [gzip.compress(layer, 1, mtime=0) for layer in layers]
    document = {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST,
        "config": _blob(registry, repository, json.dumps(config).encode(), DOCKER_CONFIG),
        "layers": [_blob(registry, repository, blob, DOCKER_LAYER) for blob in blobs],
    }
    put_manifest(registry, repository, document, tag)
    return f"{registry.host}/{repository}:{tag}"


def marks_in(log: str, *marks: str) -> set[str]:
    """Which of `marks` the step has told."""
    return {mark for mark in marks if f"mark-is-{mark}" in log}


def names_in_engine(engine: PrivateEngine, registry: Registry, image: str) -> tuple[str, str]:
    """The id under which `engine`, which has `image` of `registry`, knows it, and its name by digest."""
    repository, _, tag = image.partition("/")[2].rpartition(":")
    digest = str(registry.digest(repository, tag))
    config = json.loads(registry.manifest(repository, tag))["config"]["digest"]
    # The containerd store names an image by its manifest, the others by its configuration.
    image_id = next(
        name for name in (config, digest) if engine.docker("inspect", "--format=.", name, check=False) == "."
    )
    return image_id, f"{image.rpartition(':')[0]}@{digest}"


@functools.cache
def _busybox() -> bytes:
    return busybox_root()


def _tar(files: dict[str, bytes]) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return archive.getvalue()


def _blob(registry: Registry, repository: str, content: bytes, media_type: str) -> dict[str, object]:
    return {"mediaType": media_type, "size": len(content), "digest": put_blob(registry, repository, content)}


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
