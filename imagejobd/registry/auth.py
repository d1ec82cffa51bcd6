"""Answering a registry's challenge: HTTP Basic, or the token flow (distribution spec, "token authentication").

A password goes to the registry's own origin or to the token server that the registry names, and never from a registry
on TLS to a token server without it.
"""

import base64
import re
from collections.abc import Sequence

import msgspec
from yarl import URL

from imagejobd.model.errors import ErrorCode, Permanent, Temporary, invalid
from imagejobd.model.secret import Credentials, Redactor
from imagejobd.registry.challenge import Challenge
from imagejobd.registry.faults import detail, login_needed, refusal, translated
from imagejobd.registry.settings import Endpoint, RegistryHosts
from imagejobd.registry.transport import Answer, Transport, host_of, http_url

TOKEN_ANSWER_MAX_BYTES = 256 * 1024

_HEADER_SAFE = re.compile(r"[\x21-\x7e]+")


class _TokenAnswer(msgspec.Struct):
    """Servers of Docker's age say `token`, those of OAuth2 `access_token`, some both."""

    token: str = ""
    access_token: str = ""


class Access(msgspec.Struct, frozen=True):
    """What is wanted of a registry: `actions` (`pull`, `pull,push`) on the repository `path` at `host`."""

    host: str
    path: str
    actions: str

    @property
    def scope(self) -> str:
        return f"repository:{self.path}:{self.actions}"


class Authenticator:
    """Turns challenges into `Authorization` headers."""

    def __init__(self, transport: Transport, hosts: RegistryHosts) -> None:
        self._transport = transport
        self._hosts = hosts

    async def answer(
        self, challenges: Sequence[Challenge], access: Access, credentials: Credentials | None, endpoint: Endpoint
    ) -> str:
        """The `Authorization` header that satisfies one of `challenges`; a token is preferred to the password.

        Raises `Permanent(denied)` without usable credentials, or when the token server refuses them.
        """
        offered = {challenge.scheme: challenge for challenge in reversed(challenges)}
        if "bearer" in offered:
            return f"Bearer {await self._token(offered['bearer'], access, credentials, endpoint)}"
        if "basic" in offered:
            if credentials is None:
                raise login_needed(access.host, access.path)
            return basic(credentials)
        names = (", ".join(sorted(offered)) or "none")[:100]
        raise Permanent(
            ErrorCode.DENIED,
            f"registry {access.host} asks for a login in no way known here (offered: {names}; known: Basic, Bearer)",
        )

    async def _token(
        self, challenge: Challenge, access: Access, credentials: Credentials | None, endpoint: Endpoint
    ) -> str:
        realm = _realm(challenge, access, endpoint)
        query = {"scope": access.scope}
        if "service" in challenge.parameters:
            query["service"] = challenge.parameters["service"]
        headers = {"Authorization": basic(credentials)} if credentials else {}
        token_host = host_of(realm)
        with translated(token_host):
            answer = await self._transport.fetch(
                "GET",
                realm.extend_query(query),
                headers,
                tls=endpoint.tls if token_host == access.host else self._hosts.tls_for(token_host),
                body_max_bytes=TOKEN_ANSWER_MAX_BYTES,
            )
        if answer.status in (401, 403) and credentials is None:
            raise login_needed(access.host, access.path)
        return _token_of(answer, token_host, access, credentials)


def basic(credentials: Credentials) -> str:
    """The `Authorization` header of RFC 7617, whose user names cannot hold a colon."""
    if ":" in credentials.username:
        raise invalid("a registry user name cannot contain a colon")
    pair = f"{credentials.username}:{credentials.password.reveal()}"
    return f"Basic {base64.b64encode(pair.encode()).decode()}"


def _realm(challenge: Challenge, access: Access, endpoint: Endpoint) -> URL:
    realm = http_url(challenge.parameters.get("realm", ""))
    if realm is None:
        raise Permanent(ErrorCode.DENIED, f"registry {access.host}: its challenge names no token server")
    if endpoint.origin.startswith("https:") and realm.scheme != "https":
        raise Permanent(
            ErrorCode.DENIED,
            f"registry {access.host}: its token server {host_of(realm)} has no TLS while the registry has; refused",
        )
    return realm


def _token_of(answer: Answer, token_host: str, access: Access, credentials: Credentials | None) -> str:
    if answer.status != 200:
        redact = Redactor([credentials.password] if credentials else [])
        raise refusal(
            token_host,
            answer.status,
            what=f"token for {access.path} at {access.host}",
            detail=redact(detail(answer.body)),
            retry_after=answer.headers.get("Retry-After"),
        )
    try:
        body = msgspec.json.decode(answer.body, type=_TokenAnswer)
    except (msgspec.DecodeError, UnicodeDecodeError):
        body = _TokenAnswer()
    token = body.token or body.access_token
    if not _HEADER_SAFE.fullmatch(token):
        raise Temporary(ErrorCode.REGISTRY_UNAVAILABLE, f"token server {token_host}: its answer holds no usable token")
    return token
