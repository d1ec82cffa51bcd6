"""Who we are at one registry: the scheme that it asked for, learnt once, and the header for each request.

Unknown at first, because most registries tell by their challenge; then every request carries its header at once.
"""

from collections.abc import Iterator, Sequence

import msgspec
from yarl import URL

from imagejobd.model.errors import ErrorCode, Permanent
from imagejobd.model.secrets import Credentials, Secret
from imagejobd.registry.faults import login_needed
from imagejobd.registry.http.address import http_url
from imagejobd.registry.http.basic import basic
from imagejobd.registry.http.timing import Timing
from imagejobd.registry.login.auth import TokenServers, wanted
from imagejobd.registry.login.challenge import Challenge
from imagejobd.registry.login.tokens import Token, Tokens
from imagejobd.registry.site import ReadyToken, TokenRequest
from imagejobd.registry.trust import Approach


class Grant(msgspec.Struct, frozen=True, eq=False):
    """One request's `Authorization`. `is_cached`: it was in hand before the request, and may have got old."""

    header: str
    is_cached: bool = False
    token: Token | None = None


class Authorization:
    """The login of one connection."""

    def __init__(self, approach: Approach, servers: TokenServers, timing: Timing) -> None:
        self._login = approach.login
        self._servers = servers
        self._tokens = Tokens(timing)
        self._host = approach.site.host
        self._advice = approach.advice
        self._scheme: Challenge | None = None

    @property
    def is_known(self) -> bool:
        """Whether it is known what the registry wants."""
        return self._scheme is not None or isinstance(self._login, TokenRequest | ReadyToken)

    def secrets(self) -> Iterator[Secret]:
        """What no message may show."""
        if isinstance(self._login, Credentials):
            yield self._login.password
        elif self._login is not None:
            yield from self._login.secrets
        yield from self._tokens.secrets()

    async def grant(self, scopes: Sequence[str], origin: URL | None) -> Grant | None:
        """What a request for `scopes` carries; None while nothing has been asked for."""
        if isinstance(self._login, TokenRequest):
            return await self._by_request(self._login)
        if isinstance(self._login, ReadyToken):
            return Grant(f"{self._login.token_type} {self._login.token.reveal()}")
        if self._scheme is None or origin is None:
            return None
        if self._scheme.scheme == "bearer":
            return await self._by_challenge(self._scheme, self._login, scopes, origin)
        if self._login is None:
            raise login_needed(self._host, wanted(scopes), self._advice)
        return Grant(basic(self._login))

    def learn(self, challenges: Sequence[Challenge]) -> None:
        """Take the best of what the registry offers: a token, whose server is named, is preferred to the password.

        Raises `Permanent(denied)` where nothing is known here.
        """
        tokens = [challenge for challenge in challenges if challenge.scheme == "bearer"]
        password = next((challenge for challenge in challenges if challenge.scheme == "basic"), None)
        found = next(filter(_names_its_server, tokens), None) or password or next(iter(tokens), None)
        if found is None:
            names = (", ".join(sorted({challenge.scheme for challenge in challenges})) or "none")[:100]
            raise Permanent(
                ErrorCode.DENIED,
                f"registry {self._host} asks for a login in no way known here (offered: {names}; known: Basic, Bearer)",
            )
        self._scheme = found

    def refused(self, grant: Grant, scopes: Sequence[str]) -> bool:
        """Note that the registry refused `grant`; whether another one may help. A token may: even a fresh one can be
        over by the time that it arrives."""
        if grant.token is None:
            return False
        self._tokens.forget(self._key(scopes), grant.token)
        return True

    async def _by_request(self, login: TokenRequest) -> Grant:
        token, is_fresh = await self._tokens.get(self._key(()), lambda: self._servers.by_request(login))
        return Grant(token.header, not is_fresh, token)

    async def _by_challenge(
        self, challenge: Challenge, login: Credentials | None, scopes: Sequence[str], origin: URL
    ) -> Grant:
        token, is_fresh = await self._tokens.get(
            self._key(scopes), lambda: self._servers.by_challenge(challenge, scopes, login, origin)
        )
        return Grant(token.header, not is_fresh, token)

    def _key(self, scopes: Sequence[str]) -> frozenset[str]:
        return frozenset() if isinstance(self._login, TokenRequest) else frozenset(scopes)


def _names_its_server(challenge: Challenge) -> bool:
    return http_url(challenge.parameters.get("realm", "")) is not None
