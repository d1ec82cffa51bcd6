"""How one job's connection to a host is made: the ways to try, the certificates to trust, and the login to use.

A configured login and client certificate belong to the connection that was configured, and to whom the operator lends
them. What a request weakened (plain HTTP where TLS is configured, any certificate where it is verified) does not get
them.
"""

import hashlib
import hmac
import secrets
import ssl
from collections.abc import Iterator

import msgspec
from yarl import URL

from imagejobd.model.secrets import Credentials
from imagejobd.registry.faults import LOGIN_CONFIGURABLE, LOGIN_NOT_FOR_YOU, LOGIN_WEAKENED
from imagejobd.registry.http.address import host_of
from imagejobd.registry.settings import Endpoint, RegistryHosts, origin
from imagejobd.registry.site import Login, ReadyToken, Site

# Of this process only, so that what identifies a login cannot be tried out against guesses elsewhere.
_IDENTITY_KEY = secrets.token_bytes(32)


class Identity(msgspec.Struct, frozen=True):
    """Equal only for the same host, reached in the same way with the same trust and login. Shows no secret.

    `withheld` are the host and those of its mirrors whose configured login this connection may not use.
    """

    host: str
    scheme: str
    is_verified: bool
    is_weakened: bool
    login: str
    withheld: frozenset[str]


class Approach(msgspec.Struct, frozen=True, eq=False):
    """How to reach a site. `endpoints` are tried in order until one lets itself be connected to."""

    site: Site
    hosts: RegistryHosts
    endpoints: tuple[Endpoint, ...]
    is_weakened: bool
    login: Login | None

    @classmethod
    def to(cls, site: Site, hosts: RegistryHosts) -> "Approach":
        """The approach to `site` that configuration and request allow together. Its own `site` has the host's
        configured name, its `hosts` only the logins that the site's principal may use."""
        hosts = hosts.of(site.principal)
        site = msgspec.structs.replace(site, host=hosts.name_of(site.host, site.scheme))
        configured = hosts.endpoints(site.host)
        is_verified = configured[0].tls.verify_mode is ssl.CERT_REQUIRED
        without_tls = site.scheme == "http" and not any(e.origin.startswith("http:") for e in configured)
        is_weakened = without_tls or (site.verify_tls is False and is_verified and not _is_plain(configured))
        tls = _tls(site, hosts, is_weakened=is_weakened)
        return cls(
            site=site,
            hosts=hosts,
            endpoints=tuple(Endpoint(found, tls) for found in _origins(site, configured)),
            is_weakened=is_weakened,
            login=site.login or (None if is_weakened else hosts.credentials_for(site.host)),
        )

    @property
    def withheld(self) -> str:
        """What to say to who may not use the login that is configured for this host; empty for all others."""
        if not self.hosts.is_withheld(self.site.host):
            return ""
        return LOGIN_NOT_FOR_YOU.format(hint=self.site.login_hint, host=self.site.host)

    @property
    def advice(self) -> str:
        """What to do where the registry wants a login and this connection has none."""
        if self.withheld:
            return self.withheld
        is_weaker = self.hosts.credentials_for(self.site.host) is not None
        advice = LOGIN_WEAKENED if is_weaker else LOGIN_CONFIGURABLE
        return advice.format(hint=self.site.login_hint, host=self.site.host)

    @property
    def is_login_configured(self) -> bool:
        """Whether the login is the operator's."""
        return self.login is not None and self.site.login is None

    @property
    def identity(self) -> Identity:
        return Identity(
            host=self.site.host,
            scheme=self.endpoints[0].origin.partition(":")[0] if len(self.endpoints) == 1 else "",
            is_verified=self.endpoints[0].tls.verify_mode is ssl.CERT_REQUIRED,
            is_weakened=self.is_weakened,
            login=_fingerprint(self.login),
            withheld=frozenset(
                filter(self.hosts.is_withheld, (self.site.host, *self.hosts.mirrors_of(self.site.host)))
            ),
        )

    def tls_for(self, url: URL) -> ssl.SSLContext:
        """What to trust at `url`, the site itself or where it sends us, which sees no client certificate.

        A request that does without verification does so elsewhere too, but not with the operator's login: a token
        server gets it, and whom the operator did not configure is verified.
        """
        for endpoint in self.endpoints:
            own = URL(endpoint.origin)
            if (own.host, own.port) == ((url.host or "").lower(), url.port):
                return endpoint.tls
        name = self.hosts.name_of(host_of(url), url.scheme)
        if self.site.verify_tls is False and not self.is_login_configured and not self.hosts.is_configured(name):
            return self.hosts.unverified
        return self.hosts.certificates_for(name).foreign


def _is_plain(configured: list[Endpoint]) -> bool:
    return configured[0].origin.startswith("http:")


def _tls(site: Site, hosts: RegistryHosts, *, is_weakened: bool) -> ssl.SSLContext:
    configured = hosts.certificates_for(site.host)
    if is_weakened:
        return hosts.unverified if site.verify_tls is False else configured.foreign
    if site.verify_tls is None:
        return configured.own
    if site.verify_tls:
        return configured.strict
    return configured.own if configured.own.verify_mode is ssl.CERT_NONE else hosts.unverified


def _origins(site: Site, configured: list[Endpoint]) -> list[str]:
    if site.scheme is not None:
        return [origin(site.scheme, site.host)]
    origins = [endpoint.origin for endpoint in configured]
    # Who asks for verification is not served by the plain HTTP that loopback may fall back to.
    return origins[:1] if site.verify_tls is True else origins


def _fingerprint(login: Login | None) -> str:
    if login is None:
        return ""
    digest = hmac.new(_IDENTITY_KEY, digestmod=hashlib.sha256)
    for part in _parts(login):
        data = part.encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def _parts(login: Login) -> Iterator[str]:
    if isinstance(login, Credentials):
        yield from ("basic", login.username, login.password.reveal())
        return
    if isinstance(login, ReadyToken):
        yield from ("ready", login.token_type, login.token.reveal())
        return
    yield from ("token", login.url.reveal(), login.token_type, login.body.reveal() if login.body else "")
    for name, value in sorted(login.headers.items()):
        yield from (name, value.reveal())
