"""The keys that tokens may be signed with, read from the files of `[auth]`.

Each key is pinned to the algorithms of its own type, and of these to the ones in `auth.algorithms`: whatever a token
says, a public key is no shared secret. Nothing is fetched; a key is in the operator's files or unknown.
"""

import os
import stat
import warnings
from collections.abc import Collection, Sequence
from typing import Annotated, Any

import jwt
import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey, Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.algorithms import ECAlgorithm, HMACAlgorithm, OKPAlgorithm, RSAAlgorithm
from jwt.warnings import InsecureKeyLengthWarning
from msgspec import Meta

from imagejobd.api.wire import NOT_JSON
from imagejobd.model.errors import Permanent, invalid

FILE_MAX_BYTES = 256 * 1024
# A token that names no key is tried with every one of its algorithm: this bounds what a stranger's token costs.
KEYS_MAX = 32
RSA_MIN_BITS = 2048
# RFC 7518 §3.2. Shorter ones can be guessed from a single token; they are taken, because clients have them.
SECRET_GOOD_BYTES = 32

SECRET_ALGORITHMS = ("HS256", "HS384", "HS512")
RSA_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
CURVE_ALGORITHMS = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512", "secp256k1": "ES256K"}
ALGORITHMS = (*SECRET_ALGORITHMS, *RSA_ALGORITHMS, *CURVE_ALGORITHMS.values(), "EdDSA")

KEYS_HINT = "Set auth.jwt_secret_file, auth.jwt_public_key_files or auth.jwks_file"

PublicKey = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey | Ed448PublicKey
PrivateKey = RSAPrivateKey | EllipticCurvePrivateKey | Ed25519PrivateKey | Ed448PrivateKey

# The daemon's log says it once, at the start: `KeyRing.weaknesses`.
warnings.filterwarnings("ignore", category=InsecureKeyLengthWarning)


# Beyond it no clock is meant, but tokens that never expire.
LEEWAY_MAX_S = 3600


class Auth(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[auth]`: anonymous callers are tenant `local`, and on loopback or a unix socket only, unless allowed.

    `required`: every API wants a token (the dispatcher's always does, but for `dispatch_reads_anonymous`: on such
    listeners whoever asks may read status and location of its jobs by id). `algorithms` are those that are taken at
    all; each key is pinned to those of its own type. `leeway_s` is for clocks that differ. Callers whose `sub` is one
    of `admin_subjects` see every tenant.
    """

    required: bool = False
    allow_anonymous: bool = False
    dispatch_reads_anonymous: bool = False
    jwt_secret_file: str | None = None
    jwt_public_key_files: tuple[str, ...] = ()
    jwks_file: str | None = None
    algorithms: Annotated[tuple[str, ...], Meta(min_length=1)] = ("HS256", "RS256", "ES256", "EdDSA")
    audience: Annotated[str, Meta(min_length=1)] = "com.company.jobservice"
    leeway_s: Annotated[float, Meta(ge=0, le=LEEWAY_MAX_S)] = 30.0
    admin_subjects: tuple[str, ...] = ()

    @property
    def has_keys(self) -> bool:
        """Whether there is any key that a token could be checked with."""
        return bool(self.jwt_secret_file or self.jwt_public_key_files or self.jwks_file)


class Key(msgspec.Struct, frozen=True):
    """A public key, or a shared secret as bytes, and the algorithms it may verify. `id` is its `kid`, from a JWKS."""

    material: PublicKey | bytes
    algorithms: tuple[str, ...]
    id: str | None = None

    def __repr__(self) -> str:
        return f"Key({'|'.join(self.algorithms)}, id={self.id!r})"


class KeyRing:
    """All keys that are taken now. `weaknesses` are for the operator's log."""

    def __init__(self, keys: Sequence[Key], weaknesses: Sequence[str] = ()) -> None:
        self.keys = keys
        self.weaknesses = weaknesses

    def candidates(self, algorithm: object, key_id: object) -> list[Key]:
        """The keys that may have signed a token with this `alg` and `kid`; a known `kid` leaves no other choice."""
        named = [key for key in self.keys if key.id is not None and key.id == key_id]
        return [key for key in named or self.keys if algorithm in key.algorithms]


class _Jwk(msgspec.Struct, frozen=True):
    """What RFC 7517 §4 has in common for all types of keys; `d` is the private part (RFC 7518 §6)."""

    kty: str
    kid: str | None = None
    alg: str | None = None
    use: str | None = None
    key_ops: tuple[str, ...] | None = None
    d: object = None

    @property
    def is_for_signatures(self) -> bool:
        return self.use in (None, "sig") and (self.key_ops is None or "verify" in self.key_ops)


class _Jwks(msgspec.Struct, frozen=True):
    keys: list[dict[str, Any]]


JWK_TYPES: dict[str, Any] = {"oct": HMACAlgorithm, "RSA": RSAAlgorithm, "EC": ECAlgorithm, "OKP": OKPAlgorithm}


def load_keys(settings: Auth) -> KeyRing:
    """Read all key files. Raises `Permanent(invalid)` that names the key of `[auth]` and the file, and no content."""
    unknown = sorted(set(settings.algorithms).difference(ALGORITHMS))
    if unknown:
        raise invalid(f"auth.algorithms: {unknown[0]!r} is not known; there are: {', '.join(ALGORITHMS)}")
    keys: list[Key] = []
    if settings.jwt_secret_file is not None:
        secret, where = read_secret(settings.jwt_secret_file), f"auth.jwt_secret_file: {settings.jwt_secret_file}"
        keys.append(Key(secret, allowed_algorithms(secret, settings.algorithms, where)))
    keys += [_public_key(file, settings.algorithms) for file in settings.jwt_public_key_files]
    if settings.jwks_file is not None:
        keys += _jwks_keys(settings.jwks_file, settings.algorithms)
    if settings.required and not keys:
        raise invalid(f"auth.required = true, and there is no key to check tokens with. {KEYS_HINT}")
    if len(keys) > KEYS_MAX:
        raise invalid(f"[auth] names {len(keys)} keys; {KEYS_MAX} are the most that are taken")
    weaknesses = [
        f"a shared secret for tokens has {size} bytes: with fewer than {SECRET_GOOD_BYTES} it can be guessed"
        for key in keys
        if isinstance(key.material, bytes) and (size := len(key.material)) < SECRET_GOOD_BYTES
    ]
    return KeyRing(keys, weaknesses)


def read_secret(file: str) -> bytes:
    """The shared secret, without the line break that editors leave. Raises `Permanent(invalid)`."""
    where = f"auth.jwt_secret_file: {file}"
    secret = read_key_file(file, where).removesuffix(b"\n").removesuffix(b"\r")
    if not secret:
        raise invalid(f"{where} is empty")
    try:
        return HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(secret)
    except jwt.InvalidKeyError:
        raise invalid(f"{where} holds a key of another sort, not a shared secret") from None


def read_key_file(file: str, where: str) -> bytes:
    """The bytes of a small file; `where` is how errors begin."""
    try:
        # A FIFO would block whoever opens it until somebody writes to it.
        with open(file, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as opened:
            if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
                raise invalid(f"{where} is not a regular file")
            content = opened.read(FILE_MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a path"
        raise invalid(f"{where}: {reason}") from None
    if len(content) > FILE_MAX_BYTES:
        raise invalid(f"{where} is larger than {FILE_MAX_BYTES} bytes; is this the right file?")
    return content


def algorithms_of(material: PublicKey | PrivateKey | bytes) -> tuple[str, ...]:
    """The algorithms that a key's type is made for; none for a curve that signs no tokens."""
    match material:
        case bytes():
            return SECRET_ALGORITHMS
        case RSAPublicKey() | RSAPrivateKey():
            return RSA_ALGORITHMS
        case EllipticCurvePublicKey() | EllipticCurvePrivateKey():
            algorithm = CURVE_ALGORITHMS.get(material.curve.name)
            return (algorithm,) if algorithm else ()
        case _:
            return ("EdDSA",)


def allowed_algorithms(
    material: PublicKey | PrivateKey | bytes, allowed: Collection[str], where: str
) -> tuple[str, ...]:
    """Those of `algorithms_of` that are allowed. Raises `Permanent(invalid)` where none is left or the key is weak."""
    fitting = algorithms_of(material)
    if not fitting:
        raise wrong_key_type(where)
    if isinstance(material, RSAPublicKey | RSAPrivateKey) and material.key_size < RSA_MIN_BITS:
        raise invalid(f"{where} holds an RSA key of {material.key_size} bits; at least {RSA_MIN_BITS} are needed")
    usable = tuple(name for name in fitting if name in allowed)
    if not usable:
        raise invalid(f"{where} holds a key for {', '.join(fitting)}; auth.algorithms allows: {', '.join(allowed)}")
    return usable


def _public_key(file: str, allowed: Collection[str]) -> Key:
    where = f"auth.jwt_public_key_files: {file}"
    content = read_key_file(file, where)
    if b"PRIVATE KEY-----" in content:
        raise _private(where)
    if content.count(b"-----BEGIN ") > 1:
        raise invalid(f"{where} holds more than one PEM block: give each key a file of its own")
    try:
        material = _public(load_pem_public_key(content), where)
    except (ValueError, UnsupportedAlgorithm):
        raise invalid(f"{where} is not a public key in PEM (-----BEGIN PUBLIC KEY-----)") from None
    return Key(material, allowed_algorithms(material, allowed, where))


def _jwks_keys(file: str, allowed: Collection[str]) -> list[Key]:
    """The keys of a JWKS that are for signatures and allowed algorithms; identity providers list others beside them."""
    where = f"auth.jwks_file: {file}"
    try:
        entries = msgspec.json.decode(read_key_file(file, where), type=_Jwks).keys
    except NOT_JSON:
        raise invalid(f'{where} is not a JWKS document: {{"keys": […]}}') from None
    candidates = (_jwk_key(entry, allowed, f"{where}: key {number}") for number, entry in enumerate(entries, 1))
    keys = [key for key in candidates if key is not None]
    if not keys:
        raise invalid(f"{where} has no key that verifies signatures by {', '.join(allowed)}")
    return keys


def _jwk_key(entry: dict[str, Any], allowed: Collection[str], where: str) -> Key | None:
    try:
        jwk = msgspec.convert(entry, _Jwk)
    except msgspec.ValidationError as error:
        raise invalid(f"{where}: {error}") from None
    algorithm = JWK_TYPES.get(jwk.kty)
    if algorithm is None or not jwk.is_for_signatures:
        return None
    if jwk.d is not None and jwk.kty != "oct":
        raise _private(where)
    try:
        material = _public(algorithm.from_jwk(entry), where)
    except (jwt.PyJWTError, ValueError, TypeError, KeyError, AttributeError):
        # What the library says may quote the key.
        raise invalid(f"{where}: its members do not make a key of kty {jwk.kty}") from None
    wanted = [name for name in allowed if jwk.alg in (None, name)]
    if not set(wanted).intersection(algorithms_of(material)):
        return None
    return Key(material, allowed_algorithms(material, wanted, where), jwk.kid)


def _public(material: object, where: str) -> PublicKey | bytes:
    if not isinstance(material, PublicKey | bytes):
        raise wrong_key_type(where)
    return material


def wrong_key_type(where: str) -> Permanent:
    return invalid(f"{where} holds a key of a sort that signs no tokens: RSA, EC (P-256, P-384, P-521), Ed25519 do")


def _private(where: str) -> Permanent:
    return invalid(f"{where} holds a private key: keep it where tokens are signed, and give the daemon the public one")
