"""A token server for registries (distribution spec, "Token Authentication"): RS256 tokens, short ones where wanted."""

import base64
import datetime as dt
import json
import re
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
from aiohttp import BasicAuth, hdrs, web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from harness.logins import PASSWORD, USERNAME
from harness.web_server import WebServer

ISSUER = "imagejobd test issuer"
SERVICE = "imagejobd test registry"
# docker-registry takes tokens for so long after their `exp` (registry/auth/token/token.go, `Leeway`).
REGISTRY_LEEWAY_S = 60
KEY_BITS = 2048
VALIDITY = dt.timedelta(days=1)
SCOPE = re.compile(r"(?P<type>[a-z]+):(?P<name>.+):(?P<actions>[a-z*,]+)")


@dataclass(frozen=True)
class TokenRequest:
    """Who asked for what; `user` is empty for an anonymous one. `came_at` is `time.monotonic()`."""

    user: str
    scopes: tuple[str, ...]
    came_at: float
    status: int


class TokenServer(WebServer):
    """Issues tokens at `realm`, to `users` with Basic or with a JSON body `{"username", "password"}`.

    A registry takes a token for `expires_s` and not longer. The answer says `told_expires_s` instead, where given
    (0: it does not say), under the name `token_key`. `anonymous` lets everybody pull.
    """

    def __init__(
        self,
        *,
        expires_s: float = 300,
        told_expires_s: int | None = None,
        token_key: str = "token",
        anonymous: bool = False,
    ) -> None:
        super().__init__()
        self.expires_s = expires_s
        self.told_expires_s = told_expires_s
        self.token_key = token_key
        self.anonymous = anonymous
        self.users = {USERNAME: PASSWORD}
        self.requests: list[TokenRequest] = []
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=KEY_BITS)
        self._certificate = _self_signed(self._key)

    @property
    def realm(self) -> str:
        return f"{self.url}/token"

    @property
    def granted(self) -> int:
        """How many tokens were fetched."""
        return sum(request.status == 200 for request in self.requests)

    def revoke(self, user: str = USERNAME) -> None:
        """Issue nothing more to `user`; what was issued lasts until it expires."""
        self.users.pop(user)

    def write_certificate(self, file: Path) -> None:
        """Write the `rootcertbundle` of a registry that trusts this server."""
        file.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, user: str, scopes: tuple[str, ...]) -> str:
        """A token for all that is in `scopes` (`repository:name:pull,push`), without a request."""
        now = time.time()
        claims = {
            "iss": ISSUER,
            "sub": user,
            "aud": SERVICE,
            "exp": int(now + self.expires_s - REGISTRY_LEEWAY_S),
            "nbf": int(now - REGISTRY_LEEWAY_S),
            "iat": int(now),
            "jti": uuid.uuid4().hex,
            "access": [access for scope in scopes if (access := _access(scope))],
        }
        certificate = base64.b64encode(self._certificate.public_bytes(serialization.Encoding.DER)).decode()
        return jwt.encode(claims, self._key, algorithm="RS256", headers={"x5c": [certificate]})

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.method == hdrs.METH_POST:  # OAuth 2, which newer engines try first and go on without
            return web.Response(status=405)
        scopes = tuple(scope for text in request.query.getall("scope", []) for scope in text.split())
        user = await self._user(request)
        allowed = bool(user) or self._may_be_anonymous(scopes) if user is not None else False
        status = 200 if allowed else 401
        self.requests.append(TokenRequest(user or "", scopes, time.monotonic(), status))
        if not allowed:
            return web.json_response({"details": "incorrect username or password"}, status=status)
        return web.json_response(self._answer(user or "", scopes))

    def _answer(self, user: str, scopes: tuple[str, ...]) -> dict[str, Any]:
        told = self.told_expires_s if self.told_expires_s is not None else int(self.expires_s)
        issued_at = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        answer = {self.token_key: self.issue(user, scopes), "issued_at": issued_at}
        return answer | ({"expires_in": told} if told else {})

    def _may_be_anonymous(self, scopes: tuple[str, ...]) -> bool:
        return self.anonymous and all(scope.endswith(":pull") for scope in scopes)

    async def _user(self, request: web.BaseRequest) -> str | None:
        """Who asks: empty for nobody, None for wrong credentials."""
        if hdrs.AUTHORIZATION in request.headers:
            basic = BasicAuth.decode(request.headers[hdrs.AUTHORIZATION])
            name, password = basic.login, basic.password
        elif body := await request.read():
            document = json.loads(body)
            name, password = document.get("username", ""), document.get("password", "")
        else:
            return ""
        return name if self.users.get(name) == password else None


def _access(scope: str) -> dict[str, Any] | None:
    match = SCOPE.fullmatch(scope)
    return match and {"type": match["type"], "name": match["name"], "actions": match["actions"].split(",")}


def _self_signed(key: rsa.RSAPrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, ISSUER)])
    now = dt.datetime.now(dt.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - VALIDITY).not_valid_after(now + VALIDITY)
    return builder.sign(key, hashes.SHA256())
