"""Who is found to be down, by whom, and who only seems to be: no job may shut others out of a host that is well."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from fake_registry import NO_PROXIES, FakeRegistry
from moved_clock import MovedClock
from raw_peer import head_of, raw_peer
from repositories import drained, reader

from imagejobd.model.circuit import TRIAL_FIRST_S, Circuits
from imagejobd.model.egress import Egress, EgressSettings
from imagejobd.model.errors import ErrorCode, Fault, Permanent, Temporary
from imagejobd.model.secrets import Secret
from imagejobd.registry.blobs import read_blob
from imagejobd.registry.client import RegistryClient
from imagejobd.registry.hosts import RegistryHost, RegistryTarget, TokenRequest
from imagejobd.registry.manifest import Descriptor
from imagejobd.registry.proxies import Proxies

SCOPES = ("repository:team/app:pull",)
BLOB = Descriptor(digest="sha256:" + "b" * 64, size=10, media_type="application/octet-stream")


@asynccontextmanager
async def connected(
    hosts: dict[str, RegistryHost] | None = None, **options: object
) -> AsyncIterator[tuple[RegistryClient, MovedClock]]:
    """A client and the time of its waits and circuits."""
    time = MovedClock()
    settings = {"proxies": NO_PROXIES, "timing": time.timing, "circuits": Circuits(clock=lambda: time.time_s)} | options
    async with RegistryClient(hosts or {}, settings.pop("egress", Egress()), **settings) as client:  # type: ignore[arg-type]
        yield client, time


@asynccontextmanager
async def dead_host() -> AsyncIterator[str]:
    """A port where nobody listens, kept from everybody else."""
    async with raw_peer(lambda reader, writer: asyncio.sleep(0)) as host:
        pass
    yield host


async def ask(client: RegistryClient, site: RegistryTarget, target: str = "/v2/x") -> Fault | None:
    """How a request ends."""
    try:
        await client.connect(site).ask("GET", target, scopes=SCOPES)
    except Fault as fault:
        return fault
    return None


async def test_the_pause_grows_while_nobody_is_there() -> None:
    """Of many requests that come while a host stays down, only one after each pause tries it, and the pauses grow."""
    async with dead_host() as host, connected() as (client, time):
        tried = []
        for second in range(120):
            waits = len(time.slept)
            assert isinstance(await ask(client, RegistryTarget(host=host)), Temporary)
            if len(time.slept) > waits:
                tried.append(second)
            time.advance(1.0)
        assert 3 <= len(tried) <= 8
        assert client.circuits.is_open(host)


async def test_nobody_there_is_learned_once() -> None:
    """After the tries of one request the next one costs no connection; after a pause one tries, and any answer ends
    it."""
    async with dead_host() as host, connected() as (client, time):
        first = await ask(client, RegistryTarget(host=host))
        assert isinstance(first, Temporary)
        assert (first.code, first.peer) == (ErrorCode.REGISTRY_UNAVAILABLE, host)
        waits = len(time.slept)
        known = await ask(client, RegistryTarget(host=host))
        assert isinstance(known, Temporary)
        assert (known.peer, len(time.slept)) == (host, waits)
        assert "known from an earlier request" in known.message

        async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await head_of(reader)
            writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()

        server = await asyncio.start_server(refuse, *host.split(":"))
        async with server:
            assert isinstance(await ask(client, RegistryTarget(host=host)), Temporary)
            time.advance(2 * TRIAL_FIRST_S)
            assert await ask(client, RegistryTarget(host=host, scheme="http")) is None
        assert client.circuits.outages == {}


async def test_a_host_that_is_silent_to_one_job_only(fake: FakeRegistry) -> None:
    """What a user may name there can hang for ever: the host answers to others, so that nobody else waits for it."""

    async def hang(request: web.Request) -> web.StreamResponse:
        if request.path != "/v2/":
            await asyncio.sleep(60)
        return web.Response()

    fake.on_manifest = hang
    async with connected(idle_timeout_s=1.0) as (client, _):
        fault = await ask(client, RegistryTarget(host=fake.host), "/v2/hanging/manifests/1")
        assert isinstance(fault, Temporary)
        assert fault.peer is None
        assert client.circuits.outages == {}


@pytest.mark.parametrize("is_own_token_server", [False, True], ids=["registry", "token-server"])
async def test_the_wrong_scheme_shuts_nobody_out(is_own_token_server: bool) -> None:
    """A TLS server that hangs up on plain HTTP looks dead to who insists on that; asked as it should be, it is not."""

    async with raw_peer(tls_only) as host, connected() as (client, _):
        login = TokenRequest(url=Secret(f"http://{host}/token")) if is_own_token_server else None
        fault = await ask(client, RegistryTarget(host=host, scheme="http", login=login))
        assert isinstance(fault, Temporary)
        assert fault.peer is None
        assert client.circuits.outages == {}


async def test_the_wrong_way_to_try_keeps_no_host_down() -> None:
    """Whoever's turn it is to try a host that is back, and however that one tries, the host is found to be back."""
    async with dead_host() as host, connected() as (client, time):
        assert isinstance(await ask(client, RegistryTarget(host=host)), Temporary)
        async with await asyncio.start_server(tls_only, *host.split(":")):
            time.advance(TRIAL_FIRST_S)
            assert isinstance(await ask(client, RegistryTarget(host=host, scheme="http")), Temporary)
            assert client.circuits.outages == {}


async def test_a_trial_that_is_given_up_is_none() -> None:
    """A job that is cancelled while it tries leaves the trial to the next one."""
    entered = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        entered.set()
        await asyncio.sleep(60)

    async with raw_peer(hang) as host, connected() as (client, time):
        client.circuits.failed(host, "nobody is there")
        time.advance(TRIAL_FIRST_S)
        trial = asyncio.create_task(ask(client, RegistryTarget(host=host)))
        await entered.wait()
        assert client.circuits.due() == []
        trial.cancel()
        await asyncio.wait([trial])
        assert client.circuits.due() == [host]


async def tls_only(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers a TLS hello, if only with an alert, and hangs up on everything else."""
    if (await reader.readexactly(1))[0] == 0x16:
        writer.write(b"\x15\x03\x03\x00\x02\x02\x28")
        await writer.drain()
    writer.close()


async def test_tls_to_a_plain_registry_is_an_answer(fake: FakeRegistry) -> None:
    """Who writes https:// hears what to write; the registry is there for all others."""
    async with connected() as (client, _):
        fault = await ask(client, RegistryTarget(host=fake.host, scheme="https"))
        assert isinstance(fault, Permanent)
        assert f"it does not speak TLS; write http://{fake.host} if plain HTTP is meant" in fault.message
        assert client.circuits.outages == {}


async def test_a_redirect_to_a_dead_host_blames_that_host(fake: FakeRegistry) -> None:
    """The registry that leads there answers all others."""
    async with dead_host() as dead, connected() as (client, _):
        fake.on_manifest = lambda request: web.Response(status=307, headers={"Location": f"http://{dead}/blob"})
        fault = await ask(client, RegistryTarget(host=fake.host))
        assert isinstance(fault, Temporary)
        assert fault.peer == dead
        assert client.circuits.outages.keys() == {dead}
        assert fake.host not in client.circuits.outages[dead].message


async def test_addresses_that_are_off_limits_open_nothing() -> None:
    """Where this daemon may not connect to, it has not found out anything."""
    egress = Egress(EgressSettings(deny=("127.0.0.0/8",)))
    async with dead_host() as host, connected(egress=egress) as (client, _):
        fault = await ask(client, RegistryTarget(host=host))
        assert isinstance(fault, Permanent)
        assert fault.code is ErrorCode.EGRESS
        assert client.circuits.outages == {}


async def test_a_dead_proxy_is_not_the_registry() -> None:
    """All that goes through it waits for the proxy."""
    async with dead_host() as proxy:
        proxies = Proxies({"http_proxy": f"http://{proxy}", "https_proxy": f"http://{proxy}"})
        async with connected(proxies=proxies) as (client, _):
            fault = await ask(client, RegistryTarget(host="registry.invalid"))
            assert isinstance(fault, Temporary)
            assert fault.peer == proxy
            assert client.circuits.outages.keys() == {proxy}


async def test_a_dead_mirror_is_not_the_registry(fake: FakeRegistry) -> None:
    """What a mirror does not give, the registry does, and neither is called down for the other."""
    fake.on_manifest = lambda request: web.Response(body=b"0123456789")
    async with dead_host() as mirror, connected({fake.host: RegistryHost(mirrors=(mirror,))}) as (client, _):
        assert await drained(read_blob(reader(client, fake.host, "team/app"), BLOB)) == b"0123456789"
        assert fake.host not in client.circuits.outages


async def test_a_source_that_dies_is_found_out() -> None:
    """A blob whose reading has been given up says who does not answer."""
    async with dead_host() as host, connected() as (client, time):
        source = reader(client, host, "team/app")
        with pytest.raises(Temporary) as down:
            await drained(read_blob(source, BLOB, pause=time.timing.sleep))
        assert down.value.peer == host


async def test_names_that_do_not_exist_are_nobodys_outage() -> None:
    """A name that is misspelt is told so, and waits for no host to come back."""
    async with connected() as (client, _):
        fault = await ask(client, RegistryTarget(host="registry.invalid"))
        assert isinstance(fault, Temporary)
        assert fault.peer is None
