"""What the kinds that build work with, made for tests without a daemon."""

from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

from imagejobd.dockerfile.policy import Policy
from imagejobd.engine.client import Engine
from imagejobd.jobs.shared.access import EngineEgress
from imagejobd.jobs.shared.builder import ImageBuilder
from imagejobd.model.clock import now_ms
from imagejobd.model.egress import Egress
from imagejobd.model.ownership import PulledBase
from imagejobd.model.resolver import Resolver
from imagejobd.registry.client import RegistryClient
from imagejobd.store.blobs import BlobStore


class RememberedBases:
    """`model.ownership.PulledBases` in memory; a test may set the times."""

    def __init__(self) -> None:
        self.by_name: dict[str, PulledBase] = {}

    async def pulled(self, name: str, image_id: str) -> None:
        self.by_name[name] = PulledBase(name, image_id, now_ms())

    async def used(self, name: str) -> None:
        if found := self.by_name.get(name):
            await self.pulled(name, found.image_id)

    async def bases(self) -> list[PulledBase]:
        return sorted(self.by_name.values(), key=lambda base: -base.used_ms)

    async def forget(self, base: PulledBase) -> None:
        del self.by_name[base.name]


async def nobody_known(uuids: Collection[str]) -> set[str]:
    """For tests without a store: no job is known by its UUID alone."""
    return set()


def parsing_builder() -> Any:
    """As much of an `ImageBuilder` as a kind needs to parse specs and to say which hosts a job needs."""
    return SimpleNamespace(policy=Policy(), knows_heredocs=True, blobs=None)


def image_builder(
    engine: Engine,
    registry: RegistryClient,
    blobs: BlobStore,
    *,
    policy: Policy | None = None,
    egress: Egress | None = None,
) -> ImageBuilder:
    """One of a daemon with a single tenant."""
    return ImageBuilder(
        engine,
        registry,
        EngineEgress(egress or Egress(), Resolver()),
        blobs,
        policy or Policy(),
        records=RememberedBases(),
        known=nobody_known,
        cache_scope=lambda tenant: "",
    )
