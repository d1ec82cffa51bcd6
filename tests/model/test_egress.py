"""Promises of the egress rule: which addresses it lets pass, in every way to write them."""

import socket

import pytest

from imagejobd.model.egress import Egress, EgressSettings, is_loopback
from imagejobd.model.errors import ErrorCode, Permanent

PUBLIC_ONLY = Egress(EgressSettings(allow_private=False))


@pytest.mark.parametrize("address", ["192.0.2.1", "8.8.8.8", "2001:db8::1", "2606:4700::1111", "64:ff9b::808:808"])
@pytest.mark.parametrize("egress", [Egress(), PUBLIC_ONLY])
def test_public_addresses_pass(egress: Egress, address: str):
    """A public address is always allowed, also through NAT64."""
    egress.check(address)


PRIVATE = [
    "127.0.0.1",
    "10.1.2.3",
    "172.31.255.255",
    "192.168.0.1",
    "100.64.0.1",
    "198.18.0.1",
    "::1",
    "fd12::1",
    "fec0::1",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_pass_by_default_and_can_be_denied(address: str):
    """`allow_private` decides about loopback, private, shared and ULA ranges, and the message names it."""
    Egress().check(address)
    with pytest.raises(Permanent, match="allow_private is false") as caught:
        PUBLIC_ONLY.check(address)
    assert caught.value.code == ErrorCode.EGRESS


METADATA = [
    "169.254.169.254",
    "fe80::a9fe:a9fe",
    "fe80::1%eth0",
    "fd00:ec2::254",
    "100.100.100.200",
    "168.63.129.16",
    "224.0.0.1",
    "255.255.255.255",
    "ff02::1",
]


@pytest.mark.parametrize("address", METADATA)
def test_metadata_services_and_non_servers_are_denied_by_default(address: str):
    """Where clouds keep credentials, and what can be no server, is denied; the message names address and rule."""
    with pytest.raises(Permanent, match=r"\[egress\] deny") as caught:
        Egress().check(address)
    assert address in caught.value.message


EMBEDDED = [
    "::ffff:169.254.169.254",
    "::169.254.169.254",
    "2002:a9fe:a9fe::1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::a9fe:a9fe",
    "64:ff9b:1:a9fe:a9:fe00::",
    "2001:0:5ef5:79fd::5601:5601",
]


@pytest.mark.parametrize("address", EMBEDDED)
def test_ipv4_inside_ipv6_is_judged_as_ipv4(address: str):
    """Mapped, compatible, 6to4, NAT64 and Teredo forms of a denied address are denied."""
    with pytest.raises(Permanent, match=r"that is 169\.254\.169\.254"):
        Egress().check(address)


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "::ffff:0.0.0.0"])
def test_the_unspecified_address_is_denied_whatever_the_settings(address: str):
    """0.0.0.0 and :: reach this machine itself, so no setting allows them."""
    with pytest.raises(Permanent, match="never allowed"):
        Egress(EgressSettings(deny=())).check(address)


def test_own_ranges_replace_the_defaults():
    """`deny` is the whole list: what is not in it is not denied."""
    egress = Egress(EgressSettings(deny=("203.0.113.0/24",)))
    egress.check("169.254.169.254")
    with pytest.raises(Permanent, match=r"203\.0\.113\.0/24"):
        egress.check("203.0.113.9")


@pytest.mark.parametrize("cidr", ["10.0.0.1/8", "example.org", "10.0.0.0/33", ""])
def test_unreadable_ranges_are_refused(cidr: str):
    """A range with host bits, a name or nonsense is refused with key and value."""
    with pytest.raises(Permanent, match=r"\[egress\] deny") as caught:
        Egress(EgressSettings(deny=(cidr,)))
    assert caught.value.code == ErrorCode.INVALID


@pytest.mark.parametrize("address", ["example.org", "", "127.1", "0x7f.0.0.1", "2130706433"])
def test_only_numeric_addresses_are_judged(address: str):
    """A name or an old numeric form is not an address of a socket, and never passes."""
    with pytest.raises(Permanent):
        Egress().check(address)


@pytest.mark.parametrize("address", [("127.0.0.1", 80), ("::1", 80, 0, 0)])
def test_sockets_are_judged_before_they_are_made(address: tuple[str | int, ...]):
    """A socket is had only for an address that may be connected to, of the family that was asked for."""
    family = socket.AF_INET6 if len(address) == 4 else socket.AF_INET
    asked = (family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address)
    with Egress().open_socket(asked) as made:
        assert made.family == family
    with pytest.raises(Permanent, match="allow_private is false"):
        PUBLIC_ONLY.open_socket(asked)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("10.0.0.1", False),
        ("0.0.0.0", False),
        ("localhost.example", False),
        ("127.0.0.1.example", False),
        ("", False),
    ],
)
def test_is_loopback(host: str, expected: bool):
    """Loopback is decided by the address, never by how a name begins."""
    assert is_loopback(host) is expected
