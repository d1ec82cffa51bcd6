"""What the phases of building work with: the adapters of the floor below."""

from collections.abc import Callable

import msgspec

from imagejobd.building.access import RegistryAccess
from imagejobd.building.egress import EngineEgress
from imagejobd.engine.bases import Bases
from imagejobd.engine.client import Engine
from imagejobd.engine.tag_lease import Known, TagLeases
from imagejobd.model.dockerfile.policy import Policy
from imagejobd.model.job import OPERATOR
from imagejobd.model.secret import Credentials
from imagejobd.model.work import Work
from imagejobd.registry.client import RegistryClient
from imagejobd.store.blobs import BlobStore


class BuildTools(msgspec.Struct, frozen=True, kw_only=True):
    """One set for all kinds that build; stateless but for what the adapters hold."""

    engine: Engine
    bases: Bases
    registry: RegistryClient
    egress: EngineEgress
    blobs: BlobStore
    policy: Policy
    leases: TagLeases
    # Which of some UUIDs are jobs of this daemon's.
    known: Known
    # Who shares steps and cache mounts with a tenant, as a name; "" is everybody.
    cache_scope: Callable[[str], str]

    def access(self, work: Work, *, own_host: str = "", own: Credentials | None = None) -> RegistryAccess:
        """What the job's submitter may do at registries; `own` are the credentials of the request, for `own_host`."""
        return RegistryAccess(self.registry, self.egress, work, work.job.principal, own_host=own_host, own=own)

    def operators_access(self, work: Work) -> RegistryAccess:
        """What the operator may do, for what the configuration orders, whoever's job it is."""
        return RegistryAccess(self.registry, self.egress, work, OPERATOR)
