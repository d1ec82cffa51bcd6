"""Keeps web pages away from a local daemon.

A page in a browser on the build host can send requests to a loopback port (CSRF), and with DNS rebinding also read the
answers. Clients such as curl send no Origin, and name the host by address, as localhost, or as configured.
"""

import ipaddress
from collections.abc import Collection
from functools import lru_cache
from urllib.parse import urlsplit

from aiohttp import web

from imagejobd.model.errors import ErrorCode, Permanent

# A client names the same host with every request.
HOSTS_REMEMBERED = 64


class Guard:
    """Refuses requests for, or from pages of, hosts that are neither local nor configured in `server.hosts`."""

    def __init__(self, hosts: Collection[str]) -> None:
        self._hosts = {host.lower() for host in hosts} | {"localhost", ""}

    def __call__(self, request: web.Request) -> None:
        host = request.headers.get("Host", "")
        if not self._is_known(host):
            raise _refusal("Host", host)
        origin = request.headers.get("Origin")
        if origin is not None and _authority(origin) != host and _hostname(_authority(origin)) not in self._hosts:
            raise _refusal("Origin", origin)

    def _is_known(self, authority: str) -> bool:
        host = _hostname(authority)
        return host in self._hosts or _is_address(host)


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
