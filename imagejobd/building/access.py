"""What one job may do at registries: whether the engine may go there, as whom it logs in, and what its user hears where
that is not enough."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager

from imagejobd.building.egress import EngineEgress
from imagejobd.model.circuit import peer_name
from imagejobd.model.errors import ClaimLost, ErrorCode, Permanent, StoreFailed, Temporary
from imagejobd.model.job import Principal
from imagejobd.model.reference import HUB_HOST, ImageReference
from imagejobd.model.secret import Credentials
from imagejobd.model.work import Work
from imagejobd.registry.client import RegistryClient

# Engines and registries say of what is private that it is not there, too.
_REFUSALS = frozenset({ErrorCode.DENIED, ErrorCode.NOT_FOUND})


class RegistryAccess:
    """`own`, the login of the request, is for `own_host`; all other hosts get the configured one where `principal` may
    use it."""

    def __init__(
        self,
        registry: RegistryClient,
        egress: EngineEgress,
        work: Work,
        principal: Principal,
        *,
        own_host: str = "",
        own: Credentials | None = None,
    ) -> None:
        self._registry = registry
        self._egress = egress
        self._work = work
        self._principal = principal
        self._own_host = own_host
        self._own = own

    def credentials(self, host: str) -> Credentials | None:
        """The login at `host`, kept out of the job's log and error from now on."""
        own = self._own if host == self._own_host else None
        found = own or self._registry.credentials_for(host, self._principal)
        if found is not None:
            self._work.conceal(found.password)
        return found

    def credentials_at(self, hosts: Iterable[str]) -> dict[str, Credentials]:
        """The logins at those of `hosts` that have one."""
        return {host: found for host in set(hosts) if (found := self.credentials(host)) is not None}

    @asynccontextmanager
    async def contact(self, host: str) -> AsyncIterator[None]:
        """Have the engine speak to `host` meanwhile. A refusal says so where a login is configured, but not for this
        job's submitter. Raises as `EngineEgress` and `Circuits.check` do, and a `Temporary` with `host` as its peer
        where neither the engine nor this daemon gets an answer there."""
        await self._egress.check_registry(host)
        peer, circuits = peer_name(host), self._registry.circuits
        # The one registry that engines may know by mirrors of their own, where it cannot be reached from here.
        if host != HUB_HOST:
            circuits.check(peer)
        try:
            with self._advised(host):
                yield
        except Temporary as fault:
            circuits.abandoned(peer)
            if fault.code is not ErrorCode.REGISTRY_UNAVAILABLE or fault.peer is not None:
                raise
            raise await self._registry.blamed(fault, peer) from fault
        except (asyncio.CancelledError, ClaimLost, StoreFailed):
            circuits.abandoned(peer)
            raise
        except Permanent:
            circuits.answered(peer)
            raise
        circuits.answered(peer)

    @contextmanager
    def _advised(self, host: str) -> Iterator[None]:
        try:
            yield
        except Permanent as fault:
            advice = self._registry.withheld_login(host, self._principal)
            if fault.code not in _REFUSALS or advice is None or self.credentials(host) is not None:
                raise
            raise Permanent(fault.code, f"{fault.message}; {advice}") from fault

    @asynccontextmanager
    async def pull(self, reference: ImageReference) -> AsyncIterator[None]:
        """Have the engine pull `reference` meanwhile; raises as `contact` does.

        What the engine has seen before it pulls by digest without asking the registry (`manifestStore` of moby's
        distribution), whoever it was pulled for: so the registry is asked here.
        """
        if reference.digest is not None:
            await self._egress.check_registry(reference.host)
            # Before the contact: where the registry was down, this request is the one that may try.
            with self._advised(reference.host):
                await self._check_readable(reference)
        async with self.contact(reference.host):
            yield

    async def _check_readable(self, reference: ImageReference) -> None:
        try:
            digest = await self.head_manifest(reference)
        except Temporary:
            if reference.host == HUB_HOST:
                return
            raise
        if digest is None:
            raise Permanent(ErrorCode.NOT_FOUND, f"pulling {reference}: the registry has no such manifest")

    async def head_manifest(self, reference: ImageReference) -> str | None:
        """As `RegistryClient.head_manifest`."""
        credentials = self.credentials(reference.host)
        return await self._registry.head_manifest(reference, credentials, self._principal)
