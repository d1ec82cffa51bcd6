"""A box that distributes images, without an engine, and what must hold of every copy."""

import re
import urllib.error
from collections.abc import Sequence
from typing import Any, Protocol

from harness.box import Box
from harness.client import Answer, Fields
from harness.images import Image
from harness.logins import BASIC
from harness.registry import Registry

MIB = 1024 * 1024


class Peer(Protocol):
    """A registry, or a proxy in front of one."""

    @property
    def url(self) -> str: ...


class DistributeBox(Box):
    """The two APIs that take distributions."""

    def distribute(self, wanted: Fields, targets: Sequence[Fields], **options: Any) -> str:
        """Submit through the native API; the job's UUID."""
        return self.submit("distribute", {"source": wanted, "targets": list(targets), **options})

    def post(self, wanted: Fields, targets: Sequence[Fields]) -> Answer:
        """The distribute API's request."""
        return self.call("POST", "/api/distribute/image", {"source": wanted, "targets": list(targets)})

    def status(self, uuid: str) -> Fields:
        """What the distribute API says of a job."""
        fields: Fields = self.call("GET", f"/api/distribute/image/{uuid}").json
        return fields

    def copy(self, wanted: Fields, targets: Sequence[Fields], **options: Any) -> Fields:
        """Submit and wait for success; the job."""
        return self.succeeded(self.distribute(wanted, targets, **options))


def source(peer: Peer, image: str, ref: str = "1", **fields: Any) -> Fields:
    return {"endpoint": peer.url, "image": image, "ref": ref, **_trust(peer), **fields}


def registry_of(peer: Peer, **fields: Any) -> Fields:
    """A source that is not one image: with `image` and `tags`, or with `images`."""
    return {"endpoint": peer.url, **_trust(peer), **fields}


def target(peer: Peer, **fields: Any) -> Fields:
    return {"endpoint": peer.url, **_trust(peer), **fields}


def results(job: Fields, image: int = 0) -> dict[str, Fields]:
    """What the job's result says of each target of an image, by endpoint."""
    return {entry["endpoint"]: entry for entry in job["result"]["images"][image]["targets"]}


def check_copied(image: Image, origin: Registry, path: str, *targets: Registry, ref: str = "1") -> None:
    """Every manifest of `image` is at every target byte for byte, and so is every blob; the tag points at it."""
    for registry in targets:
        assert registry.digest(path, ref) == image.digest
        for digest in image.manifests:
            assert registry.manifest(path, digest) == origin.manifest(path, digest)
        for digest in image.blobs:
            assert registry.has_blob(path, digest)


def has_tag(registry: Registry, path: str, tag: str = "1") -> bool:
    """Whether the tag is there now; for looking at it while it may be written."""
    try:
        return registry.digest(path, tag) is not None
    except urllib.error.HTTPError as error:
        if error.code == 500:  # docker-registry has made the file of the tag and not yet filled it
            return False
        raise


def nothing_of(image: Image, path: str, *targets: Registry) -> bool:
    """Whether no target has any part of `image`."""
    return not any(
        registry.tags(path) or any(registry.has_blob(path, digest) for digest in image.blobs) for registry in targets
    )


def named(text: str) -> str:
    """`text` as a repository's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _trust(peer: Peer) -> Fields:
    """How a request gets into this peer."""
    return {"auth": BASIC} if isinstance(peer, Registry) and peer.is_private else {}
