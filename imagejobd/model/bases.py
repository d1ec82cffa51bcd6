"""The public base images that this service has pulled: how the engine's floor asks the store's to remember them."""

from typing import Protocol

import msgspec


class PulledBase(msgspec.Struct, frozen=True):
    """`name` has a tag or a digest, as the engine shows it; `image_id` is what it meant when it was pulled."""

    name: str
    image_id: str
    used_ms: int


class PulledBases(Protocol):
    """All of them, durably."""

    async def pulled(self, name: str, image_id: str) -> None:
        """Remember a base, used now."""
        ...

    async def used(self, name: str) -> None:
        """Note that a base was used now, where it is remembered."""
        ...

    async def bases(self) -> list[PulledBase]:
        """The last used first."""
        ...

    async def forget(self, base: PulledBase) -> None:
        """No longer remember it, unless its name was pulled as another image since."""
        ...
