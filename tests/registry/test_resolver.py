"""Looking up names: dead ones cost their owner, not the others."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from fake_registry import NO_PROXIES, FakeRegistry
from moved_clock import MovedClock

from imagejobd.model.egress import Egress, EgressSettings
from imagejobd.model.errors import ErrorCode, Permanent, Temporary
from imagejobd.model.resolver import DOMAIN_LOOKUPS_MAX, Address, Resolver, domain_of
from imagejobd.registry.client import RegistryClient
from imagejobd.registry.hosts import RegistryTarget

# Whoever is held up by a dead name hears so before.
TEST_MAX_S = 30
HERE: list[Address] = [(socket.AF_INET, socket.IPPROTO_TCP, "127.0.0.1")]


class NameServer:
    """Names that begin with `dead` are answered when the test ends, those with `no` not at all."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.at_once = self.most_at_once = 0
        self.over = threading.Event()
        self._lock = threading.Lock()

    def look_up(self, name: str, family: int) -> list[Address]:
        with self._lock:
            self.asked.append(name)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        if name.startswith("dead"):
            self.over.wait(30)
        with self._lock:
            self.at_once -= 1
        if name.startswith("no"):
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return HERE


@asynccontextmanager
async def resolver(server: NameServer, timeout_s: float = 10.0) -> AsyncIterator[Resolver]:
    names = Resolver(server.look_up, timeout_s=timeout_s)
    try:
        yield names
    finally:
        server.over.set()
        await names.close()


@pytest.fixture
def server() -> NameServer:
    return NameServer()


async def test_this_machines_names_resolve() -> None:
    """Without a test's own lookup, the system is asked; ports and families are those that were asked for."""
    names = Resolver()
    found = await names.resolve("localhost", 80, socket.AF_INET)
    assert [(result["host"], result["port"]) for result in found] == [("127.0.0.1", 80)]
    with pytest.raises(socket.gaierror):
        await names.resolve("a..b", 80)
    await names.close()


@pytest.mark.parametrize("domains", [1, 100])
async def test_dead_names_do_not_stop_living_ones(server: NameServer, domains: int) -> None:
    """A job whose hundred targets have dead names, in one domain or in many, leaves places for the others."""
    async with resolver(server) as names:
        dead = [asyncio.create_task(names.resolve(f"dead{n}.owner{n % domains}.test")) for n in range(100)]
        async with asyncio.timeout(TEST_MAX_S):
            while server.at_once < min(100, domains * DOMAIN_LOOKUPS_MAX):
                assert (await names.resolve(f"r{len(server.asked)}.good.test"))[0]["host"] == "127.0.0.1"
                await asyncio.sleep(0.01)
            assert (await names.resolve("last.good.test"))[0]["host"] == "127.0.0.1"
        if domains == 1:
            assert server.most_at_once <= 5  # with a living one
        for task in dead:
            task.cancel()


async def test_lookups_at_once_are_bounded(server: NameServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Users cannot fill the process with threads."""
    monkeypatch.setattr("imagejobd.model.resolver.LOOKUPS_MAX", 8)
    async with resolver(server) as names:
        dead = [asyncio.create_task(names.resolve(f"dead.d{n}.test")) for n in range(100)]
        async with asyncio.timeout(TEST_MAX_S):
            while server.at_once < 8:
                await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert server.most_at_once == 8
        for task in dead:
            task.cancel()


async def test_one_lookup_for_all_who_want_it(server: NameServer) -> None:
    """Whatever their port."""
    async with resolver(server) as names:
        found = await asyncio.gather(*(names.resolve("r.test", port) for port in range(1, 6)))
    assert server.asked == ["r.test"]
    assert [results[0]["port"] for results in found] == [1, 2, 3, 4, 5]


async def test_a_name_that_takes_too_long(server: NameServer) -> None:
    """Nobody waits longer than the time-out, and who asks again meanwhile costs no thread."""
    async with resolver(server, timeout_s=1.0) as names:
        async with asyncio.timeout(TEST_MAX_S):
            for _ in range(3):
                with pytest.raises(socket.gaierror) as late:
                    await names.resolve("dead.test")
    assert late.value.errno == socket.EAI_AGAIN
    assert server.asked == ["dead.test"]


async def test_a_client_says_that_a_name_takes_too_long(server: NameServer) -> None:
    """It is temporary; a name that does not exist is said to be so."""
    async with resolver(server, timeout_s=2) as names:
        timing = MovedClock().timing
        async with RegistryClient({}, Egress(), proxies=NO_PROXIES, timing=timing, names=names) as client:
            for name, words in (("dead.test", "does not resolve in time"), ("no.test", "does not resolve$")):
                with pytest.raises(Temporary, match=words):
                    await client.connect(RegistryTarget(host=name)).ask("GET", "/v2/", scopes=())


async def test_egress_holds_for_what_names_mean(server: NameServer, fake: FakeRegistry) -> None:
    """The address that is connected to is the one that is checked."""
    fake.on_manifest = lambda _: web.Response()
    port = fake.host.partition(":")[2]
    for egress in (Egress(), Egress(EgressSettings(allow_private=False))):
        async with RegistryClient({}, egress, proxies=NO_PROXIES, names=Resolver(server.look_up)) as client:
            asking = client.connect(RegistryTarget(host=f"r.test:{port}", scheme="http")).ask("GET", "/v2/", scopes=())
            if fake.seen:
                with pytest.raises(Permanent) as denied:
                    await asking
                assert denied.value.code is ErrorCode.EGRESS
            else:
                assert (await asking).status == 200
    assert len(fake.seen) == 1


@pytest.mark.parametrize(
    ("name", "domain"),
    [
        ("a.b.example.test", "example.test"),
        ("example.test.", "example.test"),
        ("a.b.example.co.uk", "example.co.uk"),
        ("a.b.abc.test", "abc.test"),
        ("localhost", "localhost"),
    ],
)
def test_domains(name: str, domain: str) -> None:
    """What one owner can make names in."""
    assert domain_of(name) == domain
