"""The pace of a host: places by lane, growth and halving, pauses for everybody."""

import asyncio
import datetime as dt
import gc
from email.utils import format_datetime

import pytest
from aiohttp import web
from fake_registry import FakeRegistry
from moved_clock import MovedClock

from imagejobd.model.egress import Egress
from imagejobd.model.errors import Temporary
from imagejobd.registry.client import RegistryClient
from imagejobd.registry.hosts import RegistryTarget
from imagejobd.registry.limits import BULK_MAX, BULK_START, SMALL_MAX, SMALL_START, AimdLimiter, HostLimiter

SCOPES = ("repository:team/app:pull",)


def lane(limit: int = 2) -> AimdLimiter:
    return AimdLimiter(limit, 4)


async def test_places_are_taken_in_turn() -> None:
    """Who came first goes first, and no more go than there are places."""
    two = lane(2)
    order: list[int] = []

    async def visit(number: int) -> None:
        await two.enter()
        order.append(number)
        await asyncio.sleep(0)
        assert two.active <= 2
        two.leave()

    await asyncio.gather(*(visit(number) for number in range(9)))
    assert order == list(range(9))
    assert two.active == 0


@pytest.mark.parametrize("is_admitted", [False, True])
async def test_a_cancelled_wait_keeps_no_place(is_admitted: bool) -> None:
    """A place that comes together with the cancellation goes to the next."""
    one = lane(1)
    await one.enter()
    waits = [asyncio.create_task(one.enter()) for _ in range(2)]
    await asyncio.sleep(0)
    if is_admitted:
        one.leave()
        waits[0].cancel()
    else:
        waits[0].cancel()
        await asyncio.sleep(0)
        one.leave()
    await asyncio.wait_for(waits[1], 1)
    assert waits[0].cancelled()
    assert one.active == 1


async def test_growth_and_halving() -> None:
    """One more place for each window of successes, half of them when it was too much, within bounds, once a round."""
    some = lane(2)
    for _ in range(2):
        some.succeeded()
    assert some.limit == 3
    for _ in range(50):
        some.succeeded()
    assert some.limit == 4
    rounds = [await some.enter() for _ in range(4)]
    for entered_in in rounds:
        some.overloaded(entered_in)
    assert some.limit == 2
    for _ in range(9):
        some.overloaded(some._round)
    assert some.limit == 1


async def test_lanes_do_not_wait_for_each_other() -> None:
    """Small requests and writes go on while all places for reads are taken."""
    pace = HostLimiter(MovedClock().timing)
    for _ in range(BULK_START):
        await pace.reads.enter()
    async with asyncio.timeout(1):
        async with pace.slot(pace.small), pace.slot(pace.writes):
            assert (pace.small.active, pace.writes.active) == (1, 1)


async def test_a_stream_keeps_its_place_until_its_end(fake: FakeRegistry, client: RegistryClient) -> None:
    """The place of a large read is free when its body is, not when its status is known."""
    connection = client.connect(RegistryTarget(host=fake.host, scheme="http"))
    pace = connection._limiter
    fake.on_manifest = lambda _: web.Response(body=b"x" * 1000)
    async with connection.stream("/v2/x", scopes=SCOPES) as stream:
        assert [chunk async for chunk in stream.chunks()]
        assert pace.reads.active == 1
    assert pace.reads.active == 0


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_retry_after_pauses_the_whole_host(
    fake: FakeRegistry, client: RegistryClient, time: MovedClock, status: int, form: str
) -> None:
    """One answer keeps all connections to that host away for as long as it says, and no other host."""
    date = format_datetime(MovedClock.START + dt.timedelta(seconds=30), usegmt=True)
    headers = {"Retry-After": "30" if form == "seconds" else date}
    busy = [web.Response(status=status, headers=headers)]
    came: list[tuple[str, float]] = []

    def on_manifest(request: web.Request) -> web.StreamResponse:
        came.append((request.path, time.time_s - 1000))
        return busy.pop() if busy else web.Response(body=b"{}")

    fake.on_manifest = on_manifest
    first, second = (client.connect(RegistryTarget(host=fake.host, scheme="http")) for _ in range(2))

    async def read() -> int:
        async with second.stream("/v2/second", scopes=SCOPES) as stream:
            return stream.status

    time.is_held = True
    refused = asyncio.create_task(first.ask("GET", "/v2/first", scopes=SCOPES))
    async with asyncio.timeout(5):
        while not time.slept:
            await asyncio.sleep(0)
        other = asyncio.create_task(read())
        while len(time.slept) < 2:
            await asyncio.sleep(0)
        assert came == [("/v2/first", 0)]
        time.advance(30)
        assert (await refused).status == await other == 200
    assert sorted(came[1:]) == [("/v2/first", 30), ("/v2/second", 30)]


async def test_a_pause_that_is_too_long_is_the_retrys(
    fake: FakeRegistry, client: RegistryClient, time: MovedClock
) -> None:
    """Beyond a minute nobody waits: the request fails and says when to come again."""
    fake.on_manifest = lambda _: web.Response(status=429, headers={"Retry-After": "600"})
    with pytest.raises(Temporary) as busy:
        await client.connect(RegistryTarget(host=fake.host, scheme="http")).ask("GET", "/v2/x", scopes=SCOPES)
    assert busy.value.retry_after_s == 600
    assert time.slept == []


async def test_a_host_that_is_overloaded_is_asked_less(fake: FakeRegistry, client: RegistryClient) -> None:
    """429 halves the requests at once of the lane that heard it; successes bring them back."""
    connection = client.connect(RegistryTarget(host=fake.host, scheme="http"))
    pace = connection._limiter
    busy = [web.Response(status=429)]
    fake.on_manifest = lambda _: busy.pop() if busy else web.Response()
    await connection.ask("GET", "/v2/x", scopes=SCOPES)
    assert (pace.small.limit, pace.reads.limit) == (SMALL_START // 2, BULK_START)
    for _ in range(600):
        pace.small.succeeded()
        pace.reads.succeeded()
    assert (pace.small.limit, pace.reads.limit) == (SMALL_MAX, BULK_MAX)


async def test_limits_that_somebody_holds_are_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many hosts are named meanwhile, all connections to one host share its limits."""
    monkeypatch.setattr("imagejobd.registry.client.LIMITERS_MAX", 3)
    client = RegistryClient({}, Egress())
    connection = client.connect(RegistryTarget(host="held.example"))
    for number in range(10):
        client.connect(RegistryTarget(host=f"r{number}.example"))
    assert client.connect(RegistryTarget(host="held.example"))._limiter is connection._limiter


async def test_the_limits_of_hosts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Users cannot fill the memory with names of hosts."""
    monkeypatch.setattr("imagejobd.registry.client.LIMITERS_MAX", 3)
    async with RegistryClient({}, Egress()) as client:
        for number in range(10):
            client.connect(RegistryTarget(host=f"r{number}.example"))
        gc.collect()
        assert len(client._limiters) == 3
