"""Tokens and keys as an identity provider makes them, and as an attacker does."""

import base64
import hmac
import json
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from imagejobd.api.keys import Auth

AUDIENCE = "com.company.jobservice"
SECRET = b"a shared secret of more than thirty-two bytes"
CLAIMS: dict[str, Any] = {"tid": 1, "oid": 7, "aud": AUDIENCE, "sub": "jane", "email": "jane@company.example"}
# As the dispatcher's document shows it.
DOCUMENT_SECRET = b"your-256-bit-secret"
DOCUMENT_TOKEN = (
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIiwibmFtZSI6IkpvaG4gRG9lIiwiaWF0IjoxNTE2MjM5MDIyLCJ0"
    "aWQiOjEsIm9pZCI6MSwiYXVkIjoiY29tLmNvbXBhbnkuam9ic2VydmljZSIsImF6cCI6IjEiLCJlbWFpbCI6ImN1c3RvbWVyQG1haWwuY29tIn0.Cc"
    "TapGbWX0UEMovUwC8kAcWMUxmbOeO0qhsu-wqHQH0"
)

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey

# Made once: a key takes a while.
RSA = rsa.generate_private_key(65537, 2048)
RSA_OF_ANOTHER = rsa.generate_private_key(65537, 2048)
P256, P384, P521 = (ec.generate_private_key(curve()) for curve in (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1))
K256 = ec.generate_private_key(ec.SECP256K1())
ED25519, ED448 = ed25519.Ed25519PrivateKey.generate(), ed448.Ed448PrivateKey.generate()

# Every algorithm with a key for it.
SIGNERS: list[tuple[str, PrivateKey]] = [
    *((name, RSA) for name in ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")),
    ("ES256", P256),
    ("ES384", P384),
    ("ES512", P521),
    ("ES256K", K256),
    ("EdDSA", ED25519),
    ("EdDSA", ED448),
]


def token(key: Any = SECRET, algorithm: str = "HS256", *, headers: dict[str, Any] | None = None, **claims: Any) -> str:
    """A signed token with `CLAIMS`, changed by `claims`; a claim that is `...` is left out."""
    wanted = {name: value for name, value in (CLAIMS | claims).items() if value is not ...}
    return jwt.encode(wanted, key, algorithm=algorithm, headers=headers)


def forged(header: dict[str, Any], signature: str = "", claims: dict[str, Any] | None = None) -> str:
    """Parts that nobody has signed."""
    return f"{part(header)}.{part(CLAIMS if claims is None else claims)}.{signature}"


def signed(header: dict[str, Any], payload: object, secret: bytes = SECRET) -> str:
    """Any header and payload (bytes: as they are) with an HMAC that holds; by SHA-256 where `alg` does not say."""
    digest = {"HS384": "sha384", "HS512": "sha512"}.get(header["alg"], "sha256")
    head = f"{part(header)}.{part_of_bytes(payload) if isinstance(payload, bytes) else part(payload)}"
    return f"{head}.{part_of_bytes(hmac.digest(secret, head.encode(), digest))}"


def part(value: object) -> str:
    return part_of_bytes(json.dumps(value).encode())


def part_of_bytes(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def public_pem(key: PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def private_pem(key: PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def jwk(key: PrivateKey, **members: Any) -> dict[str, Any]:
    """The public half as in a JWKS."""
    if isinstance(key, rsa.RSAPrivateKey):
        made = jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
        del made["key_ops"]  # as providers write it
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        made = jwt.algorithms.ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    else:
        made = jwt.algorithms.OKPAlgorithm.to_jwk(key.public_key(), as_dict=True)
    return made | members


def secret_jwk(secret: bytes, **members: Any) -> dict[str, Any]:
    return {"kty": "oct", "k": part_of_bytes(secret)} | members


def written(folder: Path, name: str, content: bytes) -> str:
    path = folder / name
    path.write_bytes(content)
    return str(path)


def jwks_file(folder: Path, *keys: dict[str, Any]) -> str:
    return written(folder, "jwks.json", json.dumps({"keys": keys}).encode())


def by_secret(folder: Path, secret: bytes = SECRET, **settings: Any) -> Auth:
    """`[auth]` with a shared secret."""
    return Auth(jwt_secret_file=written(folder, "jwt.secret", secret), **settings)


def by_public_keys(folder: Path, *keys: PrivateKey, **settings: Any) -> Auth:
    """`[auth]` with the public halves of `keys`."""
    files = [written(folder, f"{number}.pem", public_pem(key)) for number, key in enumerate(keys)]
    return Auth(jwt_public_key_files=tuple(files), **settings)


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}
