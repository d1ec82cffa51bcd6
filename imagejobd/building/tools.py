"""What the phases of building work with: the adapters of the floor below."""

from collections.abc import Callable

import msgspec

from imagejobd.engine.bases import Bases
from imagejobd.engine.client import Engine
from imagejobd.engine.tag_lease import TagLeases
from imagejobd.model.dockerfile.policy import Policy
from imagejobd.model.reserved import JOB_PREFIX
from imagejobd.model.secret import Credentials
from imagejobd.model.work import Work
from imagejobd.registry.client import RegistryClient
from imagejobd.store.blobs import BlobStore

CredentialsFor = Callable[[str], Credentials | None]


class BuildTools(msgspec.Struct, frozen=True, kw_only=True):
    """One set for all kinds that build; stateless but for what the adapters hold."""

    engine: Engine
    bases: Bases
    registry: RegistryClient
    blobs: BlobStore
    policy: Policy
    leases: TagLeases
    # Who shares steps and cache mounts with a tenant, as a name; "" is everybody.
    cache_scope: Callable[[str], str]

    def credentials_for(self, work: Work, *, own_host: str = "", own: Credentials | None = None) -> CredentialsFor:
        """Credentials by registry host: `own`, those of the request, for `own_host`, else those configured, else
        none."""

        def lookup(host: str) -> Credentials | None:
            found = own if own is not None and host == own_host else self.registry.credentials_for(host)
            if found is not None:
                work.conceal(found.password)
            return found

        return lookup


def job_repository(uuid: str) -> str:
    """The engine-local repository that holds a job's images and nobody else's: identical builds share an image id,
    so the name is what makes one job's image its own."""
    return f"{JOB_PREFIX}{uuid}"
