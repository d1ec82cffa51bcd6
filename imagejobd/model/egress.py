"""Where this daemon may connect on a user's word: one rule over addresses, not over names.

A name proves nothing (it may resolve to another address a moment later), so the rule is asked about the address of
the socket that is about to connect. IPv6 forms that carry an IPv4 address (mapped, compatible, 6to4, NAT64, Teredo) are
judged by both. Nothing here resolves names or connects.
"""

import socket
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

import msgspec

from imagejobd.model.errors import ErrorCode, Permanent, invalid

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# Link-local ranges hold the metadata service of most clouds; the single addresses are those of the clouds that put it
# elsewhere (AWS and Google over IPv6, Alibaba, Oracle, Azure). The rest can never be a server.
DENY_DEFAULT = (
    "169.254.0.0/16",
    "fe80::/10",
    "fd00:ec2::254/128",
    "fd20:ce::254/128",
    "100.100.100.200/32",
    "192.0.0.192/32",
    "168.63.129.16/32",
    "0.0.0.0/8",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "ff00::/8",
)

# Spelled out, because what `ipaddress.is_private` means has changed between Python releases.
_PRIVATE = tuple(
    ip_network(cidr)
    for cidr in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "::1/128",
        "fc00::/7",
        "fe80::/10",
        "fec0::/10",
    )
)

_IPV4_COMPATIBLE = IPv6Network("::/96")
_NAT64 = IPv6Network("64:ff9b::/96")
_NAT64_LOCAL = IPv6Network("64:ff9b:1::/48")
_LOWEST_COMPATIBLE = 1 << 16


class EgressSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[egress]`. `deny` holds CIDR ranges; `allow_private` covers loopback, RFC 1918, shared, link-local and ULA."""

    deny: tuple[str, ...] = DENY_DEFAULT
    allow_private: bool = True


class Egress:
    """The rule in force. Raises `Permanent(invalid)` for a range that cannot be read."""

    __slots__ = ("_deny", "allows_private")

    def __init__(self, settings: EgressSettings | None = None) -> None:
        settings = settings or EgressSettings()
        self._deny = tuple(_network(cidr) for cidr in settings.deny)
        self.allows_private = settings.allow_private

    def check(self, address: str) -> None:
        """Raise `Permanent(egress)` when `address` (numeric, as a socket shows it) may not be connected to."""
        try:
            outer = ip_address(address.partition("%")[0])
        except ValueError:
            raise Permanent(ErrorCode.EGRESS, f"{address!r} is not a numeric address") from None
        for candidate in (outer, *_embedded(outer)):
            self._check_one(address, candidate)

    def open_socket(self, address: tuple[Any, ...]) -> socket.socket:
        """A socket that is about to connect to `address`, in the form of `getaddrinfo`. Raises as `check` does.

        Made to be aiohttp's `socket_factory`, which is asked with the very address that it connects to next. The
        connector needs `happy_eyeballs_delay=None`: of parallel attempts a denied one is a lost one, not an answer.
        """
        family, kind, protocol, _, sockaddr = address
        self.check(sockaddr[0])
        return socket.socket(family, kind, protocol)

    def _check_one(self, name: str, address: Address) -> None:
        if address.is_unspecified:
            raise _denied(name, address, "the unspecified address reaches this machine itself and is never allowed")
        for network in self._deny:
            if address in network:
                raise _denied(name, address, f"it lies in {network}, which [egress] deny lists")
        if self.allows_private:
            return
        for network in _PRIVATE:
            if address in network:
                raise _denied(
                    name, address, f"it lies in the private range {network} and [egress] allow_private is false"
                )


def is_loopback(host: str) -> bool:
    """Whether `host`, a name or an address without port and brackets, is this machine by what it says."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _network(cidr: str) -> Network:
    try:
        return ip_network(cidr)
    except ValueError as error:
        raise invalid(f"[egress] deny: {cidr!r} is not a network in CIDR form: {error}") from None


def _embedded(address: Address) -> Iterator[Address]:
    """The IPv4 addresses that packets to an IPv6 address may end up at (RFC 4291, 3056, 4380, 6052, 8215)."""
    if isinstance(address, IPv4Address):
        return
    bits = int(address)
    if address.ipv4_mapped:
        yield address.ipv4_mapped
    if address.sixtofour:
        yield address.sixtofour
    if address.teredo:
        yield from address.teredo
    if address in _NAT64:
        yield IPv4Address(bits & 0xFFFF_FFFF)
    if address in _NAT64_LOCAL:
        # Operators choose the prefix length within this range (RFC 6052 §2.2): /96 puts the address last, /48 splits
        # it around bits 64 to 71. The form that is not meant reads as zero.
        forms = (bits & 0xFFFF_FFFF, (bits >> 64 & 0xFFFF) << 16 | bits >> 40 & 0xFFFF)
        yield from (IPv4Address(form) for form in forms if form)
    if address in _IPV4_COMPATIBLE and bits >= _LOWEST_COMPATIBLE:
        yield IPv4Address(bits)


def _denied(name: str, address: Address, why: str) -> Permanent:
    inner = "" if name == str(address) else f" (that is {address})"
    return Permanent(ErrorCode.EGRESS, f"connecting to {name}{inner} is not allowed: {why}")
