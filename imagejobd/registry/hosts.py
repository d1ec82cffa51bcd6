"""TLS towards a host: whom we trust there, and what we show of ourselves.

The client certificate is for the host that it was configured for, reached as configured: a redirect to that host, or a
connection that a request made weaker, does not show it.

What an operator says about registry hosts, and the files that it names.

Files are read once, at start, so that a missing one is found then and not by a job at night. A host that is not
configured gets what the Docker Engine gives it: verified TLS, or on loopback anything that answers.

Which registry a job speaks to, how far it is trusted, and how and for whom to log in there.

Configuration says it for hosts, a request may say it for itself. A configured login or client certificate belongs to
the connection that was configured: it is never used over one that a request made weaker.

How one job's connection to a host is made: the ways to try, the certificates to trust, and the login to use.

A configured login and client certificate belong to the connection that was configured, and to whom the operator lends
them. What a request weakened (plain HTTP where TLS is configured, any certificate where it is verified) does not get
them.
"""

import copy
import hashlib
import hmac
import re
import secrets
import ssl
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Literal, Self

import msgspec
from yarl import URL

from imagejobd.model.egress import is_loopback
from imagejobd.model.errors import Permanent, invalid
from imagejobd.model.job import LOCAL_TENANT, NOBODY, Principal
from imagejobd.model.reference import HUB_HOST, ImageReference
from imagejobd.model.secrets import Credentials, Secret
from imagejobd.registry.address import HUB_API_HOST, host_of
from imagejobd.registry.errors import LOGIN_CONFIGURABLE, LOGIN_NOT_FOR_YOU, LOGIN_WEAKENED

ClientFiles = tuple[str, str]
"""Paths of our certificate, with what leads to its authority, and of its key."""


class Certificates(msgspec.Struct, frozen=True, eq=False):
    """`own`: as configured. `strict`: verified, whatever is configured. `foreign`: as configured, without our
    certificate, for where others send us."""

    own: ssl.SSLContext
    strict: ssl.SSLContext
    foreign: ssl.SSLContext


def certificates(*, is_verified: bool, ca_file: str | None, client_files: ClientFiles | None) -> Certificates:
    """Read the files. Raises `OSError`; an `ssl.SSLError` among them means a file that is no certificate or key."""
    strict = _showing(verified(ca_file), client_files)
    if is_verified:
        return Certificates(strict, strict, strict if client_files is None else verified(ca_file))
    return Certificates(_showing(unverified(), client_files), strict, unverified())


def verified(ca_file: str | None = None) -> ssl.SSLContext:
    """Trust in the system's authorities and those of `ca_file`."""
    context = ssl.create_default_context()
    if ca_file is not None:
        context.load_verify_locations(cafile=ca_file)
    return context


def unverified() -> ssl.SSLContext:
    """Trust in any certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # without the authorities, whose reading takes its time
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _showing(context: ssl.SSLContext, client_files: ClientFiles | None) -> ssl.SSLContext:
    if client_files is not None:
        # An encrypted key would make OpenSSL ask for its password on the terminal.
        context.load_cert_chain(*client_files, password=_no_password)
    return context


def _no_password() -> str:
    raise ssl.SSLError(ssl.SSL_ERROR_SSL, "the key is encrypted")


PASSWORD_FILE_MAX_BYTES = 64 * 1024
# Object storage behind a registry takes no smaller part than this but the last (Amazon S3, "multipart upload limits").
CHUNK_MIN_BYTES = 5 * 1024 * 1024
EVERY_TENANT = "*"

# The tenant of a token is an integer.
_TENANT = re.compile(rf"{LOCAL_TENANT}|{re.escape(EVERY_TENANT)}|0|-?[1-9][0-9]*", re.ASCII)


class RegistryHost(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[registry."host:port"]`: how to log in there and what to trust.

    `ca_file` (PEM) is trusted besides the system's authorities; `insecure` trusts any certificate, as is done on
    loopback without a `ca_file`; `plain_http` uses no TLS at all. `cert_file` and `key_file` (PEM) are shown to a host
    that asks who we are. `mirrors` are hosts that blobs are read from first, by digest only. `chunk_bytes` uploads
    blobs in PATCHes of that size, for hosts that take no large request. `tenants` may use the login and the client
    certificate, `"*"` being all of them; admin subjects always may.
    """

    username: str = ""
    password_file: str | None = None
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    plain_http: bool = False
    insecure: bool = False
    mirrors: tuple[str, ...] = ()
    chunk_bytes: int | None = None
    tenants: tuple[str, ...] = (LOCAL_TENANT,)


class Endpoint(msgspec.Struct, frozen=True):
    """One way to reach a host: the origin of its API (`scheme://host[:port]`) and the certificates to trust there."""

    origin: str
    tls: ssl.SSLContext


class RegistryHosts:
    """The `[registry]` tables with their files read."""

    def __init__(self, hosts: Mapping[str, RegistryHost], *, admin_subjects: Collection[str] = ()) -> None:
        """Raises `Permanent(invalid)` that names the host, and the file which cannot be used."""
        named = _named(hosts)
        self._hosts = named
        self._admin_subjects = frozenset(admin_subjects)
        self._withheld: frozenset[str] = frozenset()
        self._credentials = {name: found for name, host in named.items() if (found := _credentials(name, host))}
        read = {name: _certificates(name, host) for name, host in named.items()}
        self._certificates = {name: shown for name, (_, shown) in read.items()}
        # Made once as well: connections are shared by those who have the very same context.
        self._certificates_withheld = {name: bare for name, (bare, _) in read.items()}
        self._mirrors = {name: _mirrors(name, host) for name, host in named.items()}
        for name, host in named.items():
            _check_chunk_bytes(name, host)
            _check_tenants(name, host)
        strict, lax = verified(), unverified()
        self._verified = Certificates(strict, strict, strict)
        self._unverified = Certificates(lax, strict, lax)

    def of(self, principal: Principal) -> Self:
        """The same hosts with the logins and client certificates that `principal` may use."""
        seen = copy.copy(self)
        seen._withheld = frozenset(
            name for name, host in self._hosts.items() if _has_login(host) and not self._may_log_in(principal, host)
        )
        return seen

    def is_withheld(self, host: str) -> bool:
        """Whether `host` has a login or client certificate that these hosts were seen without (see `of`)."""
        return self.name_of(host) in self._withheld

    def name_of(self, host: str, scheme: str | None = None) -> str:
        """The name under which `host` is configured, where that or `host` spells out the port that `scheme` (None: TLS)
        stands for; `host` itself where it is not configured. All methods here take either spelling of TLS's."""
        port = ":80" if scheme == "http" else ":443"
        bare = host.removesuffix(port)
        # The port says more than its absence: over plain HTTP `r.example:80` is not what TLS reaches at `r.example`.
        spellings = (f"{bare}{port}", bare) if bare != host or not _has_port(host) else (host,)
        return next((name for name in spellings if name in self._hosts), host)

    def credentials_for(self, host: str) -> Credentials | None:
        """The configured login of a host, as `ImageReference.host` names it."""
        name = self.name_of(host)
        return None if name in self._withheld else self._credentials.get(name)

    def mirrors_of(self, host: str) -> tuple[str, ...]:
        """The hosts to read from before `host`, best first."""
        return self._mirrors.get(self.name_of(host), ())

    def chunk_bytes_for(self, host: str) -> int | None:
        """The size of an upload's pieces at `host`; None for uploads in one."""
        return self._settings(host).chunk_bytes

    def is_configured(self, host: str, scheme: str | None = None) -> bool:
        """Whether the operator says anything about `host`, reached by `scheme`."""
        return self.name_of(host, scheme) in self._hosts

    @property
    def unverified(self) -> ssl.SSLContext:
        """Trust in any certificate, showing none."""
        return self._unverified.own

    def certificates_for(self, host: str) -> Certificates:
        """TLS towards `host` (`name[:port]`)."""
        name = self.name_of(host)
        known = self._certificates_withheld if name in self._withheld else self._certificates
        if found := known.get(name):
            return found
        return self._unverified if is_loopback_host(host) else self._verified

    def tls_for(self, host: str) -> ssl.SSLContext:
        """TLS towards `host`, as configured."""
        return self.certificates_for(host).own

    def endpoints(self, host: str) -> list[Endpoint]:
        """The ways to reach `host`, best first.

        On loopback the Engine tries TLS without verification and then plain HTTP (moby registry/config.go,
        `isSecureIndex`); what it pushed to must be reachable here too. Only a `ca_file` asks for more there.
        """
        tls = self.tls_for(host)
        secure, plain = Endpoint(origin("https", host), tls), Endpoint(origin("http", host), tls)
        settings = self._settings(host)
        if settings.plain_http:
            return [plain]
        return [secure, plain] if is_loopback_host(host) and settings.ca_file is None else [secure]

    def _may_log_in(self, principal: Principal, host: RegistryHost) -> bool:
        is_admin = principal.is_operator or principal.subject in self._admin_subjects
        return is_admin or principal.tenant in host.tenants or EVERY_TENANT in host.tenants

    def _settings(self, host: str) -> RegistryHost:
        return self._hosts.get(self.name_of(host), RegistryHost())


def origin(scheme: str, host: str) -> str:
    """Where the API of `host` is."""
    return f"{scheme}://{HUB_API_HOST if host == HUB_HOST else host}"


def is_loopback_host(host: str) -> bool:
    """Whether `host` (`name[:port]`) is this machine."""
    return is_loopback(host[1 : host.index("]")] if host.startswith("[") and "]" in host else host.partition(":")[0])


def _has_login(host: RegistryHost) -> bool:
    return bool(host.username or host.cert_file)


def _has_port(host: str) -> bool:
    return ":" in host.rpartition("]")[2]


def _named(hosts: Mapping[str, RegistryHost]) -> dict[str, RegistryHost]:
    """The tables by the names that references have. Raises `Permanent(invalid)` for two of one host."""
    named: dict[str, RegistryHost] = {}
    seen: dict[str, str] = {}
    for name, host in hosts.items():
        found = _host_name(name)
        other = seen.setdefault(found.removesuffix(":443"), name)
        if other != name:
            raise invalid(f'[registry."{name}"]: this host is configured as [registry."{other}"] too')
        named[found] = host
    return named


def _host_name(name: str) -> str:
    """The host as image references have it, so that `Registry.Example:5000` and `index.docker.io` are found."""
    found = _parsed_host(name)
    if found is None:
        raise invalid(f'[registry."{name}"]: not a registry host; these hold a dot or a :port, or are localhost')
    return found


def _parsed_host(name: str) -> str | None:
    try:
        parsed = ImageReference.parse(f"{name}/repository")
    except Permanent:
        return None
    return parsed.host if parsed.path.removeprefix("library/") == "repository" else None


def _mirrors(name: str, host: RegistryHost) -> tuple[str, ...]:
    found: list[str] = []
    for mirror in host.mirrors:
        parsed = _parsed_host(mirror)
        if parsed is None or parsed.removesuffix(":443") == name.removesuffix(":443"):
            raise invalid(f'[registry."{name}"] mirrors: "{mirror}" is not the name of another registry host')
        found.append(parsed)
    return tuple(dict.fromkeys(found))


def _check_chunk_bytes(name: str, host: RegistryHost) -> None:
    if host.chunk_bytes is not None and host.chunk_bytes < CHUNK_MIN_BYTES:
        raise invalid(f'[registry."{name}"] chunk_bytes: {host.chunk_bytes} is less than {CHUNK_MIN_BYTES}')


def _check_tenants(name: str, host: RegistryHost) -> None:
    for tenant in host.tenants:
        if not _TENANT.fullmatch(tenant):
            known = f'"{LOCAL_TENANT}", "{EVERY_TENANT}" or a number as text, the tid of tokens'
            raise invalid(f'[registry."{name}"] tenants: {tenant!r} is no tenant; it is {known}')


def _credentials(name: str, host: RegistryHost) -> Credentials | None:
    if not host.username and host.password_file is None:
        return None
    if not host.username or host.password_file is None:
        raise invalid(f'[registry."{name}"]: username and password_file go together; one is missing')
    password = _read(name, "password_file", host.password_file).strip()
    if not password:
        raise invalid(f'[registry."{name}"] password_file: {host.password_file} is empty')
    return Credentials(host.username, Secret(password))


def _read(name: str, key: str, file: str) -> str:
    try:
        with Path(file).open("rb") as opened:
            return opened.read(PASSWORD_FILE_MAX_BYTES).decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise invalid(f'[registry."{name}"] {key}: {file}: {reason}') from None


def _certificates(name: str, host: RegistryHost) -> tuple[Certificates, Certificates]:
    """Without our certificate and with it."""
    if (host.cert_file is None) != (host.key_file is None):
        raise invalid(f'[registry."{name}"]: cert_file and key_file go together; one is missing')
    if host.plain_http and host.cert_file:
        raise invalid(f'[registry."{name}"]: cert_file is for TLS, and plain_http is set')
    is_verified = not host.insecure and (not is_loopback_host(name) or host.ca_file is not None)
    client_files = (host.cert_file, host.key_file) if host.cert_file and host.key_file else None
    found: list[Certificates] = []
    for keys, files, shown in (("ca_file", host.ca_file, None), ("cert_file, key_file", client_files, client_files)):
        try:
            found.append(certificates(is_verified=is_verified, ca_file=host.ca_file, client_files=shown))
        except OSError as error:  # ssl.SSLError is one: the file is there but holds no certificate
            told = files if isinstance(files, str) else ", ".join(files or ())
            raise invalid(f'[registry."{name}"] {keys}: {told}: {error.strerror or error}') from None
    bare, own = found
    return bare, own


class TokenRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request's own way to a token: GET `url` with `headers` and the JSON `body`; the answer's `token` (or
    `access_token`) is sent as `Authorization: <token_type> <token>`."""

    url: Secret
    token_type: str = "Bearer"  # noqa: S105 - a scheme, not a token
    headers: Mapping[str, Secret] = {}
    body: Secret | None = None

    @property
    def secrets(self) -> tuple[Secret, ...]:
        """What no message may show."""
        return (self.url, *self.headers.values(), *([self.body] if self.body else []))


class ReadyToken(msgspec.Struct, frozen=True, kw_only=True):
    """A token that the request brings, sent as `Authorization: <token_type> <token>`. Nothing renews it."""

    token: Secret
    token_type: str = "Bearer"  # noqa: S105 - a scheme, not a token

    @property
    def secrets(self) -> tuple[Secret, ...]:
        """What no message may show."""
        return (self.token,)


Login = Credentials | TokenRequest | ReadyToken
# What to say to who has no login, where the request's kind knows nothing better.
LOGIN_HINT = "send username and password with the job"


class RegistryTarget(msgspec.Struct, frozen=True, kw_only=True):
    """One registry as one job speaks to it. `host` is `name[:port]` as in image references.

    `scheme` None: as configured for the host (https; on loopback plain HTTP too). `verify_tls` None: as configured;
    False accepts any certificate. `login` None: the configured one where `principal` may use it, else the registry's
    challenge decides. `login_hint` says how such a request gives one.
    """

    host: str
    scheme: Literal["http", "https"] | None = None
    verify_tls: bool | None = None
    login: Login | None = None
    login_hint: str = LOGIN_HINT
    principal: Principal = NOBODY


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


class Origin(msgspec.Struct, frozen=True, eq=False):
    """How to reach a site. `endpoints` are tried in order until one lets itself be connected to."""

    site: RegistryTarget
    hosts: RegistryHosts
    endpoints: tuple[Endpoint, ...]
    is_weakened: bool
    login: Login | None

    @classmethod
    def to(cls, site: RegistryTarget, hosts: RegistryHosts) -> "Origin":
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


def _tls(site: RegistryTarget, hosts: RegistryHosts, *, is_weakened: bool) -> ssl.SSLContext:
    configured = hosts.certificates_for(site.host)
    if is_weakened:
        return hosts.unverified if site.verify_tls is False else configured.foreign
    if site.verify_tls is None:
        return configured.own
    if site.verify_tls:
        return configured.strict
    return configured.own if configured.own.verify_mode is ssl.CERT_NONE else hosts.unverified


def _origins(site: RegistryTarget, configured: list[Endpoint]) -> list[str]:
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
