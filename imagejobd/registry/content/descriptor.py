"""Descriptors (OCI image spec, "descriptor.md"): what a manifest says of the content it refers to."""

from collections.abc import Mapping

import msgspec

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+json"
SCHEMA1_SIGNED = "application/vnd.docker.distribution.manifest.v1+prettyjws"

INDEX_TYPES = frozenset({OCI_INDEX, DOCKER_LIST})
# docker-registry answers 404 for a manifest of a type that the client does not accept: so all, always. Schema 1 is
# among them to be refused by name.
MANIFEST_TYPES = (OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST, SCHEMA1_SIGNED, SCHEMA1)
ACCEPT = ", ".join(MANIFEST_TYPES)


class Platform(msgspec.Struct, frozen=True):
    """The platform of an index's child."""

    os: str = ""
    architecture: str = ""
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))


class Descriptor(msgspec.Struct, frozen=True, kw_only=True):
    """Content by digest: `digest` is one that can be verified here, `size` in bytes is at least 0."""

    digest: str
    size: int
    media_type: str = ""
    artifact_type: str = ""
    urls: tuple[str, ...] = ()
    annotations: Mapping[str, str] = {}
    platform: Platform | None = None

    @property
    def is_foreign(self) -> bool:
        """Whether registries do not hold it: base layers that may not be distributed, fetched from `urls`."""
        return bool(self.urls) and ("foreign" in self.media_type or "nondistributable" in self.media_type)
