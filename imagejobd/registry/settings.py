"""What an operator says about registry hosts, and the files that it names.

Files are read once, at start, so that a missing one is found then and not by a job at night. A host that is not
configured gets what the Docker Engine gives it: verified TLS, or on loopback anything that answers.
"""

import ssl
from collections.abc import Mapping
from pathlib import Path

import msgspec

from imagejobd.model.egress import is_loopback
from imagejobd.model.errors import Permanent, invalid
from imagejobd.model.reference import HUB_HOST, ImageReference
from imagejobd.model.secret import Credentials, Secret

# docker.io answers browsers; the Hub's API is here (moby registry/config.go, `DefaultV2Registry`).
HUB_API_HOST = "registry-1.docker.io"
PASSWORD_FILE_MAX_BYTES = 64 * 1024


class RegistryHost(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[registry."host:port"]`: how to log in there and what to trust.

    `ca_file` (PEM) is trusted besides the system's authorities; `insecure` trusts any certificate, as is done on
    loopback without a `ca_file`; `plain_http` uses no TLS at all.
    """

    username: str = ""
    password_file: str | None = None
    ca_file: str | None = None
    plain_http: bool = False
    insecure: bool = False


class Endpoint(msgspec.Struct, frozen=True):
    """One way to reach a host: the origin of its API (`scheme://host[:port]`) and the certificates to trust there."""

    origin: str
    tls: ssl.SSLContext


class RegistryHosts:
    """The `[registry]` tables with their files read."""

    def __init__(self, hosts: Mapping[str, RegistryHost]) -> None:
        """Raises `Permanent(invalid)` that names the host, and the file which cannot be used."""
        named = {_host_name(name): host for name, host in hosts.items()}
        self._hosts = named
        self._credentials = {name: found for name, host in named.items() if (found := _credentials(name, host))}
        self._tls = {name: _tls(name, host) for name, host in named.items()}
        self._verified = ssl.create_default_context()
        self._unverified = _unverified()

    def credentials_for(self, host: str) -> Credentials | None:
        """The configured login of a host, as `ImageReference.host` names it."""
        return self._credentials.get(host)

    def tls_for(self, host: str) -> ssl.SSLContext:
        """What to trust at `host` (`name[:port]`)."""
        if host in self._tls:
            return self._tls[host]
        return self._unverified if _is_loopback(host) else self._verified

    def endpoints(self, host: str) -> list[Endpoint]:
        """The ways to reach `host`, best first.

        On loopback the Engine tries TLS without verification and then plain HTTP (moby registry/config.go,
        `isSecureIndex`); what it pushed to must be reachable here too. Only a `ca_file` asks for more there.
        """
        tls = self.tls_for(host)
        api_host = HUB_API_HOST if host == HUB_HOST else host
        secure, plain = Endpoint(f"https://{api_host}", tls), Endpoint(f"http://{api_host}", tls)
        settings = self._hosts.get(host, RegistryHost())
        if settings.plain_http:
            return [plain]
        return [secure, plain] if _is_loopback(host) and settings.ca_file is None else [secure]


def _is_loopback(host: str) -> bool:
    """Whether `host` (`name[:port]`) is this machine."""
    return is_loopback(host[1 : host.index("]")] if host.startswith("[") and "]" in host else host.partition(":")[0])


def _host_name(name: str) -> str:
    """The host as image references have it, so that `Registry.Example:5000` and `index.docker.io` are found."""
    try:
        parsed = ImageReference.parse(f"{name}/repository")
    except Permanent:
        parsed = None
    if parsed is None or parsed.path.removeprefix("library/") != "repository":
        raise invalid(f'[registry."{name}"]: not a registry host; these hold a dot or a :port, or are localhost')
    return parsed.host


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


def _tls(name: str, host: RegistryHost) -> ssl.SSLContext:
    if host.insecure or (_is_loopback(name) and host.ca_file is None):
        return _unverified()
    context = ssl.create_default_context()
    if host.ca_file is not None:
        try:
            context.load_verify_locations(cafile=host.ca_file)
        except OSError as error:  # ssl.SSLError is one: the file is there but holds no certificate
            raise invalid(f'[registry."{name}"] ca_file: {host.ca_file}: {error.strerror}') from None
    return context


def _unverified() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
