"""Synthetic images put straight into a registry: any sizes, types and shapes, in milliseconds and without an engine."""

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from harness.registry import Registry

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_ZSTD_LAYER = "application/vnd.oci.image.layer.v1.tar+zstd"
OCI_EMPTY = "application/vnd.oci.empty.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_FOREIGN_LAYER = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"

Document = dict[str, Any]


class Image(NamedTuple):
    """A manifest or index in a registry. `layers` are digests; `blobs` these and the configs, foreign ones left out;
    `manifests` all below and including this one, children first; `size` is that of the manifest."""

    digest: str
    media_type: str
    size: int
    layers: tuple[str, ...] = ()
    blobs: tuple[str, ...] = ()
    manifests: tuple[str, ...] = ()
    blobs_bytes: int = 0
    platform: str = ""

    @property
    def descriptor(self) -> Document:
        """As an index or a subject names it."""
        descriptor: Document = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        if self.platform:
            names = zip(("os", "architecture", "variant"), self.platform.split("/"), strict=False)
            descriptor["platform"] = dict(names)
        return descriptor


def random_bytes(size: int, seed: object) -> bytes:
    """`size` incompressible bytes, the same for the same seed."""
    return random.Random(repr(seed)).randbytes(size)


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def put_blob(registry: Registry, repository: str, data: bytes) -> str:
    """Upload a blob, unless it is there; returns its digest."""
    digest = digest_of(data)
    if registry.has_blob(repository, digest):
        return digest
    with registry.request("POST", f"/v2/{repository}/blobs/uploads/") as response:
        upload = urlsplit(response.headers["Location"])
    path = f"{upload.path}?{upload.query}&digest={digest}"
    registry.request("PUT", path, data, "application/octet-stream").close()
    return digest


def put_manifest(registry: Registry, repository: str, document: Document, tag: str | None = None) -> Image:
    """Put any manifest or index, under a tag or by its digest. Its blobs and children have to be there."""
    body = json.dumps(document).encode()
    digest, media_type = digest_of(body), document["mediaType"]
    registry.request("PUT", f"/v2/{repository}/manifests/{tag or digest}", body, media_type).close()
    return Image(digest, media_type, len(body), manifests=(digest,))


def put_image(
    registry: Registry,
    repository: str,
    tag: str | None = None,
    *,
    layers: Sequence[int] = (1_000,),
    seed: object = 0,
    docker: bool = False,
    layer_type: str | None = None,
    foreign_urls: Sequence[str] = (),
    platform: str = "",
    subject: Image | None = None,
    artifact_type: str = "",
    annotations: Mapping[str, str] | None = None,
) -> Image:
    """Put an image whose layers have these sizes in bytes, OCI or Docker schema 2; by its digest where `tag` is None.

    With an `artifact_type` its config is the empty one. Each of `foreign_urls` makes one more layer, which no registry
    holds.
    """
    layer_type = layer_type or (DOCKER_LAYER if docker else OCI_LAYER)
    contents = [random_bytes(size, (seed, number)) for number, size in enumerate(layers)]
    config = b"{}" if artifact_type else json.dumps(_config(platform or "linux/amd64", seed)).encode()
    config_type = OCI_EMPTY if artifact_type else DOCKER_CONFIG if docker else OCI_CONFIG
    digests = [put_blob(registry, repository, content) for content in contents]
    document: Document = {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST if docker else OCI_MANIFEST,
        "config": _descriptor(config_type, config),
        "layers": [_descriptor(layer_type, content) for content in contents] + [_foreign(url) for url in foreign_urls],
    }
    document |= {"artifactType": artifact_type} if artifact_type else {}
    document |= {"subject": subject._replace(platform="").descriptor} if subject else {}
    document |= {"annotations": dict(annotations)} if annotations else {}
    put_blob(registry, repository, config)
    image = put_manifest(registry, repository, document, tag)
    return image._replace(
        layers=tuple(digests),
        blobs=(digest_of(config), *digests),
        blobs_bytes=len(config) + sum(layers),
        platform=platform,
    )


def put_index(
    registry: Registry, repository: str, tag: str | None, children: Sequence[Image], *, docker: bool = False
) -> Image:
    """Put an index (a manifest list with `docker`) of images or indexes in the same repository."""
    document = {
        "schemaVersion": 2,
        "mediaType": DOCKER_LIST if docker else OCI_INDEX,
        "manifests": [child.descriptor for child in children],
    }
    index = put_manifest(registry, repository, document, tag)
    return index._replace(
        layers=tuple(dict.fromkeys(layer for child in children for layer in child.layers)),
        blobs=tuple(dict.fromkeys(blob for child in children for blob in child.blobs)),
        manifests=(*(name for child in children for name in child.manifests), index.digest),
    )


def put_children(registry: Registry, repository: str, count: int, *, seed: object = 0) -> list[Image]:
    """Put `count` images by digest that differ in an annotation only: one config and one layer serve them all.

    They are laid into the registry's files, because a thousand pushes would take longer than the test that wants them.
    """
    first = put_image(registry, repository, seed=seed)
    template = json.loads(registry.manifest(repository, first.digest))
    children = []
    for number in range(count):
        body = json.dumps(template | {"annotations": {"number": str(number)}}).encode()
        registry.plant_manifest(repository, body)
        digest = digest_of(body)
        children.append(first._replace(digest=digest, size=len(body), manifests=(digest,), platform="linux/amd64"))
    return children


def _config(platform: str, seed: object) -> Document:
    system, architecture, *_ = platform.split("/")
    rootfs = {"type": "layers", "diff_ids": []}
    return {"os": system, "architecture": architecture, "config": {"Labels": {"seed": repr(seed)}}, "rootfs": rootfs}


def _descriptor(media_type: str, content: bytes) -> Document:
    return {"mediaType": media_type, "size": len(content), "digest": digest_of(content)}


def _foreign(url: str) -> Document:
    return _descriptor(DOCKER_FOREIGN_LAYER, url.encode()) | {"urls": [url]}
