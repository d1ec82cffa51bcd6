"""Addresses on the web as registries write them: kept to the letter, because signatures cover the letters.

HTTP Basic (RFC 7617), whose user names cannot hold a colon.
"""

import base64
import re
import socket
from ipaddress import ip_address

from yarl import URL

from imagejobd.model.circuit import peer_name
from imagejobd.model.errors import invalid
from imagejobd.model.reference import HUB_HOST
from imagejobd.model.secrets import Credentials

# docker.io answers browsers; the Hub's API is here (moby registry/config.go, `DefaultV2Registry`).
HUB_API_HOST = "registry-1.docker.io"
# RFC 1035 §2.3.4; a label's bound is checked by its encoding.
HOST_MAX_CHARS = 253

_EXACT = re.compile(r"[\x21-\x7e]+")


def exact_url(text: str) -> URL:
    """`text` as a URL whose percent-encoding is left alone. Raises `ValueError`."""
    return URL(text, encoded=_EXACT.fullmatch(text) is not None)


def http_url(text: str) -> URL | None:
    """`text` as an absolute http(s) URL with a host; None where it is not one."""
    try:
        url = exact_url(text)
    except ValueError:
        return None
    return url if is_http(url) else None


def is_http(url: URL) -> bool:
    """Whether `url` is an absolute http(s) URL with a port and a host that can be asked for."""
    try:
        host = url.host or ""
        host.encode("idna")  # what connecting does: no empty label, none of more than 63 characters
        return url.scheme in ("http", "https") and 0 < len(host) <= HOST_MAX_CHARS and url.port is not None
    except ValueError:
        return False


def host_of(url: URL) -> str:
    """`name[:port]` as configuration and image references have it."""
    name = (url.host_subcomponent or "").lower()
    return f"{name}:{url.explicit_port}" if url.explicit_port is not None else name


def peer_of(url: URL) -> str:
    """Who is asked, as circuits name it (see `peer_name`)."""
    name = peer_name(host_of(url), url.scheme)
    return HUB_HOST if name == HUB_API_HOST else name


def origin_of(url: URL) -> tuple[str, str, int | None]:
    """What decides whether two URLs are of one origin (RFC 6454 §4)."""
    return url.scheme, (url.host or "").lower(), url.port


def numeric_address(host: str) -> str | None:
    """`host`, a name or an address without port and brackets, as an address, in all the spellings that resolvers take
    (`127.1`, `0x7f000001`); None for a name."""
    try:
        return str(ip_address(host.partition("%")[0]))
    except ValueError:
        pass
    try:
        return socket.inet_ntoa(socket.inet_aton(host))
    except OSError:
        return None


def basic(credentials: Credentials) -> str:
    """The value of an `Authorization` header. Raises `Permanent(invalid)` for a user name with a colon."""
    if ":" in credentials.username:
        raise invalid("a registry user name cannot contain a colon")
    pair = f"{credentials.username}:{credentials.password.reveal()}"
    return f"Basic {base64.b64encode(pair.encode()).decode()}"
