"""What the kinds that build work with, made for tests without a daemon."""

from imagejobd.building.egress import EngineEgress
from imagejobd.building.tools import BuildTools
from imagejobd.engine.bases import Bases
from imagejobd.engine.client import Engine
from imagejobd.engine.tag_lease import TagLeases
from imagejobd.model.dockerfile.policy import Policy
from imagejobd.model.egress import Egress
from imagejobd.registry.client import RegistryClient
from imagejobd.registry.http.names import Names
from imagejobd.store.blobs import BlobStore


def building_tools(
    engine: Engine,
    registry: RegistryClient,
    blobs: BlobStore,
    *,
    policy: Policy | None = None,
    egress: Egress | None = None,
) -> BuildTools:
    """A set of them, of one tenant."""
    leases = TagLeases(engine)
    return BuildTools(
        engine=engine,
        bases=Bases(engine, leases),
        leases=leases,
        registry=registry,
        egress=EngineEgress(egress or Egress(), Names()),
        blobs=blobs,
        policy=policy or Policy(),
        cache_scope=lambda tenant: "",
    )
