"""The registries of one job: connected once each, and their logins kept out of everything the job tells."""

from collections.abc import Callable, Mapping

import msgspec
from msgspec.structs import replace

from imagejobd.jobs.distribute.auth import secret_words
from imagejobd.jobs.distribute.spec import SOURCE_AUTH, DistributeSettings, DistributeSpec, target_auth
from imagejobd.jobs.distribute.table import Record, Wait
from imagejobd.model.circuit import Circuits, peer_name
from imagejobd.model.concurrency import KeyedLock
from imagejobd.model.errors import ErrorCode, Fault, Temporary
from imagejobd.model.job import Principal
from imagejobd.model.secrets import Secret
from imagejobd.registry.client import RegistryClient
from imagejobd.registry.connection import Connection
from imagejobd.registry.content.repository import Repository
from imagejobd.registry.copy.flight import Flights
from imagejobd.registry.site import Site


class Registries:
    """`secrets` are the job's, `principal` is who may use configured logins; `warn` hears what registries warn of.
    Nothing is asked yet."""

    def __init__(
        self,
        client: RegistryClient,
        spec: DistributeSpec,
        secrets: Mapping[str, Secret],
        principal: Principal,
        warn: Callable[[str], None],
    ) -> None:
        self._client = client
        self._secrets = secrets
        self._principal = principal
        self._warn = warn
        self._connections: dict[tuple[object, ...], Connection] = {}
        self._source = self._connection(spec.source_site(secrets), secrets.get(SOURCE_AUTH))
        self._targets = [
            self._connection(spec.target_site(index, secrets), secrets.get(target_auth(index)))
            for index in range(len(spec.targets))
        ]

    def source(self, path: str) -> Repository:
        return Repository(connection=self._source, path=path)

    def target(self, index: int, path: str) -> Repository:
        return Repository(connection=self._targets[index], path=path, may_push=True)

    def peers(self, index: int) -> tuple[str, str]:
        """Who has to answer before anything can go to a target: the source, and the target itself."""
        source, target = (connection.site for connection in (self._source, self._targets[index]))
        return peer_name(source.host, source.scheme), peer_name(target.host, target.scheme)

    def secret_words(self) -> set[Secret]:
        """All that must not be told: what is secret of the requests' logins, and the configured passwords of these
        hosts and of the source's mirrors, as far as they are used: hiding others would tell who guesses one."""
        words = {word for auth in self._secrets.values() for word in secret_words(auth)}
        for connection in (*self._connections.values(), *self._source.mirrors()):
            if configured := self._client.credentials_for(connection.host, self._principal):
                words.add(configured.password)
        return words

    def _connection(self, site: Site, auth: Secret | None) -> Connection:
        """One for all places that are the same registry with the same login."""
        key = (site.host, site.scheme, site.verify_tls, auth)
        if key not in self._connections:
            self._connections[key] = self._client.connect(replace(site, principal=self._principal), warn=self._warn)
        return self._connections[key]


class Tools(msgspec.Struct, frozen=True, kw_only=True):
    """One set for the whole daemon; `flights` and `turns` are what lets jobs share a read or wait for one another."""

    registry: RegistryClient
    flights: Flights
    settings: DistributeSettings
    turns: KeyedLock = msgspec.field(default_factory=KeyedLock)


IN_A_ROW_MAX = 2


class Outage(msgspec.Struct, frozen=True):
    """Why a target is left alone, fit to be shown, and what the rest of its copies wait for."""

    error: str
    wait: Wait


class Outages:
    """What the images of one attempt, and all jobs through `circuits`, found out about the targets."""

    def __init__(self, registries: Registries, circuits: Circuits, now_ms: Callable[[], int]) -> None:
        self._registries = registries
        self._circuits = circuits
        self._now_ms = now_ms
        self._in_a_row: dict[int, int] = {}
        self._last: dict[int, Outage] = {}

    def note(self, target: int, fault: Fault | None, record: Record) -> None:
        """A copy that was tried has ended with `fault`, as `record` tells it."""
        if record.error is None or not _is_outage(fault):
            self._in_a_row.pop(target, None)
            return
        self._in_a_row[target] = self._in_a_row.get(target, 0) + 1
        self._last[target] = Outage(record.error, record.wait)

    def find(self, target: int) -> Outage | None:
        """Why the target, or the source, is not worth another try now; None where both are."""
        for peer in self._registries.peers(target):
            if refusal := self._circuits.refusal(peer):
                return Outage(refusal.message, Wait.of(refusal, self._now_ms()))
        if target not in self._in_a_row:
            return None
        last = self._last[target]
        is_left = self._in_a_row[target] >= IN_A_ROW_MAX or last.wait.rest_s(self._now_ms()) > 0
        return last if is_left else None


def _is_outage(fault: Fault | None) -> bool:
    return isinstance(fault, Temporary) and fault.code is ErrorCode.REGISTRY_UNAVAILABLE
