"""The way to all registries: one HTTP client, the limits of each host, and what configuration says of them."""

import os
from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import Self
from weakref import WeakValueDictionary

from imagejobd.model.circuit import Circuits
from imagejobd.model.egress import Egress
from imagejobd.model.errors import Fault, Temporary
from imagejobd.model.job import NOBODY, Principal
from imagejobd.model.reference import DEFAULT_TAG, ImageReference
from imagejobd.model.resolver import Resolver
from imagejobd.model.secrets import Credentials
from imagejobd.model.traffic import Traffic
from imagejobd.registry.connection import Connection
from imagejobd.registry.errors import LOGIN_NOT_FOR_YOU, Unanswered
from imagejobd.registry.hosts import LOGIN_HINT, Origin, RegistryHost, RegistryHosts, RegistryTarget
from imagejobd.registry.http import IDLE_TIMEOUT_S, HttpClient
from imagejobd.registry.limits import HostLimiter, Timing
from imagejobd.registry.proxies import Proxies
from imagejobd.registry.repository import Repository

# Users name hosts as they like; the limits of one that nobody has a connection to for long are learnt again.
LIMITERS_MAX = 1024


class RegistryClient:
    """Asks registries. Open it inside the event loop that uses it; safe for many tasks at once.

    `egress` decides which addresses may be reached: a registry names its token server and redirects as it likes.
    """

    def __init__(
        self,
        hosts: Mapping[str, RegistryHost],
        egress: Egress,
        *,
        admin_subjects: Collection[str] = (),
        idle_timeout_s: float = IDLE_TIMEOUT_S,
        proxies: Proxies | None = None,
        timing: Timing | None = None,
        names: Resolver | None = None,
        circuits: Circuits | None = None,
        traffic: Traffic | None = None,
    ) -> None:
        """Raises `Permanent(invalid)` for a host's file that cannot be used (see `RegistryHosts`) and for a proxy that
        is none. `admin_subjects` may use every login; `proxies` are those of the environment where none are given,
        `names` are this machine's. `circuits` are shared with all who speak to the same hosts; what is read of
        blobs is added to `traffic`."""
        self._traffic = traffic or Traffic()
        self.circuits = circuits or Circuits()
        self._hosts = RegistryHosts(hosts, admin_subjects=admin_subjects)
        self._timing = timing or Timing()
        self._http = HttpClient(
            egress,
            proxies or Proxies(os.environ),
            circuits=self.circuits,
            idle_timeout_s=idle_timeout_s,
            resolver=names or Resolver(),
        )
        # Whoever holds a limiter shares it with all who come later; the recent ones are kept without a holder.
        self._limiters: WeakValueDictionary[str, HostLimiter] = WeakValueDictionary()
        self._recent: deque[HostLimiter] = deque(maxlen=LIMITERS_MAX)

    def credentials_for(self, host: str, principal: Principal) -> Credentials | None:
        """The configured login of a host, as `ImageReference.host` names it, where `principal` may use it."""
        return self._hosts.of(principal).credentials_for(host)

    def withheld_login(self, host: str, principal: Principal) -> str | None:
        """What to tell `principal` where `host` refuses and has a login configured for others only; else None."""
        is_withheld = self._hosts.of(principal).is_withheld(host)
        return LOGIN_NOT_FOR_YOU.format(hint=LOGIN_HINT, host=host) if is_withheld else None

    def connect(self, site: RegistryTarget, *, warn: Callable[[str], None] = lambda text: None) -> Connection:
        """A connection for one job. Nothing is asked yet. `warn` hears what the registry has to say to people, each
        text once."""
        origin = Origin.to(site, self._hosts)
        host = origin.site.host
        limiter = self._limiters.get(host) or HostLimiter(self._timing)
        self._limiters[host] = limiter
        self._recent.append(limiter)
        return Connection(
            origin,
            self._http,
            limiter,
            self._timing,
            diagnose=self._diagnose,
            mirrors=lambda: tuple(
                self.connect(RegistryTarget(host=name, principal=site.principal), warn=warn)
                for name in self._hosts.mirrors_of(host)
            ),
            warn=warn,
            traffic=self._traffic,
        )

    async def head_manifest(
        self, reference: ImageReference, credentials: Credentials | None, principal: Principal = NOBODY
    ) -> str | None:
        """The digest of the manifest that `reference` points at; None where the registry has no such manifest.

        Without `credentials` it is asked with the configured login that `principal` may use.
        Raises `Permanent(denied)` for 401 and 403, `Permanent(too_large)` beyond 4 MiB, `Temporary` for network
        faults, 429 and 5xx (with the registry's Retry-After), `Permanent(egress)` for a denied address.
        """
        connection = self.connect(RegistryTarget(host=reference.host, login=credentials, principal=principal))
        manifest = await Repository(connection=connection, path=reference.path).head_manifest(
            reference.digest or reference.tag or DEFAULT_TAG
        )
        return manifest.digest if manifest else None

    async def blamed(self, fault: Temporary, host: str) -> Temporary:
        """`fault`, which looks as if `host` (see `peer_name`) did not answer; where that is so, with it as the peer,
        and its circuit open. It is asked once more, in the configured way and for nothing that a user chose: a job must
        not shut others out of a host that is silent to that job alone."""
        try:
            await self.connect(RegistryTarget(host=host)).ping()
        except Unanswered as silence:
            if silence.silent == host:
                self.circuits.failed(host, silence.message)
        except Fault:
            pass
        if not self.circuits.is_open(host):
            return fault
        return Temporary(fault.code, fault.message, retry_after_s=fault.retry_after_s, peer=host)

    async def _diagnose(self, fault: Fault) -> Fault:
        return await self.blamed(fault, fault.silent) if isinstance(fault, Unanswered) else fault

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()
