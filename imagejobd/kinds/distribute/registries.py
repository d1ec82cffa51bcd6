"""The registries of one job: connected once each, and their logins kept out of everything the job tells."""

from collections.abc import Callable, Mapping

from msgspec.structs import replace

from imagejobd.kinds.distribute.hidden import hidden_words
from imagejobd.kinds.distribute.spec import SOURCE_AUTH, DistributeSpec, target_auth
from imagejobd.model.circuit import peer_name
from imagejobd.model.job import Principal
from imagejobd.model.secret import Secret
from imagejobd.registry.client import RegistryClient
from imagejobd.registry.connection import Connection
from imagejobd.registry.content.repository import Repository
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
        words = {word for auth in self._secrets.values() for word in hidden_words(auth)}
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
