"""From names to addresses, for many tenants at once.

A name whose servers do not answer holds a thread of `getaddrinfo` for half a minute, whoever still waits for it. So the
event loop's few threads are not used; the names of one domain, of which its owner can make as many as he likes, have
few threads together; and a name is looked up once for all who want it, for as long as that takes.
"""

import asyncio
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from weakref import WeakValueDictionary

from aiohttp.abc import AbstractResolver, ResolveResult

LOOKUP_TIMEOUT_S = 10.0
# More than the targets of two jobs; a thread that waits costs little.
LOOKUPS_MAX = 256
DOMAIN_LOOKUPS_MAX = 4
# Below such labels (co.uk, com.au) everybody has a domain.
COUNTRY_CHARS = 2
PUBLIC_LABEL_MAX_CHARS = 3

Address = tuple[int, int, str]
"""Family, protocol, and the address in figures."""
Lookup = Callable[[str, int], list[Address]]
"""The addresses of a name in a family. Blocks; raises `OSError`."""


class Resolver(AbstractResolver):
    """Resolves names for the HTTP library. Raises `socket.gaierror`, with `EAI_AGAIN` where there was no time."""

    def __init__(self, lookup: Lookup | None = None, *, timeout_s: float = LOOKUP_TIMEOUT_S) -> None:
        self._lookup = lookup or look_up
        self._timeout_s = timeout_s
        self._slots = asyncio.Semaphore(LOOKUPS_MAX)
        self._domains: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._lookups: dict[tuple[str, int], asyncio.Task[list[Address]]] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        key = (host.lower(), int(family))
        lookup = self._lookups.get(key)
        if lookup is None:
            lookup = self._lookups[key] = asyncio.create_task(self._find(*key))
            lookup.add_done_callback(lambda done: self._ended(key, done))
        try:
            async with asyncio.timeout(self._timeout_s):
                addresses = await asyncio.shield(lookup)
        except TimeoutError:
            raise socket.gaierror(socket.EAI_AGAIN, "no answer in time") from None
        except OSError as error:
            raise type(error)(*error.args) from None  # others who waited raise theirs
        flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        return [
            ResolveResult(hostname=host, host=figures, port=port, family=kind, proto=protocol, flags=flags)
            for kind, protocol, figures in addresses
        ]

    async def close(self) -> None:
        """Wait for nobody: a thread that hangs ends when its lookup does."""
        lookups = list(self._lookups.values())
        for lookup in lookups:
            lookup.cancel()
        await asyncio.gather(*lookups, return_exceptions=True)

    def _ended(self, key: tuple[str, int], lookup: asyncio.Task[list[Address]]) -> None:
        del self._lookups[key]
        if not lookup.cancelled():
            lookup.exception()  # those who waited may be gone

    async def _find(self, name: str, family: int) -> list[Address]:
        """Raises `TimeoutError` where no thread gets free in time."""
        domain = self._domains.setdefault(domain_of(name), asyncio.Semaphore(DOMAIN_LOOKUPS_MAX))
        async with asyncio.timeout(self._timeout_s) as waiting, domain, self._slots:
            waiting.reschedule(None)
            return await self._in_a_thread(name, family)

    async def _in_a_thread(self, name: str, family: int) -> list[Address]:
        loop = asyncio.get_running_loop()
        result: asyncio.Future[list[Address]] = loop.create_future()

        def set_result(addresses: list[Address], error: OSError | None) -> None:
            if not result.done():
                result.set_exception(error) if error else result.set_result(addresses)

        def run() -> None:
            addresses, error = [], None
            try:
                addresses = self._lookup(name, family)
            except OSError as raised:
                error = raised
            except Exception:  # noqa: BLE001 - a name that cannot even be asked for
                error = socket.gaierror(socket.EAI_NONAME, "not a name")
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(set_result, addresses, error)

        # Not of an executor: the process would wait for its threads at exit, and these may hang.
        threading.Thread(target=run, name=f"lookup {name[:40]}", daemon=True).start()
        return await result


def look_up(name: str, family: int) -> list[Address]:
    """What this machine's resolver says. Blocks."""
    entries = socket.getaddrinfo(name, 0, family=family, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    # A link-local address means nothing without the interface, which is its fourth part.
    return [
        (kind, protocol, f"{address[0]}%{address[3]}" if len(address) == 4 and address[3] else str(address[0]))
        for kind, _, protocol, _, address in entries
    ]


def domain_of(name: str) -> str:
    """What names have in common that one owner can make at will; roughly, because there is no rule."""
    labels = name.rstrip(".").split(".")
    is_public = len(labels) > 2 and len(labels[-1]) == COUNTRY_CHARS and len(labels[-2]) <= PUBLIC_LABEL_MAX_CHARS
    return ".".join(labels[-3:] if is_public else labels[-2:])
