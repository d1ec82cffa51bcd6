"""Tokens (JWT, RFC 7519): is one signed by a key we have, is it for us and for now, and whom does it name.

A refusal says what its sender can put right and nothing that helps to guess: one message for everything about key and
signature, and not a word on claims before the signature holds.
"""

import re
from functools import lru_cache
from typing import Any

import jwt
import msgspec

from imagejobd.api.door import Caller
from imagejobd.api.keys import ALGORITHMS, KeyRing
from imagejobd.api.settings import Auth
from imagejobd.model.errors import ErrorCode, Permanent
from imagejobd.model.job import Json

# aiohttp takes header values up to 8190 bytes.
TOKEN_MAX_CHARS = 8000
# Checking a token takes 10 to 30 times as long as the rest of a small request's way through the door.
TOKENS_REMEMBERED = 1024
SUBMITTER_CLAIMS = ("sub", "email", "azp", "name")
SUBMITTER_MAX_CHARS = 256
INTEGER_MIN, INTEGER_MAX = -(2**63), 2**63 - 1

# Compact serialization (RFC 7515 §7.1): no JWE (five parts), no padding, no line breaks.
_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")
_jws = jwt.PyJWS(algorithms=ALGORITHMS)
_decode_claims = msgspec.json.Decoder(dict[str, Any]).decode

Moment = int | float


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
            raise refused(f"the token is longer than {TOKEN_MAX_CHARS} characters")
        identity = self._known_identity(token)
        # The claims may be integers of any size: they are compared, never reckoned with.
        if identity.until_s is not None and identity.until_s <= now_s - self._settings.leeway_s:
            raise refused("the token has expired")
        if identity.from_s is not None and identity.from_s > now_s + self._settings.leeway_s:
            raise refused("the token is not valid yet (nbf, iat)")
        return identity.caller

    def _identity(self, token: str) -> Identity:
        claims = _claims(self._payload(token))
        _check_audience(claims.get("aud"), self._settings.audience)
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
            raise _malformed()
        try:
            header = _jws.get_unverified_header(token)
        except jwt.PyJWTError:
            raise _malformed() from None
        if "crit" in header or "b64" in header:
            raise refused("the token's header demands an extension (crit, b64) that is not taken here")
        for key in self._ring.candidates(header.get("alg"), header.get("kid")):
            try:
                signed = _jws.decode_complete(token, key.material, algorithms=key.algorithms)
            except jwt.PyJWTError:
                continue
            payload: bytes = signed["payload"]
            return payload
        raise refused("the token's signature or algorithm is not accepted")


def refused(why: str) -> Permanent:
    return Permanent(ErrorCode.UNAUTHENTICATED, why)


def _malformed() -> Permanent:
    return refused("the token is malformed: a signed JWT has three parts in base64url, joined by dots")


def _claims(payload: bytes) -> Json:
    try:
        return _decode_claims(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise refused("the token's claims are not a JSON object") from None


def _check_audience(audience: object, wanted: str) -> None:
    if audience is None:
        raise refused("the token's claim aud is missing")
    if audience != wanted and not (isinstance(audience, list) and wanted in audience):
        raise refused("the token is for another audience (aud)")


def _integer(claims: Json, name: str) -> int:
    value = claims.get(name)
    if type(value) is not int or not INTEGER_MIN <= value <= INTEGER_MAX:  # a bool is an int, too
        raise refused(f"the token's claim {name} is missing or not an integer")
    return value


def _moment(claims: Json, name: str) -> Moment | None:
    if name not in claims:
        return None
    value = claims[name]
    if type(value) not in (int, float):
        raise refused(f"the token's claim {name} is not a number")
    moment: Moment = value
    return moment


def _submitter(claims: Json) -> Json:
    """What is kept of the person: texts that are short and can be shown."""
    told = {name: claims.get(name) for name in SUBMITTER_CLAIMS}
    return {
        name: text
        for name, text in told.items()
        if isinstance(text, str) and len(text) <= SUBMITTER_MAX_CHARS and text.isprintable()
    }
