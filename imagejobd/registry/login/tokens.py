"""Tokens in hand: one fetch for all who want the same, renewed before they expire."""

import asyncio
import copy
import datetime as dt
from collections.abc import Awaitable, Callable, Hashable
from typing import Any

import msgspec

from imagejobd.model.errors import Fault
from imagejobd.model.secrets import Secret
from imagejobd.registry.http.timing import Timing

# "A token should never be returned with less than 60 seconds to live" (distribution, "token authentication").
LIFETIME_MIN_S = 60.0
LIFETIME_MAX_S = 24 * 3600.0
RENEW_EARLY_MAX_S = 10.0
RENEW_EARLY_SHARE = 0.1


class TokenAnswer(msgspec.Struct):
    """Servers of Docker's age say `token`, those of OAuth2 `access_token`, some both; times are optional."""

    token: str | None = None
    access_token: str | None = None
    expires_in: Any = None
    issued_at: Any = None


class Token(msgspec.Struct, frozen=True, eq=False):
    """`header` is the whole value of `Authorization`; `renew_at` is a time of `Timing.clock`."""

    header: str
    renew_at: float

    def __repr__(self) -> str:
        return f"Token(renew_at={self.renew_at:.0f})"


class Tokens:
    """The tokens of one connection, by what they were asked for."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._held: dict[Hashable, Token] = {}
        self._locks: dict[Hashable, asyncio.Lock] = {}
        self._failed: dict[Hashable, tuple[int, Fault]] = {}
        self._fetches = 0

    def secrets(self) -> list[Secret]:
        return [Secret(token.header.rpartition(" ")[2]) for token in self._held.values()]

    def forget(self, key: Hashable, token: Token) -> None:
        """`token` was refused where it should have helped."""
        if self._held.get(key) is token:
            del self._held[key]

    async def get(self, key: Hashable, fetch: Callable[[], Awaitable[Token]]) -> tuple[Token, bool]:
        """A token for `key`, and whether it was fetched just now. All who wait share one fetch, and its failure."""
        if held := self._good(key):
            return held, False
        before = self._fetches
        # Who wants something else does not wait for this one's server.
        async with self._locks.setdefault(key, asyncio.Lock()):
            if held := self._good(key):
                return held, False
            number, fault = self._failed.get(key, (0, None))
            if fault is not None and number > before:
                raise copy.copy(fault)
            return await self._fetch(key, fetch), True

    def _good(self, key: Hashable) -> Token | None:
        held = self._held.get(key)
        return held if held is not None and self._timing.clock() < held.renew_at else None

    async def _fetch(self, key: Hashable, fetch: Callable[[], Awaitable[Token]]) -> Token:
        try:
            token = await fetch()
        except Fault as fault:
            self._fetches += 1
            self._failed[key] = (self._fetches, fault)
            raise
        self._fetches += 1
        self._held[key] = token
        return token


def renew_at(answer: TokenAnswer, timing: Timing) -> float:
    """When to fetch another one: a little before the end of a life that is at least `LIFETIME_MIN_S` long."""
    told_s = answer.expires_in if isinstance(answer.expires_in, int | float) else 0.0
    life_s = min(max(told_s, LIFETIME_MIN_S), LIFETIME_MAX_S)
    age_s = _age_s(answer.issued_at, timing)
    # A server whose clock goes wrong would otherwise make every token an expired one.
    rest_s = life_s - age_s if 0 < age_s < life_s else life_s
    return timing.clock() + rest_s - min(RENEW_EARLY_MAX_S, rest_s * RENEW_EARLY_SHARE)


def _age_s(issued_at: Any, timing: Timing) -> float:
    """Seconds since `issued_at` (RFC 3339); 0 where it is missing or cannot be read."""
    try:
        issued = dt.datetime.fromisoformat(issued_at)
        return (timing.now() - (issued if issued.tzinfo else issued.replace(tzinfo=dt.UTC))).total_seconds()
    except (TypeError, ValueError, OverflowError):
        return 0.0
