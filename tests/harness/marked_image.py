"""Base images that tell themselves apart: `/mark` says which one it is, also in all that is built on it.

They are put straight into a registry, and may bring along any ONBUILD triggers, also those that no engine would make.
"""

import functools
import gzip
import io
import json
import tarfile
import uuid
from collections.abc import Sequence

from harness.base_image import busybox_root
from harness.engine import PrivateEngine
from harness.images import DOCKER_CONFIG, DOCKER_LAYER, DOCKER_MANIFEST, digest_of, put_blob, put_manifest
from harness.registry import Registry


def show_mark() -> str:
    """A step that tells the mark; no other build has the same one, so it is never answered from a cache."""
    return f"RUN : {uuid.uuid4()}; echo mark-is-$(cat /mark)"


def put_marked(registry: Registry, repository: str, mark: str, *, triggers: Sequence[str] = (), tag: str = "1") -> str:
    """Put busybox with this mark; its name in the registry."""
    layer = _layer(mark)
    config = {
        "os": "linux",
        "architecture": "amd64",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/sh"], "OnBuild": list(triggers)},
        "rootfs": {"type": "layers", "diff_ids": [digest_of(layer)]},
    }
    document = {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST,
        "config": _blob(registry, repository, json.dumps(config).encode(), DOCKER_CONFIG),
        "layers": [_blob(registry, repository, gzip.compress(layer, 1, mtime=0), DOCKER_LAYER)],
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
def _layer(mark: str) -> bytes:
    """A tar of busybox and its mark. Of one and the same layer, packed in two ways, the containerd store loses one."""
    source, layer = io.BytesIO(busybox_root()), io.BytesIO()
    with tarfile.open(fileobj=source) as reader, tarfile.open(fileobj=layer, mode="w") as writer:
        for member in reader:
            writer.addfile(member, reader.extractfile(member) if member.isreg() else None)
        member = tarfile.TarInfo("mark")
        member.size = len(mark)
        writer.addfile(member, io.BytesIO(mark.encode()))
    return layer.getvalue()


def _blob(registry: Registry, repository: str, content: bytes, media_type: str) -> dict[str, object]:
    return {"mediaType": media_type, "size": len(content), "digest": put_blob(registry, repository, content)}
