"""The proxies of the environment: HTTP_PROXY, HTTPS_PROXY, NO_PROXY, in capitals or not, as curl reads them.

Read once, at start. A user name and password in a proxy's URL are a secret and never part of a message. Loopback is
never reached through a proxy. The proxy itself is the operator's own word and may be anywhere, also where `[egress]`
lets nobody connect to; but it leads to no numeric address that this daemon itself may not connect to: what
a name means is for the proxy to find out, and for its own rules to allow.
"""

from collections.abc import Mapping
from ipaddress import ip_address, ip_network

import msgspec
from yarl import URL

from imagejobd.model.egress import is_loopback
from imagejobd.model.errors import invalid
from imagejobd.model.secrets import Credentials, Secret
from imagejobd.registry.address import http_url, numeric_address


class Proxy(msgspec.Struct, frozen=True):
    """`url` holds no user name and no password."""

    url: URL
    credentials: Credentials | None = None


class Proxies:
    """Which proxy leads where."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        """`environ` is `os.environ`, or a test's. Raises `Permanent(invalid)` that names a variable which cannot be
        used."""
        # The spelling without capitals wins. HTTP_PROXY is what a client of a CGI program can set, but this is none.
        variables = {
            name: (spelling, value)
            for name in ("http_proxy", "https_proxy", "no_proxy")
            for spelling in (name.upper(), name)
            if (value := environ.get(spelling, "").strip())
        }
        self._by_scheme = {
            scheme: _proxy(*variables[f"{scheme}_proxy"])
            for scheme in ("http", "https")
            if f"{scheme}_proxy" in variables
        }
        _, direct = variables.get("no_proxy", ("", ""))
        self._direct = tuple(entry for part in direct.split(",") if (entry := part.strip().lower()))

    def find(self, url: URL) -> Proxy | None:
        """The proxy through which `url` is reached; None: directly."""
        proxy = self._by_scheme.get(url.scheme)
        host = (url.host or "").lower().rstrip(".")
        if proxy is None or is_loopback(numeric_address(host) or host):
            return None
        return None if any(_covers(entry, host, url.port) for entry in self._direct) else proxy


def _proxy(variable: str, value: str) -> Proxy:
    url = http_url(value if "://" in value else f"http://{value}")
    if url is None:
        raise invalid(f"${variable}: not the URL of an HTTP proxy (http://host:port)")
    return Proxy(url.origin(), Credentials(url.user, Secret(url.password or "")) if url.user else None)


def _covers(entry: str, host: str, port: int | None) -> bool:
    """Whether an entry of NO_PROXY names `host`: `*`, a name and all below it, an address, a network, each `:port`."""
    if entry == "*":
        return True
    name, colon, wanted_port = entry.rpartition(":")
    if colon and wanted_port.isdigit() and (":" not in name or name.endswith("]")):
        if int(wanted_port) != port:
            return False
        entry = name
    entry = entry.strip("[]").removeprefix("*").lstrip(".")
    address = numeric_address(host)
    if address is None:
        return host == entry or host.endswith(f".{entry}")
    try:
        return ip_address(address) in ip_network(entry, strict=False)
    except ValueError:
        return False
