"""What a job's build may reach by way of the engine: which hosts, as whom it logs in there, and what its user is told
where that is not enough.

The engine connects by itself, so only names can be asked about, a moment before. Where it is led to later cannot be
seen: redirects, the token server and the storage that a registry names, submodules of a git repository, a name that
means something else by then, the engine's own mirrors and proxies.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager

from yarl import URL

from imagejobd.dockerfile.parser import parse, parse_trigger
from imagejobd.dockerfile.remotes import Remote, remotes
from imagejobd.model.circuit import peer_name
from imagejobd.model.concurrency import gather_or_cancel
from imagejobd.model.egress import Egress
from imagejobd.model.errors import ClaimLost, ErrorCode, NotFound, Permanent, StoreFailed, Temporary
from imagejobd.model.job import Principal
from imagejobd.model.kind import JobContext
from imagejobd.model.reference import HUB_HOST, ImageReference
from imagejobd.model.resolver import Resolver
from imagejobd.model.secrets import Credentials
from imagejobd.registry.address import numeric_address
from imagejobd.registry.client import RegistryClient
from imagejobd.registry.hosts import RegistryTarget, origin
from imagejobd.registry.manifest import Descriptor
from imagejobd.registry.repository import Repository

# Of all ADDs of a build.
HOSTS_MAX = 100
# Of an index: what a build makes is one image and what attests to it.
CHILDREN_MAX = 4
# Engines and registries say of what is private that it is not there, too.
_REFUSALS = frozenset({ErrorCode.DENIED, ErrorCode.NOT_FOUND})


class EngineEgress:
    """`[egress]` over what the engine is about to fetch or push to.

    All methods raise `Permanent(egress)` for what may not be connected to. A name that does not resolve here is left to
    the engine, which may know it by its proxy; where private networks are off limits it is `Temporary`, for it may be
    one of theirs.
    """

    def __init__(self, egress: Egress, resolver: Resolver) -> None:
        self._egress = egress
        self._resolver = resolver

    async def check_registry(self, host: str) -> None:
        """Ask about a registry, named as image references have it."""
        await self._check(URL(origin("https", host)).host or "", f"registry {host}", ErrorCode.REGISTRY_UNAVAILABLE)

    async def check_dockerfile(self, text: str) -> None:
        """Ask about what the ADDs of a Dockerfile, which was judged, would fetch."""
        sources = await asyncio.to_thread(lambda: list(remotes(parse(text).instructions)))
        await self._check_remotes(sources, "Dockerfile")

    async def check_triggers(self, image: str, triggers: Iterable[str]) -> None:
        """Ask about what the ONBUILD triggers of a base, which were judged, would fetch."""
        await self._check_remotes(list(remotes(map(parse_trigger, triggers))), f"ONBUILD of {image}")

    async def _check_remotes(self, sources: list[Remote], where: str) -> None:
        hosts: dict[str, str] = {}
        for remote in sources:
            subject = f"{where} line {remote.line}: ADD"
            if remote.host is not None:
                hosts.setdefault(remote.host.lower(), f"{subject} from {remote.host}")
            elif remote.is_url or not self._egress.allows_private:
                raise Permanent(ErrorCode.EGRESS, f"{subject}: {_unknown_host(remote)}")
        if len(hosts) > HOSTS_MAX:
            raise Permanent(ErrorCode.EGRESS, f"{where}: its ADDs name more than {HOSTS_MAX} hosts, the limit")
        await gather_or_cancel(self._check(host, subject, ErrorCode.FETCH_FAILED) for host, subject in hosts.items())

    async def _check(self, host: str, subject: str, otherwise: ErrorCode) -> None:
        try:
            # All that it means: which of them the engine takes is its own affair.
            address = numeric_address(host.rstrip("."))
            for ip in [address] if address else [each["host"] for each in await self._resolver.resolve(host)]:
                self._egress.check(ip)
        except OSError:
            if self._egress.allows_private:
                return
            why = f"{host} does not resolve here, so that it is unknown whether [egress] allows it"
            raise Temporary(otherwise, f"{subject}: {why}") from None
        except Permanent as fault:
            raise fault.with_message(f"{subject}: {fault.message}") from None


class RegistryAccess:
    """What one job may do at registries, on behalf of `principal`.

    `login`, that of the request, is for `login_host`; all other hosts get the configured one where `principal` may use
    it.
    """

    def __init__(
        self,
        registry: RegistryClient,
        egress: EngineEgress,
        ctx: JobContext,
        principal: Principal,
        *,
        login_host: str = "",
        login: Credentials | None = None,
    ) -> None:
        self._registry = registry
        self._egress = egress
        self._ctx = ctx
        self._principal = principal
        self._login_host = login_host
        self._login = login

    def credentials(self, host: str) -> Credentials | None:
        """The login at `host`, kept out of the job's log and error from now on."""
        login = self._login if host == self._login_host else None
        credentials = login or self._registry.credentials_for(host, self._principal)
        if credentials is not None:
            self._ctx.add_secret(credentials.password)
        return credentials

    def credentials_at(self, hosts: Iterable[str]) -> dict[str, Credentials]:
        """The logins at those of `hosts` that have one."""
        return {host: login for host in set(hosts) if (login := self.credentials(host)) is not None}

    @asynccontextmanager
    async def contact(self, host: str) -> AsyncIterator[None]:
        """Have the engine speak to `host` meanwhile.

        Raises as `EngineEgress` and `Circuits.check` do, and a `Temporary` with `host` as its peer where neither the
        engine nor this daemon gets an answer there.
        """
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
                try:
                    is_there = await self.head_manifest(reference) is not None
                except Temporary:
                    if reference.host != HUB_HOST:
                        raise
                    is_there = True
                if not is_there:
                    raise NotFound(f"pulling {reference}: the registry has no such manifest")
        async with self.contact(reference.host):
            yield

    async def head_manifest(self, reference: ImageReference) -> str | None:
        """As `RegistryClient.head_manifest`."""
        credentials = self.credentials(reference.host)
        return await self._registry.head_manifest(reference, credentials, self._principal)

    async def blobs(self, reference: ImageReference) -> list[Descriptor]:
        """The blobs of the image with that digest, config first; of an index those of its first images."""
        login = self.credentials(reference.host)
        connection = self._registry.connect(RegistryTarget(host=reference.host, login=login, principal=self._principal))
        repository = Repository(connection=connection, path=reference.path)
        top = await repository.get_manifest(str(reference.digest))
        children = [await repository.get_manifest(child.digest) for child in top.children[:CHILDREN_MAX]]
        return [blob for manifest in (top, *children) for blob in manifest.blobs]

    @contextmanager
    def _advised(self, host: str) -> Iterator[None]:
        """A refusal says so where a login is configured, but not for this job's submitter."""
        try:
            yield
        except Permanent as fault:
            advice = self._registry.withheld_login(host, self._principal)
            if fault.code not in _REFUSALS or advice is None or self.credentials(host) is not None:
                raise
            raise fault.with_message(f"{fault.message}; {advice}") from fault


def _unknown_host(remote: Remote) -> str:
    if remote.is_url:
        return "its host cannot be determined; write the URL as scheme://host[:port]/… in plain letters and digits"
    return (
        "what it fetches cannot be checked, and [egress] allow_private is false; write the host of a URL without "
        "variables and quotes, and begin what is in the context with ./"
    )
