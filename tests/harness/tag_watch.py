"""A tag under observation: at every moment of a copy it is absent, or what it points at is all there."""

import threading
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager

from harness.images import Image
from harness.registry import Registry

POLL_INTERVAL_S = 0.02


@contextmanager
def never_half(image: Image, registry: Registry, path: str, tag: str = "1") -> Iterator[None]:
    """Look at the tag over and over while the block lasts. Raises `AssertionError` if it pointed at half an image."""
    over = threading.Event()
    found: list[str] = []

    def watch() -> None:
        while not over.wait(POLL_INTERVAL_S):
            found.extend(_missing(image, registry, path, tag))

    thread = threading.Thread(target=watch, name="tag-watch")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert not found, f"the tag pointed at an image that lacks {found[0]}"


def _missing(image: Image, registry: Registry, path: str, tag: str) -> list[str]:
    try:
        if registry.digest(path, tag) is None:
            return []
        manifests = [digest for digest in image.manifests if registry.digest(path, digest) is None]
        return manifests + [digest for digest in image.blobs if not registry.has_blob(path, digest)]
    except (urllib.error.URLError, ConnectionError):
        return []  # an outage is no lie
