"""Who sends a request: an anonymous caller, or the one whom its token (JWT, RFC 7519) names. Asked before any body is
read.

A token that is not good is refused even where anonymous callers are welcome: nobody's job is to end up in another
tenant because a token had expired. A refusal says what its sender can put right and nothing that helps to guess: one
message for everything about key and signature, and not a word on claims before the signature holds.
"""

import asyncio
import re
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jwt
import msgspec
import structlog
from aiohttp import hdrs, web
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from imagejobd.api.intake import ANONYMOUS, NO_TOKEN, Caller
from imagejobd.api.keys import (
    ALGORITHMS,
    KEYS_HINT,
    Auth,
    KeyRing,
    PrivateKey,
    allowed_algorithms,
    load_keys,
    read_key_file,
    read_secret,
    wrong_key_type,
)
from imagejobd.api.page import page
from imagejobd.api.wire import NOT_JSON
from imagejobd.model.bounds import INTEGER_MAX, INTEGER_MIN
from imagejobd.model.errors import ErrorCode, Fault, Permanent, invalid
from imagejobd.model.job import Json

# For load balancers and monitors, who have no token.
OPEN_PATHS = frozenset({"/healthz", "/readyz", "/metrics", "/ping"})
# What `dispatch_reads_anonymous` is about.
_DISPATCH_POLL = re.compile(r"/api/v1/job/[^/]+(?:/status)?")
# aiohttp takes header values up to 8190 bytes.
TOKEN_MAX_CHARS = 8000
# Checking a token takes 10 to 30 times as long as the rest of what a small request takes.
TOKENS_REMEMBERED = 1024
SUBMITTER_CLAIMS = ("sub", "email", "azp", "name")
SUBMITTER_MAX_CHARS = 256

# Compact serialization (RFC 7515 §7.1): no JWE (five parts), no padding, no line breaks.
_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")
_jws = jwt.PyJWS(algorithms=ALGORITHMS)
_decode_claims = msgspec.json.Decoder(dict[str, Any]).decode
MALFORMED = "the token is malformed: a signed JWT has three parts in base64url, joined by dots"

Moment = int | float

log = structlog.get_logger("imagejobd.auth")


class Authentication:
    """`[auth]` at work, with its key files read."""

    def __init__(self, settings: Auth, clock: Callable[[], float] = time.time) -> None:
        """Raises `Permanent(invalid)` that names the file which cannot be used."""
        self._settings = settings
        self._clock = clock
        self._use(load_keys(settings))

    def caller(self, request: web.Request) -> Caller:
        """Who sent the request. Raises `Permanent(unauthenticated)`."""
        is_read = request.method in (hdrs.METH_GET, hdrs.METH_HEAD)
        # Whoever opens the page has none yet: it asks its user for one.
        if request.path in OPEN_PATHS or (is_read and request.path in page.PATHS):
            return ANONYMOUS
        if hdrs.AUTHORIZATION in request.headers:
            return self._bearer(request.headers.getall(hdrs.AUTHORIZATION))
        is_poll = is_read and _DISPATCH_POLL.fullmatch(request.path)
        if self._settings.required and not (self.dispatch_reads_anonymous and is_poll):
            raise unauthenticated(NO_TOKEN)
        return ANONYMOUS

    @property
    def dispatch_reads_anonymous(self) -> bool:
        """Whether callers without a token may read status and location of the dispatcher's jobs, by id."""
        return self._settings.dispatch_reads_anonymous

    async def reload(self) -> None:
        """Read the key files again: new keys count at once, old ones no longer. Bad files change nothing."""
        try:
            ring = await asyncio.to_thread(load_keys, self._settings)
        except Fault as fault:
            log.error("the keys for tokens stay as they were", error=fault.message)
            return
        self._use(ring)
        log.info("read the keys for tokens again", keys=len(ring.keys))

    def _use(self, ring: KeyRing) -> None:
        self._tokens = Tokens(ring, self._settings)
        self._is_keyless = not ring.keys
        self._has_warned = False
        for weakness in ring.weaknesses:
            log.warning(weakness)

    def _bearer(self, headers: list[str]) -> Caller:
        if len(headers) > 1:
            raise unauthenticated("the request carries more than one Authorization header")
        scheme, _, token = headers[0].partition(" ")
        if scheme.lower() != "bearer":
            raise unauthenticated("Authorization must be Bearer <JWT>")
        if self._is_keyless:
            if not self._has_warned:
                self._has_warned = True  # strangers must not fill the log
                log.warning(f"a token came, and was refused because there is no key to check it with. {KEYS_HINT}")
            raise unauthenticated("this daemon has no key to check tokens with; its operator has to configure one")
        return self._tokens.caller(token.lstrip(" "), self._clock())


class Identity(msgspec.Struct, frozen=True):
    """Whom a token names, and from when until when (epoch seconds)."""

    caller: Caller
    from_s: Moment | None
    until_s: Moment | None


class Tokens:
    """Tokens by the keys of one `KeyRing`. What was found good is remembered; new keys come with a new `Tokens`."""

    def __init__(self, ring: KeyRing, settings: Auth) -> None:
        self._ring = ring
        self._settings = settings
        self._known_identity = lru_cache(TOKENS_REMEMBERED)(self._identity)

    def caller(self, token: str, now_s: float) -> Caller:
        """Whom the token names. Raises `Permanent(unauthenticated)` with a reason for its sender."""
        if len(token) > TOKEN_MAX_CHARS:
            raise unauthenticated(f"the token is longer than {TOKEN_MAX_CHARS} characters")
        identity = self._known_identity(token)
        # The claims may be integers of any size: they are compared, never reckoned with.
        if identity.until_s is not None and identity.until_s <= now_s - self._settings.leeway_s:
            raise unauthenticated("the token has expired")
        if identity.from_s is not None and identity.from_s > now_s + self._settings.leeway_s:
            raise unauthenticated("the token is not valid yet (nbf, iat)")
        return identity.caller

    def _identity(self, token: str) -> Identity:
        try:
            claims = _decode_claims(self._payload(token))
        except NOT_JSON:
            raise unauthenticated("the token's claims are not a JSON object") from None
        audience, expected = claims.get("aud"), self._settings.audience
        if audience is None:
            raise unauthenticated("the token's claim aud is missing")
        if audience != expected and not (isinstance(audience, list) and expected in audience):
            raise unauthenticated("the token is for another audience (aud)")
        subject = claims.get("sub")
        caller = Caller(
            tenant=str(_integer(claims, "tid")),
            client=str(_integer(claims, "oid")),
            submitter=_submitter(claims),
            is_admin=isinstance(subject, str) and subject in self._settings.admin_subjects,
            is_anonymous=False,
        )
        starts = [moment for name in ("nbf", "iat") if (moment := _moment(claims, name)) is not None]
        return Identity(caller, max(starts, default=None), _moment(claims, "exp"))

    def _payload(self, token: str) -> bytes:
        """What was signed. Where keys come from is never up to the token: of its header `alg` and `kid` are read."""
        if not _COMPACT.fullmatch(token):
            raise unauthenticated(MALFORMED)
        try:
            header = _jws.get_unverified_header(token)
        except jwt.PyJWTError:
            raise unauthenticated(MALFORMED) from None
        if "crit" in header or "b64" in header:
            raise unauthenticated("the token's header demands an extension (crit, b64) that is not taken here")
        for key in self._ring.candidates(header.get("alg"), header.get("kid")):
            try:
                signed = _jws.decode_complete(token, key.material, algorithms=key.algorithms)
            except jwt.PyJWTError:
                continue
            payload: bytes = signed["payload"]
            return payload
        raise unauthenticated("the token's signature or algorithm is not accepted")


def mint(settings: Auth, claims: Json, *, private_key_file: str | None, key_id: str | None) -> str:
    """A token with `claims`, signed by the first algorithm of its key's type that `auth.algorithms` allows.

    For tests and scripts: in production an identity provider mints them, and the daemon has no key that can. Raises
    `Permanent(invalid)` that names the file which cannot be used.
    """
    key: PrivateKey | bytes
    if private_key_file is not None:
        where = f"--private-key: {private_key_file}"
        key = _private_key(private_key_file, where)
    elif settings.jwt_secret_file is not None:
        where = f"auth.jwt_secret_file: {settings.jwt_secret_file}"
        key = read_secret(settings.jwt_secret_file)
    else:
        raise invalid("no key to sign with: configure auth.jwt_secret_file, or name a --private-key")
    algorithms = allowed_algorithms(key, settings.algorithms, where)
    return jwt.encode(claims, key, algorithm=algorithms[0], headers={"kid": key_id} if key_id else None)


def unauthenticated(why: str) -> Permanent:
    return Permanent(ErrorCode.UNAUTHENTICATED, why)


def _integer(claims: Json, name: str) -> int:
    value = claims.get(name)
    if type(value) is not int or not INTEGER_MIN <= value <= INTEGER_MAX:  # a bool is an int, too
        raise unauthenticated(f"the token's claim {name} is missing or not an integer")
    return value


def _moment(claims: Json, name: str) -> Moment | None:
    if name not in claims:
        return None
    moment: Moment = claims[name]
    if type(moment) not in (int, float):
        raise unauthenticated(f"the token's claim {name} is not a number")
    return moment


def _submitter(claims: Json) -> Json:
    """What is kept of the person: texts that are short and printable."""
    return {
        name: text
        for name in SUBMITTER_CLAIMS
        if isinstance(text := claims.get(name), str) and len(text) <= SUBMITTER_MAX_CHARS and text.isprintable()
    }


def _private_key(file: str, where: str) -> PrivateKey:
    content = read_key_file(file, where)
    try:
        key = load_pem_private_key(content, password=None)
    except TypeError:
        raise invalid(f"{where} is encrypted with a passphrase, which is not taken") from None
    except (ValueError, UnsupportedAlgorithm):
        raise invalid(f"{where} is not a private key in PEM") from None
    if not isinstance(key, PrivateKey):
        raise wrong_key_type(where)
    return key
