"""Where a registry is, as distributions name it: `[http[s]://]host[:port][/v2][/]`.

What was sent is kept as it was sent and reported so; this is what it means. Errors never quote an endpoint: a user and
password may stand in it.
"""

import re
from ipaddress import IPv6Address
from typing import Literal

import msgspec

from imagejobd.kinds.distribute.fields import wrong
from imagejobd.model.errors import Permanent
from imagejobd.model.reference import HUB_HOST, ImageReference

ENDPOINT_MAX_CHARS = 300
PORT_MAX = 65_535
_HUB_HOSTS = frozenset({HUB_HOST, "index.docker.io", "registry-1.docker.io"})
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_ENDPOINT = re.compile(
    rf"(?:(?P<scheme>https?)://)?(?P<name>{_LABEL}(?:\.{_LABEL})*|\[[a-f0-9:.]+\])(?::(?P<port>[0-9]{{1,5}}))?(?:/v2)?/?",
    re.ASCII | re.IGNORECASE,
)


class Endpoint(msgspec.Struct, frozen=True):
    """`host` is `name[:port]` in lower case, the Hub by its one name; `scheme` is None where it was not said."""

    host: str
    scheme: Literal["http", "https"] | None

    @property
    def key(self) -> str:
        """The same for two endpoints that are surely one: with the port that a scheme stands for."""
        if self.host.rpartition("]")[2].count(":"):
            return self.host
        return f"{self.host}:{80 if self.scheme == 'http' else 443}"


def parse_endpoint(text: str, field: str) -> Endpoint:
    """Raises `FieldFault` on `field`."""
    match = _ENDPOINT.fullmatch(text) if len(text) <= ENDPOINT_MAX_CHARS else None
    if match is None or not _is_name(match["name"]):
        raise wrong(field, f"must be {_why(text)}")
    port = match["port"]
    if port is not None and not 0 < int(port) <= PORT_MAX:
        raise wrong(field, f"its port must lie between 1 and {PORT_MAX}")
    host = match["name"].lower()
    # The Hub speaks TLS only.
    if host in _HUB_HOSTS and port in (None, "443"):
        return Endpoint(HUB_HOST, "https" if match["scheme"] else None)
    scheme = (match["scheme"] or "").lower()
    return Endpoint(f"{host}:{port}" if port else host, _SCHEMES.get(scheme))


def parse_path(text: str, host: str, field: str) -> str:
    """A repository's path at `host`; on the Hub `busybox` is `library/busybox`. Raises `FieldFault` on `field`."""
    at = HUB_HOST if host == HUB_HOST else "registry.invalid"
    try:
        parsed = ImageReference.parse(f"{at}/{text}", default_tag=None)
    except Permanent:
        parsed = None
    if parsed is None or parsed.tag or parsed.digest:
        raise wrong(
            field,
            "must be a repository such as team/app: a-z, 0-9 and single separators . _ - between them, at most 255 "
            "characters, without registry, tag or digest",
        )
    return parsed.path


def path_at(host: str, path: str) -> str:
    """Where the repository `path`, which was checked, lies at `host`."""
    return f"library/{path}" if host == HUB_HOST and "/" not in path else path


_SCHEMES: dict[str, Literal["http", "https"]] = {"http": "http", "https": "https"}


def _is_name(name: str) -> bool:
    """Whether what is in brackets is an IPv6 address."""
    try:
        return not name.startswith("[") or bool(IPv6Address(name[1:-1]))
    except ValueError:
        return False


def _why(text: str) -> str:
    form = "[http[s]://]host[:port], optionally with /v2"
    if "@" in text:
        return f"{form}; user and password go into auth"
    if "/" in text.partition("://")[2].removesuffix("/") or "/" in text.partition("://")[0].removesuffix("/"):
        return f"{form}; what follows the host belongs into image"
    return form
