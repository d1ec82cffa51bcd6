"""Whether the bytes of a source are the blob that was asked for."""

import hashlib

from imagejobd.model.errors import ErrorCode, Permanent
from imagejobd.registry.manifest import Descriptor
from imagejobd.registry.repository import Repository


class Proof:
    """The length and the running hash of what has come of `blob` from `source`. Raises `Permanent(copy_failed)`."""

    def __init__(self, source: Repository, blob: Descriptor) -> None:
        self._source = source
        self._blob = blob
        self._algorithm = blob.digest.partition(":")[0]
        self._hash = hashlib.new(self._algorithm)
        self._received_bytes = 0

    @property
    def is_complete(self) -> bool:
        """Whether all bytes have come; whether they are the right ones, `check` tells."""
        return self._received_bytes == self._blob.size

    def add(self, chunk: bytes) -> None:
        """The next bytes. Raises when they are more than the blob has."""
        self._hash.update(chunk)
        self._received_bytes += len(chunk)
        if self._received_bytes > self._blob.size:
            raise self._refused(f"the source sent more than its {self._blob.size} bytes")

    def check(self) -> None:
        """Raise unless everything that has come is the blob."""
        if not self.is_complete:
            raise self._refused(f"the source sent {self._received_bytes} of its {self._blob.size} bytes")
        digest = f"{self._algorithm}:{self._hash.hexdigest()}"
        if digest != self._blob.digest:
            raise self._refused(f"the source sent other bytes (their digest is {digest})")

    def _refused(self, why: str) -> Permanent:
        return Permanent(ErrorCode.COPY_FAILED, f"blob {self._blob.digest} of {self._source}: {why}")
