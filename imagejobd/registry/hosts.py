"""What the operator says about registry hosts, and what a request may make of it: the address, trust and login of a
connection.

Files are read once, at start, so that a missing one is found then and not by a job at night. A host that is not
configured gets what the Docker Engine gives it: verified TLS, or on loopback anything that answers.

A configured login or client certificate belongs to the connection that was configured, and to whom the operator lends
it. A request may weaken its connection (plain HTTP where TLS is configured, any certificate where it is verified), and
then goes without; the certificate is not shown where a registry sends us either.
"""

import copy
import re
import ssl
from collections.abc import Collection, Mapping
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


class Certificates(msgspec.Struct, frozen=True, eq=False):
    """TLS towards a host. `own`: as configured. `strict`: verified, whatever is configured. `foreign`: as configured,
    without our certificate, for where others send us. Connections are shared by those who have the same context."""

    own: ssl.SSLContext
    strict: ssl.SSLContext
    foreign: ssl.SSLContext


class _ConfiguredHost(msgspec.Struct, frozen=True, eq=False):
    """`[registry."…"]` with its files read. `bare` are the certificates for who may not use ours."""

    settings: RegistryHost
    credentials: Credentials | None
    mirrors: tuple[str, ...]
    certificates: Certificates
    bare: Certificates


class RegistryHosts:
    """The `[registry]` tables with their files read. All methods take a host (`name[:port]`) with the port of TLS
    written or not."""

    def __init__(self, hosts: Mapping[str, RegistryHost], *, admin_subjects: Collection[str] = ()) -> None:
        """Raises `Permanent(invalid)` that names the host, and the file which cannot be used."""
        self._hosts: dict[str, _ConfiguredHost] = {}
        self._admin_subjects = frozenset(admin_subjects)
        self._withheld: frozenset[str] = frozenset()
        tables: dict[str, str] = {}
        for table, settings in hosts.items():
            name = _parsed_host(table)
            if name is None:
                raise _invalid(table, ": not a registry host; these hold a dot or a :port, or are localhost")
            other = tables.setdefault(name.removesuffix(":443"), table)
            if other != table:
                raise _invalid(table, f': this host is configured as [registry."{other}"] too')
            self._hosts[name] = _read_host(name, settings)
        strict = verified()
        self.unverified = unverified()
        self._verified = Certificates(strict, strict, strict)
        self._on_loopback = Certificates(self.unverified, strict, self.unverified)

    def of(self, principal: Principal) -> Self:
        """The same hosts with the logins and client certificates that `principal` may use."""
        is_admin = principal.is_operator or principal.subject in self._admin_subjects
        view = copy.copy(self)
        view._withheld = frozenset(
            name
            for name, host in self._hosts.items()
            if (host.settings.username or host.settings.cert_file)
            and not (is_admin or {principal.tenant, EVERY_TENANT} & set(host.settings.tenants))
        )
        return view

    def is_withheld(self, host: str) -> bool:
        """Whether `host` has a login or client certificate that these hosts are without (see `of`)."""
        return self.name_of(host) in self._withheld

    def name_of(self, host: str, scheme: str | None = None) -> str:
        """The name under which `host` is configured, where that or `host` spells out the port that `scheme` (None: TLS)
        stands for; `host` itself where it is not configured."""
        port = ":80" if scheme == "http" else ":443"
        bare = host.removesuffix(port)
        # The port says more than its absence: over plain HTTP `r.example:80` is not what TLS reaches at `r.example`.
        has_other_port = bare == host and ":" in host.rpartition("]")[2]
        spellings = (host,) if has_other_port else (f"{bare}{port}", bare)
        return next((name for name in spellings if name in self._hosts), host)

    def credentials_for(self, host: str) -> Credentials | None:
        """The configured login of a host, as `ImageReference.host` names it."""
        configured = self._find(host)
        return configured.credentials if configured and not self.is_withheld(host) else None

    def mirrors_of(self, host: str) -> tuple[str, ...]:
        """The hosts to read from before `host`, best first."""
        configured = self._find(host)
        return configured.mirrors if configured else ()

    def chunk_bytes_for(self, host: str) -> int | None:
        """The size of an upload's pieces at `host`; None for uploads in one."""
        configured = self._find(host)
        return configured.settings.chunk_bytes if configured else None

    def is_configured(self, host: str) -> bool:
        """Whether the operator says anything about `host`."""
        return self._find(host) is not None

    def certificates_for(self, host: str) -> Certificates:
        """TLS towards `host`."""
        if configured := self._find(host):
            return configured.bare if self.is_withheld(host) else configured.certificates
        return self._on_loopback if is_loopback_host(host) else self._verified

    def origins(self, host: str) -> list[str]:
        """The ways to reach `host`, best first.

        On loopback the Engine tries TLS without verification and then plain HTTP (moby registry/config.go,
        `isSecureIndex`); what it pushed to must be reachable here too. Only a `ca_file` asks for more there.
        """
        configured = self._find(host)
        settings = configured.settings if configured else RegistryHost()
        if settings.plain_http:
            return [origin("http", host)]
        is_lax = is_loopback_host(host) and settings.ca_file is None
        return [origin(scheme, host) for scheme in (("https", "http") if is_lax else ("https",))]

    def _find(self, host: str) -> _ConfiguredHost | None:
        return self._hosts.get(self.name_of(host))


def origin(scheme: str, host: str) -> str:
    """Where the API of `host` is."""
    return f"{scheme}://{HUB_API_HOST if host == HUB_HOST else host}"


def is_loopback_host(host: str) -> bool:
    """Whether `host` (`name[:port]`) is this machine."""
    return is_loopback(host[1 : host.index("]")] if host.startswith("[") and "]" in host else host.partition(":")[0])


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


def _read_host(name: str, host: RegistryHost) -> _ConfiguredHost:
    for one, other in (("username", "password_file"), ("cert_file", "key_file")):
        if bool(getattr(host, one)) != (getattr(host, other) is not None):
            raise _invalid(name, f": {one} and {other} go together; one is missing")
    if host.plain_http and host.cert_file:
        raise _invalid(name, ": cert_file is for TLS, and plain_http is set")
    if host.chunk_bytes is not None and host.chunk_bytes < CHUNK_MIN_BYTES:
        raise _invalid(name, f" chunk_bytes: {host.chunk_bytes} is less than {CHUNK_MIN_BYTES}")
    for tenant in host.tenants:
        if not _TENANT.fullmatch(tenant):
            known = f'"{LOCAL_TENANT}", "{EVERY_TENANT}" or a number as text, the tid of tokens'
            raise _invalid(name, f" tenants: {tenant!r} is no tenant; it is {known}")
    mirrors = {mirror: _parsed_host(mirror) for mirror in host.mirrors}
    for mirror, parsed in mirrors.items():
        if parsed is None or parsed.removesuffix(":443") == name.removesuffix(":443"):
            raise _invalid(name, f' mirrors: "{mirror}" is not the name of another registry host')
    bare = _certificates(name, host, client_files=())
    return _ConfiguredHost(
        settings=host,
        credentials=_credentials(name, host),
        mirrors=tuple(dict.fromkeys(filter(None, mirrors.values()))),
        certificates=_certificates(name, host, (host.cert_file, host.key_file)) if host.cert_file else bare,
        bare=bare,
    )


def _invalid(name: str, why: str) -> Permanent:
    return invalid(f'[registry."{name}"]{why}')


def _parsed_host(name: str) -> str | None:
    """The host as image references have it, so that `Registry.Example:5000` and `index.docker.io` are found."""
    try:
        parsed = ImageReference.parse(f"{name}/repository")
    except Permanent:
        return None
    return parsed.host if parsed.path.removeprefix("library/") == "repository" else None


def _credentials(name: str, host: RegistryHost) -> Credentials | None:
    if host.password_file is None:
        return None
    try:
        with Path(host.password_file).open("rb") as file:
            password = file.read(PASSWORD_FILE_MAX_BYTES).decode().strip()
        why = "" if password else " is empty"
    except OSError as error:
        why = f": {error.strerror}"
    except UnicodeDecodeError:
        why = ": is not UTF-8 text"
    if why:
        raise _invalid(name, f" password_file: {host.password_file}{why}")
    return Credentials(host.username, Secret(password))


def _certificates(name: str, host: RegistryHost, client_files: tuple[str | None, ...]) -> Certificates:
    def showing(context: ssl.SSLContext) -> ssl.SSLContext:
        if client_files:
            # An encrypted key would make OpenSSL ask for its password on the terminal.
            certificate, key = client_files
            context.load_cert_chain(str(certificate), key, password=_no_password)
        return context

    try:
        strict = showing(verified(host.ca_file))
        if host.insecure or (is_loopback_host(name) and host.ca_file is None):
            return Certificates(showing(unverified()), strict, unverified())
        return Certificates(strict, strict, verified(host.ca_file) if client_files else strict)
    except OSError as error:  # ssl.SSLError is one: the file is there but holds no certificate
        keys, files = ("cert_file, key_file", client_files) if client_files else ("ca_file", (host.ca_file,))
        why = f" {keys}: {', '.join(map(str, files))}: {error.strerror or error}"
    raise _invalid(name, why)


def _no_password() -> str:
    raise ssl.SSLError(ssl.SSL_ERROR_SSL, "the key is encrypted")


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


class Origin(msgspec.Struct, frozen=True, eq=False):
    """How to reach a site, which has the host's configured name: `urls` are tried in order until one lets itself be
    connected to. `hosts` have the logins only that the site's principal may use."""

    site: RegistryTarget
    hosts: RegistryHosts
    urls: tuple[URL, ...]
    tls: ssl.SSLContext
    login: Login | None

    @classmethod
    def to(cls, site: RegistryTarget, hosts: RegistryHosts) -> "Origin":
        """What configuration and request allow together."""
        hosts = hosts.of(site.principal)
        site = msgspec.structs.replace(site, host=hosts.name_of(site.host, site.scheme))
        configured, certificates = hosts.origins(site.host), hosts.certificates_for(site.host)
        is_plain = [url.startswith("http:") for url in configured]
        is_verified = certificates.own.verify_mode is ssl.CERT_REQUIRED and not is_plain[0]
        is_weakened = (site.scheme == "http" and not any(is_plain)) or (site.verify_tls is False and is_verified)
        if site.verify_tls is False:
            is_lax = not is_weakened and certificates.own.verify_mode is ssl.CERT_NONE
            tls = certificates.own if is_lax else hosts.unverified
        elif is_weakened:
            tls = certificates.foreign
        else:
            tls = certificates.strict if site.verify_tls else certificates.own
        if site.scheme is not None:
            configured = [origin(site.scheme, site.host)]
        elif site.verify_tls:  # who asks for that is not served by the plain HTTP that loopback may fall back to
            configured = configured[:1]
        login = site.login or (None if is_weakened else hosts.credentials_for(site.host))
        return cls(site, hosts, tuple(map(URL, configured)), tls, login)

    @property
    def withheld(self) -> str:
        """What to say to who may not use the login that is configured for this host; empty for all others."""
        if not self.hosts.is_withheld(self.site.host):
            return ""
        return LOGIN_NOT_FOR_YOU.format(hint=self.site.login_hint, host=self.site.host)

    @property
    def advice(self) -> str:
        """What to do where the registry wants a login and this connection has none."""
        is_weaker = self.hosts.credentials_for(self.site.host) is not None
        advice = LOGIN_WEAKENED if is_weaker else LOGIN_CONFIGURABLE
        return self.withheld or advice.format(hint=self.site.login_hint, host=self.site.host)

    def tls_for(self, url: URL) -> ssl.SSLContext:
        """What to trust at `url`, the site itself or where it sends us, which sees no client certificate.

        A request that does without verification does so elsewhere too, but not with the operator's login: a token
        server gets it, and whom the operator did not configure is verified.
        """
        if any((own.host, own.port) == ((url.host or "").lower(), url.port) for own in self.urls):
            return self.tls
        name = self.hosts.name_of(host_of(url), url.scheme)
        is_login_configured = self.login is not None and self.site.login is None
        if self.site.verify_tls is False and not is_login_configured and not self.hosts.is_configured(name):
            return self.hosts.unverified
        return self.hosts.certificates_for(name).foreign
