"""From names to addresses, for many tenants at once.

A name whose servers do not answer holds a thread of `getaddrinfo` for half a minute, whoever still waits for it. So the
event loop's few threads are not used, and dead names take no place from living ones: a lookup that turns out slow moves
to places of its own, of which there are more than one job has targets; the names of one domain have few places
together; a name is looked up once for all who want it, and its failure is remembered for a moment.
"""

import asyncio
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from weakref import WeakValueDictionary

import msgspec
from aiohttp.abc import AbstractResolver, ResolveResult

LOOKUP_TIMEOUT_S = 10.0
SLOW_AFTER_S = 0.25
QUICK_LOOKUPS_MAX = 32
SLOW_LOOKUPS_MAX = 128
DOMAIN_LOOKUPS_MAX = 4
# Less than the tries of one request take together, so that the last of them asks again.
FAILURE_REMEMBERED_S = 1.0
TIMEOUT_REMEMBERED_S = 10.0
FAILURES_REMEMBERED_MAX = 4096
# Below such labels (co.uk, com.au) everybody has a domain.
COUNTRY_CHARS = 2
PUBLIC_LABEL_MAX_CHARS = 3

Address = tuple[int, int, str]
"""Family, protocol, and the address in figures."""
Lookup = Callable[[str, int], list[Address]]
"""The addresses of a name in a family. Blocks; raises `OSError`."""
_Key = tuple[str, int]


class _Failure(msgspec.Struct, frozen=True):
    error: OSError
    until_s: float


class Resolver(AbstractResolver):
    """Resolves names for the HTTP library. Raises `socket.gaierror`, with `EAI_AGAIN` where there was no time."""

    def __init__(self, lookup: Lookup | None = None, *, timeout_s: float = LOOKUP_TIMEOUT_S) -> None:
        self._lookup = lookup or look_up
        self._timeout_s = timeout_s
        self._slow_after_s = min(SLOW_AFTER_S, timeout_s / 2)
        self._loop = asyncio.get_running_loop()
        self._quick = asyncio.Semaphore(QUICK_LOOKUPS_MAX)
        self._slow = asyncio.Semaphore(SLOW_LOOKUPS_MAX)
        self._domains: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._flights: dict[_Key, asyncio.Task[list[Address]]] = {}
        self._failures: dict[_Key, _Failure] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        key = (host.lower(), int(family))
        failure = self._failures.get(key)
        if failure is not None and self._loop.time() < failure.until_s:
            raise _again(failure.error)
        try:
            async with asyncio.timeout(self._timeout_s):
                found = await asyncio.shield(self._flight(key))
        except TimeoutError:
            error = socket.gaierror(socket.EAI_AGAIN, "no answer in time")
            self._remember(key, error, TIMEOUT_REMEMBERED_S)
            raise error from None
        except OSError as error:
            raise _again(error) from None
        return [_result(host, port, address) for address in found]

    async def close(self) -> None:
        """Wait for nobody: a thread that hangs ends when its lookup does."""
        flights = list(self._flights.values())
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)

    def _flight(self, key: _Key) -> asyncio.Task[list[Address]]:
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = asyncio.create_task(self._find(key))
            flight.add_done_callback(lambda ended: self._landed(key, ended))
        return flight

    def _landed(self, key: _Key, flight: asyncio.Task[list[Address]]) -> None:
        del self._flights[key]
        error = None if flight.cancelled() else flight.exception()
        if isinstance(error, OSError):
            self._remember(key, error, FAILURE_REMEMBERED_S)

    def _remember(self, key: _Key, error: OSError, seconds: float) -> None:
        self._failures.pop(key, None)
        self._failures[key] = _Failure(error, self._loop.time() + seconds)
        if len(self._failures) > FAILURES_REMEMBERED_MAX:
            del self._failures[next(iter(self._failures))]

    async def _find(self, key: _Key) -> list[Address]:
        """Raises `TimeoutError` where no place gets free in time."""
        domain = domain_of(key[0])
        places = self._domains.setdefault(domain, asyncio.Semaphore(DOMAIN_LOOKUPS_MAX))
        async with asyncio.timeout(self._timeout_s) as waiting, places:
            await self._quick.acquire()
            waiting.reschedule(None)
            return await self._in_a_thread(key)

    async def _in_a_thread(self, key: _Key) -> list[Address]:
        """Look up in a quick place, which is given back at the end, or for a slow one as soon as that is free."""
        place = self._quick
        try:
            found = self._start(key)
            await asyncio.wait([found], timeout=self._slow_after_s)
            if not found.done() and not self._slow.locked():
                await self._slow.acquire()
                self._quick.release()
                place = self._slow
            return await found
        finally:
            place.release()

    def _start(self, key: _Key) -> asyncio.Future[list[Address]]:
        found: asyncio.Future[list[Address]] = self._loop.create_future()

        def tell(addresses: list[Address], error: OSError | None) -> None:
            if found.done():
                return
            found.set_exception(error) if error else found.set_result(addresses)

        def run() -> None:
            addresses, error = [], None
            try:
                addresses = self._lookup(*key)
            except OSError as raised:
                error = raised
            except Exception:  # noqa: BLE001 - a name that cannot even be asked for
                error = socket.gaierror(socket.EAI_NONAME, "not a name")
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                self._loop.call_soon_threadsafe(tell, addresses, error)

        # Not of a pool: the process would wait for its threads at exit, and these may hang.
        threading.Thread(target=run, name=f"lookup {key[0][:40]}", daemon=True).start()
        return found


def look_up(name: str, family: int) -> list[Address]:
    """What this machine's resolver says. Blocks."""
    found = socket.getaddrinfo(name, 0, family=family, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    return [(kind, protocol, _figures(address)) for kind, _, protocol, _, address in found]


def domain_of(name: str) -> str:
    """What names have in common that one owner can make at will; roughly, because there is no rule."""
    labels = name.rstrip(".").split(".")
    is_public = len(labels) > 2 and len(labels[-1]) == COUNTRY_CHARS and len(labels[-2]) <= PUBLIC_LABEL_MAX_CHARS
    return ".".join(labels[-3:] if is_public else labels[-2:])


def _figures(address: tuple[Any, ...]) -> str:
    """A link-local address means nothing without the interface."""
    return f"{address[0]}%{address[3]}" if len(address) == 4 and address[3] else str(address[0])


def _result(host: str, port: int, address: Address) -> ResolveResult:
    family, protocol, figures = address
    flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    return ResolveResult(hostname=host, host=figures, port=port, family=family, proto=protocol, flags=flags)


def _again(error: OSError) -> OSError:
    """The same error for another who waited: an exception is raised once."""
    return type(error)(*error.args)
