"""What the steps of one copy share."""

from collections import OrderedDict
from collections.abc import Awaitable, Callable

import msgspec

from imagejobd.model.concurrency import KeyedLock
from imagejobd.registry.connection import Connection
from imagejobd.registry.copy.flight import Flights
from imagejobd.registry.repository import Repository

HOLDINGS_MAX = 10_000


class Holdings:
    """Which repository of a registry is known to hold a blob, so that another one there can mount it.

    A hint and no more: the registry decides by what the login may read. One job's knowledge stays its own.
    """

    def __init__(self) -> None:
        self._paths: OrderedDict[tuple[str, str], str] = OrderedDict()

    def note(self, repository: Repository, digest: str) -> None:
        self._paths[_place(repository.connection, digest)] = repository.path
        if len(self._paths) > HOLDINGS_MAX:
            self._paths.popitem(last=False)

    def elsewhere(self, repository: Repository, digest: str) -> str | None:
        """The path of another repository on the same registry that holds `digest`."""
        path = self._paths.get(_place(repository.connection, digest))
        return path if path != repository.path else None


class Copying(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """The source of one copy, and what it shares: `flights` and `turns` with all copies, `holdings` with those of its
    job. `tell` takes one line for people."""

    source: Repository
    flights: Flights
    turns: KeyedLock
    holdings: Holdings
    tell: Callable[[str], Awaitable[None]]


def _place(connection: Connection, digest: str) -> tuple[str, str]:
    return connection.site.host, digest
