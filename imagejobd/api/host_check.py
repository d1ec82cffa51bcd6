"""Keeps web pages away from a local daemon.

A page in a browser on the build host can send requests to a loopback port (CSRF), and with DNS rebinding also read the
answers; so can a page that another program of the same host serves at its own port. Clients such as curl send neither
Origin nor Sec-Fetch-Site, and name the host by address, as localhost, or as configured.
"""

import ipaddress
from collections.abc import Collection
from functools import lru_cache
from urllib.parse import urlsplit

from aiohttp import hdrs, web

from imagejobd.model.errors import ErrorCode, Permanent

# A client names the same host with every request.
HOSTS_REMEMBERED = 64
# What browsers say of requests that their user, or a page of the daemon itself, has made. One that does not know this
# header (Fetch Metadata) sends Origin with everything that could change something.
OWN_SITES = frozenset({"none", "same-origin"})


class HostCheck:
    """Refuses requests for hosts that are neither local nor configured in `server.hosts`, and those of pages that are
    neither the daemon's own nor of a configured host."""

    def __init__(self, hosts: Collection[str]) -> None:
        self._configured = {host.lower() for host in hosts}
        self._hosts = self._configured | {"localhost", ""}

    def __call__(self, request: web.Request) -> None:
        host = request.headers.get(hdrs.HOST, "")
        if not self._is_known(host):
            raise _refusal(hdrs.HOST, host)
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is not None:
            # The port counts: what else listens on this host is another site, though its name is the same.
            authority = _authority(origin)
            if authority.lower() != host.lower() and _hostname(authority) not in self._configured:
                raise _refusal(hdrs.ORIGIN, origin)
        elif request.headers.get("Sec-Fetch-Site", "none") not in OWN_SITES and not _is_followed_link(request):
            raise Permanent(
                ErrorCode.DENIED,
                "the request comes from a web page of another site (Sec-Fetch-Site); if it may ask, add its host to "
                "server.hosts, and let it ask so that its Origin is sent",
            )

    def _is_known(self, authority: str) -> bool:
        host = _hostname(authority)
        return host in self._hosts or _is_address(host)


def _is_followed_link(request: web.Request) -> bool:
    """Whether a browser asks for a page of its own, because its user followed a link to a job from elsewhere.

    Such a request may come from any site: it changes nothing, as no GET does, and the site that has the link cannot
    read the answer. Not so what a page embeds: of an image or a frame it learns whether and how soon it came.
    """
    headers = request.headers
    is_page = headers.get("Sec-Fetch-Mode") == "navigate" and headers.get("Sec-Fetch-Dest") == "document"
    return is_page and request.method in (hdrs.METH_GET, hdrs.METH_HEAD)


def _refusal(header: str, value: str) -> Permanent:
    return Permanent(
        ErrorCode.DENIED, f"{header} names {value!r}, which is not this daemon; if it is, add its name to server.hosts"
    )


def _authority(origin: str) -> str:
    return origin.partition("://")[2] or origin


@lru_cache(HOSTS_REMEMBERED)
def _hostname(authority: str) -> str | None:
    try:
        return urlsplit(f"//{authority}").hostname or ""
    except ValueError:
        return None


@lru_cache(HOSTS_REMEMBERED)
def _is_address(host: str | None) -> bool:
    try:
        ipaddress.ip_address(host or "")
    except ValueError:
        return False
    return True
