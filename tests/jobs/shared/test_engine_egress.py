"""What the engine may be sent to fetch, by what names mean here."""

import socket
from collections.abc import AsyncIterator

import pytest

from imagejobd.jobs.shared.access import HOSTS_MAX, EngineEgress
from imagejobd.model.egress import Egress, EgressSettings
from imagejobd.model.errors import ErrorCode, Fault, Permanent, Temporary
from imagejobd.model.resolver import Address, Resolver

ADDRESSES = {
    "denied.test": ["203.0.113.7", "192.0.2.66"],
    "public.test": ["203.0.113.7"],
    "private.test": ["10.1.2.3"],
    "registry-1.docker.io": ["192.0.2.66"],
}
DENY = ("192.0.2.0/24",)


def look_up(name: str, family: int) -> list[Address]:
    if name not in ADDRESSES:
        raise socket.gaierror(socket.EAI_NONAME, "no such name")
    return [(socket.AF_INET, socket.IPPROTO_TCP, address) for address in ADDRESSES[name]]


@pytest.fixture
async def names() -> AsyncIterator[Resolver]:
    names = Resolver(look_up)
    yield names
    await names.close()


@pytest.fixture
def lax(names: Resolver) -> EngineEgress:
    return EngineEgress(Egress(EgressSettings(deny=DENY)), names)


@pytest.fixture
def strict(names: Resolver) -> EngineEgress:
    return EngineEgress(Egress(EgressSettings(deny=DENY, allow_private=False)), names)


async def fault_of(egress: EngineEgress, *lines: str) -> Fault | None:
    try:
        await egress.check_dockerfile("\n".join(["FROM scratch", *lines, ""]))
    except Fault as fault:
        return fault
    return None


@pytest.mark.parametrize(
    "host", ["denied.test", "DENIED.test:5000", "192.0.2.9:5000", "[::ffff:192.0.2.9]:5000", "docker.io"]
)
async def test_denied_registries(lax: EngineEgress, host: str) -> None:
    """A registry is denied when any address of it is; the Hub is where its API is."""
    with pytest.raises(Permanent, match=r"not allowed: it lies in 192\.0\.2\.0/24") as refused:
        await lax.check_registry(host)
    assert refused.value.code is ErrorCode.EGRESS
    assert f"registry {host}" in refused.value.message


@pytest.mark.parametrize(
    "host", ["public.test", "private.test:5000", "127.0.0.1:5000", "localhost.test", "unknown.test"]
)
async def test_allowed_registries(lax: EngineEgress, host: str) -> None:
    """All else is left to the engine, also what only it may be able to resolve."""
    await lax.check_registry(host)


@pytest.mark.parametrize("host", ["private.test", "127.0.0.1:5000"])
async def test_private_registries(strict: EngineEgress, host: str) -> None:
    """Private addresses are denied where they are off limits."""
    with pytest.raises(Permanent, match="allow_private is false"):
        await strict.check_registry(host)


async def test_unknown_names_where_private_networks_are_off_limits(strict: EngineEgress) -> None:
    """They may be names of private networks by the next attempt: not now, and not never."""
    with pytest.raises(Temporary, match="does not resolve here") as wait:
        await strict.check_registry("unknown.test")
    assert wait.value.code is ErrorCode.REGISTRY_UNAVAILABLE
    fault = await fault_of(strict, "ADD http://unknown.test/x /x")
    assert isinstance(fault, Temporary)
    assert fault.code is ErrorCode.FETCH_FAILED


@pytest.mark.parametrize(
    "line", ["ADD http://denied.test/x /x", "ADD git@denied.test:x/y /x", "ONBUILD ADD http://192.0.2.1/ /"]
)
async def test_denied_sources(lax: EngineEgress, line: str) -> None:
    """The error names the line, not the URL, which may hold a password."""
    fault = await fault_of(lax, "ADD http://public.test/x /x", line)
    assert isinstance(fault, Permanent)
    assert fault.code is ErrorCode.EGRESS
    assert fault.message.startswith("Dockerfile line 3: ADD from ")


async def test_secrets_of_urls_are_in_no_message(lax: EngineEgress) -> None:
    """A user and password stay where they are."""
    fault = await fault_of(lax, "ADD http://me:hush@denied.test/x?sig=hush /x")
    assert fault is not None
    assert "hush" not in fault.message


@pytest.mark.parametrize("word", ["http:///x", "http://a\\@b/x", "http://%31%32%37.0.0.2/x"])
async def test_urls_of_no_plain_host(lax: EngineEgress, word: str) -> None:
    """Nobody knows where they lead, so they are refused with any setting."""
    fault = await fault_of(lax, f"ADD {word} /x")
    assert isinstance(fault, Permanent)
    assert "plain letters" in fault.message


@pytest.mark.parametrize("word", ["${URL}", "ftp://public.test/x", "http://public.test$MORE"])
async def test_hosts_that_cannot_be_known(lax: EngineEgress, strict: EngineEgress, word: str) -> None:
    """What may become anything is refused where private networks are off limits, and left to the engine elsewhere."""
    assert await fault_of(lax, f"ADD {word} /x") is None
    fault = await fault_of(strict, f"ADD {word} /x")
    assert isinstance(fault, Permanent)
    assert fault.code is ErrorCode.EGRESS
    assert "begin what is in the context with ./" in fault.message


async def test_what_is_fine_everywhere(strict: EngineEgress) -> None:
    """Public sources, variables behind their host, and files."""
    assert await fault_of(strict, "ADD http://public.test/${V} ./x y /z", "COPY http://x/y /x", "RUN true") is None


async def test_triggers(lax: EngineEgress) -> None:
    """What a base brings in is asked about as well; the error names the base."""
    await lax.check_triggers("base:1", ["RUN true", "ADD http://public.test/x /x"])
    with pytest.raises(Permanent, match="ONBUILD of base:1"):
        await lax.check_triggers("base:1", ["ADD http://denied.test/x /x"])


async def test_the_number_of_hosts_is_bounded(lax: EngineEgress) -> None:
    """No Dockerfile has thousands of names looked up."""
    lines = [f"ADD http://h{number}.test/ /x" for number in range(HOSTS_MAX)]
    assert await fault_of(lax, *lines) is None
    assert isinstance(await fault_of(lax, *lines, "ADD http://one-more.test/ /x"), Permanent)
