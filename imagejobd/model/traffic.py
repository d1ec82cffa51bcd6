"""Bytes of blobs that went from and to registries since the start, by registry.

Nothing here does I/O: who reads says so as it reads, and who pushes as soon as a push has ended.
"""

from collections.abc import Collection, Mapping

import msgspec

from imagejobd.model.circuit import peer_name

# Users name registries as they like, and each is a handful of time series for as long as the daemon runs.
NAMED_MAX = 50
# Where the bytes of all further registries are counted; no host that pushes or pulls go to has this name.
OTHER = "other"


class Bytes(msgspec.Struct, kw_only=True):
    """Of one registry. `read` is what came from it, `sent` went there; it had `skipped` already, and took `mounted`
    over from another repository of its own."""

    read: int = 0
    sent: int = 0
    mounted: int = 0
    skipped: int = 0


class Traffic:
    """The bytes of each registry, by its name (see `peer_name`): of those that are `configured`, of the first
    `NAMED_MAX` others, and of the rest together."""

    def __init__(self, configured: Collection[str] = ()) -> None:
        self._registries = {OTHER: Bytes()} | {peer_name(name): Bytes() for name in configured}
        self._named_max = len(self._registries) + NAMED_MAX

    @property
    def registries(self) -> Mapping[str, Bytes]:
        return self._registries

    def add(self, registry: str, *, read: int = 0, sent: int = 0, mounted: int = 0, skipped: int = 0) -> None:
        """So many bytes more. A registry takes a name with its first bytes, not by being asked for."""
        total = self._registries.get(registry)
        if total is None:
            if not (read or sent or mounted or skipped):
                return
            name = registry if len(self._registries) < self._named_max else OTHER
            total = self._registries.setdefault(name, Bytes())
        total.read += read
        total.sent += sent
        total.mounted += mounted
        total.skipped += skipped
