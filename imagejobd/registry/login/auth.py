"""Fetching tokens: from the server that a registry's challenge names (distribution, "token authentication"), or as a
request itself says.

A password goes to the registry's own origin or to the token server that the registry names, and never from a registry
on TLS to a token server without it. What a request sends to its own token server never goes on to another origin.
"""

import re
from collections.abc import Mapping, Sequence

import msgspec
from yarl import URL

from imagejobd.model.errors import ErrorCode, Fault, Permanent, Temporary, invalid
from imagejobd.model.secrets import Credentials, Redactor, Secret
from imagejobd.registry.faults import detail, is_busy, login_needed, no_token, refusal, translated
from imagejobd.registry.http.address import host_of, http_url, origin_of
from imagejobd.registry.http.basic import basic
from imagejobd.registry.http.timing import Timing
from imagejobd.registry.http.transport import REDIRECTS_MAX, Answer, Transport, redirect_target
from imagejobd.registry.login.challenge import Challenge
from imagejobd.registry.login.tokens import Token, TokenAnswer, renew_at
from imagejobd.registry.site import TokenRequest
from imagejobd.registry.trust import Approach

TOKEN_ANSWER_MAX_BYTES = 256 * 1024

_HEADER_SAFE = re.compile(r"[\x21-\x7e]+")
_HEADER_VALUE = re.compile(r"[\x20-\x7e\x80-\xff]*")
_TOKEN_TYPE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# The HTTP library decides these, or they decide where a request ends.
_OWN_HEADERS = frozenset({"host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer"})


class TokenServers:
    """Asks for tokens on behalf of one site."""

    def __init__(self, transport: Transport, approach: Approach, timing: Timing) -> None:
        self._transport = transport
        self._trust = approach.tls_for
        self._timing = timing
        self._host = approach.site.host
        self._advice = approach.advice

    async def by_challenge(
        self, challenge: Challenge, scopes: Sequence[str], credentials: Credentials | None, origin: URL
    ) -> Token:
        """A token for all of `scopes`, in their order.

        Raises `Permanent(denied)` where the token server refuses, `Temporary` where it cannot answer.
        """
        realm = self._realm(challenge, origin)
        query = [("service", challenge.parameters["service"])] if "service" in challenge.parameters else []
        headers = {"Authorization": basic(credentials)} if credentials else {}
        host = host_of(realm)
        with translated(host):
            answer = await self._transport.fetch(
                "GET",
                realm.extend_query([*query, *(("scope", scope) for scope in scopes)]),
                headers,
                trust=self._trust,
                body_max_bytes=TOKEN_ANSWER_MAX_BYTES,
            )
        if answer.status in (401, 403) and credentials is None:
            raise login_needed(self._host, wanted(scopes), self._advice)
        secrets = [credentials.password] if credentials else []
        return self._token("Bearer", answer, host, secrets)

    async def by_request(self, login: TokenRequest) -> Token:
        """The token that a request says how to get."""
        url = http_url(login.url.reveal())
        if url is None:
            raise invalid(f"registry {self._host}: the address of its token server is no http(s) URL")
        if not _TOKEN_TYPE.fullmatch(login.token_type):
            raise invalid(f"registry {self._host}: the type of its token is no name of an authentication scheme")
        headers = _own_headers(login, url, self._host)
        host = host_of(url)
        with translated(host):
            answer = await self._ask(url.with_user(None), headers, login.body)
        return self._token(login.token_type, answer, host, login.secrets)

    async def _ask(self, url: URL, headers: Mapping[str, str], body: Secret | None) -> Answer:
        """GET, with a body where there is one. A redirect is followed within the origin only: headers and body hold
        what nobody else may see."""
        content = body.reveal().encode() if body else b""
        for _ in range(REDIRECTS_MAX + 1):
            answer = await self._transport.once(
                "GET", url, headers, content, trust=self._trust, body_max_bytes=TOKEN_ANSWER_MAX_BYTES
            )
            target = redirect_target(url, answer.status, answer.headers)
            if target is None:
                return answer
            if origin_of(target) != origin_of(url):
                raise Permanent(
                    ErrorCode.DENIED, f"token server {host_of(url)}: it redirects to {host_of(target)}; refused"
                )
            url = target
        raise Permanent(ErrorCode.DENIED, f"token server {host_of(url)}: more than {REDIRECTS_MAX} redirects")

    def _realm(self, challenge: Challenge, origin: URL) -> URL:
        realm = http_url(challenge.parameters.get("realm", ""))
        if realm is None:
            raise Permanent(ErrorCode.DENIED, f"registry {self._host}: its challenge names no token server")
        if origin.scheme == "https" and realm.scheme != "https":
            raise Permanent(
                ErrorCode.DENIED,
                f"registry {self._host}: its token server {host_of(realm)} has no TLS while the registry has; refused",
            )
        return realm.with_user(None).with_fragment(None)

    def _token(self, token_type: str, answer: Answer, host: str, secrets: Sequence[Secret]) -> Token:
        if answer.status != 200:
            raise self._refusal(answer, host, detail(answer.body, Redactor(secrets)))
        try:
            told = msgspec.json.decode(answer.body, type=TokenAnswer)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            told = TokenAnswer()
        token = told.token or told.access_token or ""
        if not _HEADER_SAFE.fullmatch(token):
            raise Temporary(ErrorCode.REGISTRY_UNAVAILABLE, f"token server {host}: its answer holds no usable token")
        return Token(f"{token_type} {token}", renew_at(told, self._timing))

    def _refusal(self, answer: Answer, host: str, told: str) -> Fault:
        if not is_busy(answer.status):
            return no_token(host, self._host, answer.status, told)
        wish = answer.headers.get("Retry-After")
        return refusal(host, answer.status, what=f"token for {self._host}", detail=told, retry_after=wish)


def _own_headers(login: TokenRequest, url: URL, host: str) -> dict[str, str]:
    """The headers of a request's own token server; a login in its URL is one of them, as curl has it."""
    headers = {"Authorization": basic(Credentials(url.user, Secret(url.password or "")))} if url.user else {}
    if login.body:
        headers["Content-Type"] = "application/json"
    for name, value in login.headers.items():
        if not _TOKEN_TYPE.fullmatch(name) or not _HEADER_VALUE.fullmatch(value.reveal()):
            raise invalid(f"registry {host}: a header for its token server cannot be sent as it is")
        if name.lower() not in _OWN_HEADERS:
            headers = {known: text for known, text in headers.items() if known.lower() != name.lower()}
            headers[name] = value.reveal()
    return headers


def wanted(scopes: Sequence[str]) -> str:
    """The repository that the first scope speaks of."""
    return scopes[0].split(":")[1] if scopes and scopes[0].count(":") >= 2 else "what was asked"
