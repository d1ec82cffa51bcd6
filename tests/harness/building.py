"""What the kinds that build work with, made for tests without a daemon."""

from collections.abc import Collection

from imagejobd.dockerfile.policy import Policy
from imagejobd.engine.base_images import BaseImages
from imagejobd.engine.client import Engine
from imagejobd.engine.tag_lease import TagLeases
from imagejobd.jobs.shared.access import EngineEgress
from imagejobd.jobs.shared.build import BuildTools
from imagejobd.model.clock import now_ms
from imagejobd.model.egress import Egress
from imagejobd.model.ownership import PulledBase
from imagejobd.registry.client import RegistryClient
from imagejobd.registry.http.resolver import Resolver
from imagejobd.store.blobs import BlobStore


class RememberedBases:
    """`model.bases.PulledBases` in memory; a test may set the times."""

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


def building_tools(
    engine: Engine,
    registry: RegistryClient,
    blobs: BlobStore,
    *,
    policy: Policy | None = None,
    egress: Egress | None = None,
) -> BuildTools:
    """A set of them, of one tenant."""
    leases = TagLeases(engine, nobody_known)
    return BuildTools(
        engine=engine,
        bases=BaseImages(engine, leases, RememberedBases()),
        leases=leases,
        known=nobody_known,
        registry=registry,
        egress=EngineEgress(egress or Egress(), Resolver()),
        blobs=blobs,
        policy=policy or Policy(),
        cache_scope=lambda tenant: "",
    )
